"""Use cases of transaction-service."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from uuid import UUID

from shared.auth import Principal
from shared.database import Database
from shared.errors import AppError, NotFoundError
from transaction_service import queries
from transaction_service.answers import Answer, answer
from transaction_service.clients import LedgerOutcome, OrderOutcome, PaymentClient, WalletClient
from transaction_service.domain import Command, Decision, Transaction, Type, failure_of_refusal
from transaction_service.journal import Journal

_log = logging.getLogger(__name__)


class Transactions:
    """Carries out what callers ask for, a batch at a time, each step safe to repeat."""

    def __init__(self, database: Database, journal: Journal, wallets: WalletClient, payments: PaymentClient) -> None:
        self._database = database
        self._journal = journal
        self._wallets = wallets
        self._payments = payments
        self._running: set[asyncio.Task[dict[UUID, Transaction]]] = set()

    async def create(self, commands: Sequence[Command]) -> list[Answer | AppError]:
        """Do each thing once, however often a client retries under the same idempotency key.

        Once a command is on record it runs on, whether or not the caller still listens.
        """
        opened = await self._journal.open(commands)
        to_run = [item for item in opened if isinstance(item, Transaction)]
        ended = await self._run_to_the_end(to_run) if to_run else {}
        return [answer(ended.get(item.id, item)) if isinstance(item, Transaction) else item for item in opened]

    async def resume_due(self) -> int:
        """Take up what a crash or an outage left open; how many there were."""
        due = await self._journal.claim_due()
        if due:
            await self._carry_out(due)
        return len(due)

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

    async def page(self, caller: Principal, limit: int, after: UUID | None) -> tuple[list[Transaction], bool]:
        """At most `limit` transactions, newest first, and whether there are more; raises NotFoundError."""
        async with self._database.transaction() as session:
            cursor = await queries.visible(session, _scope(caller), after) if after else None
            if after and cursor is None:
                raise NotFoundError("transaction")
            found = await queries.page(session, _scope(caller), limit + 1, cursor)
        return found[:limit], len(found) > limit

    async def _run_to_the_end(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        task = asyncio.ensure_future(self._carry_out(transactions))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _carry_out(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """Every step of the transactions, and what they are afterwards; what has no outcome waits."""
        try:
            decisions = await self._transfer([t for t in transactions if t.type is Type.TRANSFER])
            decisions += await self._deposit([t for t in transactions if t.type is Type.DEPOSIT])
            closed = await self._journal.close(decisions)
            return closed | await self._journal.wait([t for t in transactions if t.id not in closed])
        except Exception:  # noqa: BLE001 - on record, so the caller hears 202 and the sweeper goes on
            _log.exception("transactions left to the sweeper")
            return {}

    async def _transfer(self, transfers: Sequence[Transaction]) -> list[Decision]:
        return _decisions(await self._wallets.post(transfers, {}))

    async def _deposit(self, deposits: Sequence[Transaction]) -> list[Decision]:
        """Check, charge, post. What the ledger refuses fails only after it is sure that nothing stays charged."""
        checks = await self._wallets.check(deposits)
        charges = await self._payments.charge([d for d in deposits if d.id in checks and not checks[d.id].code])
        declined = [
            Decision(id_, failure_code=charge.code, declined=True)
            for id_, charge in charges.items()
            if charge.status == "declined"
        ]
        charged = [d for d in deposits if d.id in charges and charges[d.id].status == "succeeded"]
        posted = await self._wallets.post(charged, {d.id: charges[d.id].provider for d in charged})
        refused = {id_: outcome for id_, outcome in (checks | posted).items() if outcome.code}
        refunds = await self._payments.refund([d for d in deposits if d.id in refused])
        settled = {
            id_: outcome
            for id_, outcome in (refused | posted).items()
            if not outcome.code or (id_ in refunds and _nothing_stays_charged(refunds[id_]))
        }
        return declined + _decisions(settled)


def _nothing_stays_charged(refund: OrderOutcome) -> bool:
    """The refund succeeded, or the charge took nothing. A refund that is declined waits for a person."""
    if refund.status == "declined" and refund.kind == "refund":
        _log.error("a refund was declined by %s: %s", refund.provider, refund.code)
    return refund.status == ("succeeded" if refund.kind == "refund" else "declined")


def _decisions(outcomes: Mapping[UUID, LedgerOutcome]) -> list[Decision]:
    return [
        Decision(id_, failure_of_refusal(outcome.code), outcome.available_minor)
        if outcome.code
        else Decision(id_, payee_user_id=outcome.payee_user_id)
        for id_, outcome in outcomes.items()
    ]


def _scope(caller: Principal) -> UUID | None:
    return None if caller.role == "admin" else caller.user_id
