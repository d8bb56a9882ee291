"""Use cases of transaction-service."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final
from uuid import UUID

from shared.auth import Principal
from shared.database import Database
from shared.errors import AppError, FieldInvalidError, NotFoundError
from shared.events import Envelope, PaymentDeclined, PaymentDisputed, PaymentReturned, PaymentSucceeded, data_of
from shared.http.context import current_context, seconds_left
from shared.money import InvalidAmountError, to_money
from transaction_service import queries
from transaction_service.answers import Answer, answer
from transaction_service.domain import (
    CANCELLED,
    ORIGINAL_FAILED,
    Command,
    Decision,
    Filters,
    NotCancellableError,
    Reversal,
    Status,
    Transaction,
    Type,
    fee_of,
)
from transaction_service.journal import Journal
from transaction_service.steps import Steps

ANSWER_SECONDS: Final = 0.5  # of a request's time are kept for answering it
# The types of events that `Transactions.note` learns from.
NEWS: Final = tuple(kind.type for kind in (PaymentSucceeded, PaymentDeclined, PaymentDisputed, PaymentReturned))

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefundWish:
    """What a caller wants given back, in major units: all that is left without an `amount`."""

    amount: Decimal | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    key: str | None = None


class Transactions:
    """Carries out what callers ask for, a batch at a time, each step safe to repeat."""

    def __init__(self, database: Database, journal: Journal, steps: Steps, payment_fee_bps: int) -> None:
        self._database = database
        self._journal = journal
        self._steps = steps
        self._payment_fee_bps = payment_fee_bps
        self._running: set[asyncio.Task[dict[UUID, Transaction]]] = set()

    async def create(self, commands: Sequence[Command]) -> list[Answer | AppError]:
        """Do each thing once, however often a client retries under the same idempotency key.

        Once a command is on record it runs on, whether or not the caller still listens.
        """
        opened = await self._journal.open([self._complete(command) for command in commands])
        to_run = [item for item in opened if isinstance(item, Transaction)]
        ended = await self._run_to_the_end(to_run) if to_run else {}
        return [answer(ended.get(item.id, item)) if isinstance(item, Transaction) else item for item in opened]

    async def refund(self, caller: Principal, transaction_id: UUID, wish: RefundWish) -> Answer | AppError:
        """Give back all or part of what the caller has received or deposited.

        Raises NotFoundError, ForbiddenError, NotRefundableError, FieldInvalidError.
        """
        original = await self.get(caller, transaction_id)
        original.check_refundable(caller.user_id)
        try:
            amount = to_money(wish.amount, original.amount.currency) if wish.amount is not None else None
        except InvalidAmountError as error:
            raise FieldInvalidError("amount", error.code, str(error)) from None
        command = Command(
            type=Type.REFUND,
            user_id=caller.user_id,
            amount=amount,
            from_wallet_id=original.to_wallet_id,
            to_wallet_id=original.from_wallet_id,
            payment_method=original.payment_method,
            description=wish.description,
            metadata=wish.metadata,
            key=wish.key,
            original_id=original.id,
            original_type=original.type,
        )
        [refunded] = await self.create([command])
        return refunded

    async def cancel(self, caller: Principal, transaction_id: UUID) -> Transaction:
        """Stop a deposit or withdrawal of the caller's that still can be stopped: as it is afterwards.

        It may still be pending: the provider has the last word. Raises NotFoundError, NotCancellableError.
        """
        transaction = await self.get(caller, transaction_id)
        if transaction.user_id != caller.user_id:
            raise NotFoundError("transaction")
        if transaction.failure_code == CANCELLED:
            return transaction
        transaction.check_cancellable()
        requested = await self._journal.request_cancel(transaction_id)
        if requested is not None:
            await self._run_to_the_end([requested])
        ended = await self.get(caller, transaction_id)
        if ended.status is not Status.PENDING and ended.failure_code != CANCELLED:
            raise NotCancellableError("It is done already.")
        return ended

    async def resume_due(self, types: Collection[Type]) -> int:
        """Take up what a crash or an outage left open of these types; how many there were."""
        due = await self._journal.claim_due(types)
        if due:
            await self._carry_out(due)
            self._journal.answered(due)
        return len(due)

    async def note(self, envelope: Envelope) -> None:
        """Learn from a provider's news, once: what waits goes on, what was undone is undone here."""
        news = data_of(envelope)
        if isinstance(news, PaymentSucceeded | PaymentDeclined):
            await self._journal.note(envelope.id, news.transaction_id)
        elif isinstance(news, PaymentDisputed | PaymentReturned):
            kind = Type.DISPUTE if isinstance(news, PaymentDisputed) else Type.PAYOUT_RETURN
            reversal = Reversal(kind, news.transaction_id, news.amount_minor, news.provider)
            await self._journal.note(envelope.id, reversal)

    async def drain(self) -> None:
        """Wait for what is under way."""
        if self._running:
            await asyncio.wait(self._running)

    async def get(self, caller: Principal, transaction_id: UUID) -> Transaction:
        """One transaction that the caller may see; raises NotFoundError."""
        async with self._database.transaction() as session:
            transaction = await queries.visible(session, _scope(caller), transaction_id)
        if transaction is None:
            raise NotFoundError("transaction")
        return transaction

    async def page(
        self,
        caller: Principal,
        filters: Filters,
        limit: int,
        *,
        after: UUID | None = None,
        before: UUID | None = None,
    ) -> tuple[list[Transaction], bool]:
        """At most `limit` transactions, newest first, and whether there are more in this direction.

        The list goes on after the transaction `after`, or ends before `before`; raises NotFoundError.
        """
        seen = after or before
        async with self._database.transaction() as session:
            cursor = await queries.visible(session, _scope(caller), seen) if seen else None
            if seen and cursor is None:
                raise NotFoundError("transaction")
            found = await queries.page(session, _scope(caller), filters, limit + 1, cursor, newer=before is not None)
        shown = found[-limit:] if before else found[:limit]
        return shown, len(found) > limit

    def _complete(self, command: Command) -> Command:
        """The command with what is fixed when it is opened: its fee, and the request that it came with."""
        command = command if command.trace else replace(command, trace=current_context().trace)
        if command.type is Type.PAYMENT and command.amount is not None:
            return replace(command, fee_minor=fee_of(command.amount, self._payment_fee_bps).minor)
        return command

    async def _run_to_the_end(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        task = asyncio.ensure_future(self._carry_out(transactions))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: self._journal.answered(transactions))
        try:
            async with asyncio.timeout(max(0.0, seconds_left() - ANSWER_SECONDS)):
                return await asyncio.shield(task)
        except TimeoutError:  # it runs on, and the caller hears 202 while there is somebody to hear it
            return task.result() if task.done() else await self._begin_to_wait(transactions)

    async def _begin_to_wait(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """What the transactions are when their callers' time is over. They are on record, so this never fails."""
        refused = self._journal.promise(transactions)
        try:
            async with asyncio.timeout(ANSWER_SECONDS / 2):
                return await self._journal.wait(transactions)
        except Exception as error:  # noqa: BLE001 - whatever keeps it from being written is no answer to the caller
            _log.warning("answered before their waiting was on record: %s: %s", type(error).__name__, error)
            return refused

    async def _carry_out(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """Every step of the transactions, and what they are afterwards; what has no outcome waits."""
        try:
            ready, decisions = await self._after_their_originals(transactions)
            decisions += await self._steps.carry_out(ready)
            closed = await self._journal.close(decisions)
            return closed | await self._journal.wait([t for t in transactions if t.id not in closed])
        except Exception:  # noqa: BLE001 - on record, so the caller hears 202 and the sweeper goes on
            _log.exception("transactions left to the sweeper")
            return self._journal.promise(transactions)

    async def _after_their_originals(
        self, transactions: Sequence[Transaction]
    ) -> tuple[list[Transaction], list[Decision]]:
        """What may be carried out now, and what is decided: what undoes another transaction waits for its completion,
        and has nothing to undo when that failed."""
        originals = [t.original_id for t in transactions if t.comes_back and t.original_id]
        if not originals:
            return list(transactions), []
        statuses = await self._journal.statuses(originals)
        ready, decisions = [], []
        for transaction in transactions:
            status = statuses.get(transaction.original_id) if transaction.original_id else None
            if not transaction.comes_back or status is Status.COMPLETED:
                ready.append(transaction)
            elif status is Status.FAILED:
                decisions.append(Decision(transaction, ORIGINAL_FAILED))
        return ready, decisions


def _scope(caller: Principal) -> UUID | None:
    return None if caller.role == "admin" else caller.user_id
