"""The journal: what people asked for, what became of it, and what they were told, each in one commit."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from shared import outbox
from shared.database import Asyncpg, CommitUnknownError, Database, with_retries
from shared.errors import AppError, OutcomeUnknownError
from shared.events import (
    OutgoingEvent,
    TransactionCompleted,
    TransactionEvent,
    TransactionFailed,
    TransactionPending,
)
from shared.ids import new_id
from shared.outbox import Relay
from transaction_service import queries
from transaction_service.answers import Answer, answer
from transaction_service.domain import (
    Command,
    Decision,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    Status,
    Transaction,
)

CREATE: Final = "transactions.create"
# The request's deadline and a margin: until then whoever opened a transaction is taken to be at work on it.
LEASE_SECONDS: Final = 25.0
SWEEP_LIMIT: Final = 100


# What a command becomes: a transaction to carry out, the answer from before, or a refusal.
Opened = Transaction | Answer | AppError


class Journal:
    """Opens and closes transactions, a batch at a time."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay

    async def open(self, commands: Sequence[Command]) -> list[Opened]:
        """Put each command on record as pending, with its key; known keys come back as they ended.

        Raises OutcomeUnknownError when the database went away in the middle of the commit and stays away.
        """
        items = [(command, new_id()) for command in commands]
        try:
            return await with_retries(lambda: self._open(items))
        except CommitUnknownError:
            raise OutcomeUnknownError from None

    async def close(self, decisions: Sequence[Decision]) -> dict[UUID, Transaction]:
        """End each transaction once, with its event and the answer for its key; as they are afterwards, by id."""
        if not decisions:
            return {}
        closed = await with_retries(lambda: self._close(decisions))
        self._relay.wake()
        return closed

    async def wait(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """Leave the transactions to the sweeper: unknown is not failed. As they are afterwards, by id."""
        if not transactions:
            return {}
        waiting = await with_retries(lambda: self._wait(transactions))
        self._relay.wake()
        return waiting

    async def claim_due(self) -> list[Transaction]:
        """Open transactions that nobody works on, leased to the caller."""
        async with self._database.batch() as connection:
            return await queries.claim_due(connection, SWEEP_LIMIT, LEASE_SECONDS)

    async def _open(self, items: Sequence[tuple[Command, UUID]]) -> list[Opened]:
        """Repeated under the same ids after an unknown commit: what is there already is its own work."""
        keyed = [(command, id_) for command, id_ in items if command.key is not None]
        async with self._database.batch() as connection:
            won = await queries.take_keys(connection, CREATE, keyed) if keyed else set()
            fresh = [(command, id_) for command, id_ in items if command.key is None or id_ in won]
            opened = await queries.insert_transactions(connection, fresh, LEASE_SECONDS) if fresh else {}
            repeats = [command for command, id_ in keyed if id_ not in won]
            known = await queries.known_keys(connection, CREATE, repeats) if repeats else {}
            resumed = await self._resume(connection, known)
            return [opened.get(id_) or _repeat(command, known, resumed) for command, id_ in items]

    async def _resume(self, connection: Asyncpg, known: dict[tuple[UUID, str], queries.KnownKey]) -> set[UUID]:
        """The unanswered transactions that a crash has left, taken up again."""
        unanswered = [key.transaction.id for key in known.values() if key.answer is None]
        return await queries.claim(connection, unanswered, LEASE_SECONDS) if unanswered else set()

    async def _close(self, decisions: Sequence[Decision]) -> dict[UUID, Transaction]:
        async with self._database.batch() as connection:
            closed = await queries.close(connection, decisions)
            if closed:
                answers = {id_: answer(transaction) for id_, transaction in closed.items()}
                # Once somebody else has taken a transaction up, its caller may have heard 202 and its id.
                kept = {id_ for id_, told in answers.items() if told.final or closed[id_].attempts}
                await queries.store_answers(connection, [(id_, answers[id_]) for id_ in kept])
                await queries.free_keys(connection, list(answers.keys() - kept))
                await outbox.append_batch(connection, [_event(transaction) for transaction in closed.values()])
            ended_before = {decision.transaction_id for decision in decisions} - closed.keys()
            return closed | (await queries.by_ids(connection, ended_before) if ended_before else {})

    async def _wait(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        ids = [transaction.id for transaction in transactions]
        async with self._database.batch() as connection:
            waiting = await queries.begin_waiting(connection, ids)
            if waiting:
                await queries.store_answers(connection, [(id_, answer(t)) for id_, t in waiting.items()])
                await outbox.append_batch(connection, [_event(transaction) for transaction in waiting.values()])
            return await queries.by_ids(connection, ids)


def _repeat(command: Command, known: dict[tuple[UUID, str], queries.KnownKey], resumed: set[UUID]) -> Opened:
    """What a command gets whose key was taken; a key that vanished meanwhile is as good as one in use."""
    key = known.get((command.user_id, command.key or ""))
    if key is None:
        return IdempotencyKeyInUseError()
    if key.fingerprint != command.fingerprint():
        return IdempotencyKeyReusedError()
    if key.answer is not None:
        return key.answer
    if key.transaction.id in resumed:
        return key.transaction
    return IdempotencyKeyInUseError()


_EVENTS: Final = {Status.PENDING: TransactionPending, Status.COMPLETED: TransactionCompleted}


def _event(transaction: Transaction) -> OutgoingEvent:
    common = {
        "transaction_id": transaction.id,
        "transaction_type": transaction.type.value,
        "user_id": transaction.user_id,
        "payee_user_id": transaction.payee_user_id,
        "from_wallet_id": transaction.from_wallet_id,
        "to_wallet_id": transaction.to_wallet_id,
        "amount_minor": transaction.amount.minor,
        "currency": transaction.amount.currency,
    }
    data: TransactionEvent
    if transaction.status is Status.FAILED:
        data = TransactionFailed.model_validate(common | {"failure_code": transaction.failure_code})
    else:
        data = _EVENTS[transaction.status].model_validate(common)
    return OutgoingEvent.of(
        data, subject=transaction.id, sequence=transaction.event_sequence, actor=str(transaction.user_id)
    )
