"""Use cases of payment-gateway."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from payment_gateway import models, queries
from payment_gateway.domain import (
    CANCELLED,
    PROVIDERS,
    VOIDED,
    Answer,
    Kind,
    Order,
    Outcome,
    Reversal,
    Status,
    charge_of,
    provider_of,
    refund_refusal,
)
from payment_gateway.metrics import PaymentMetrics
from payment_gateway.models import PaymentRow
from shared import outbox
from shared.auth import Principal
from shared.database import Database
from shared.errors import NotFoundError
from shared.events import (
    OutgoingEvent,
    PaymentDeclined,
    PaymentDisputed,
    PaymentEvent,
    PaymentReturned,
    PaymentSucceeded,
)
from shared.http.context import seconds_left
from shared.money import Money
from shared.outbox import Relay

MAX_CONCURRENT_ORDERS: Final = 32  # at one provider, in one process
FOLLOW_UP_BATCH: Final = 32  # all at once, or a silent provider would keep some beyond their lease
PROVIDER_TIMEOUT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 0.5  # of a request's time are kept for answering it
KEY_SECONDS: Final = 24 * 3600.0  # how long providers remember an idempotency key

_log = logging.getLogger(__name__)


class OrderChangedError(ValueError):
    """The same transaction asks for the same kind of operation with other terms than those of this payment."""

    def __init__(self, payment_id: UUID, provider: str) -> None:
        super().__init__("the order came before with other terms")
        self.payment_id = payment_id
        self.provider = provider


class Provider(Protocol):
    """Whoever moves money outside. Asked again under the same key it does nothing twice, for as long as it remembers
    the key."""

    async def execute(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        """Have the order carried out, which was first asked for `age_seconds` ago, and say what is known of it."""

    async def cancel(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        """See to it that the order is not carried out any more, if that can be, and say what is known of it."""


class Payments:
    """Orders at providers, each executed once however often it is asked for. A provider that does not answer keeps
    nobody from another one."""

    def __init__(self, database: Database, provider: Provider, relay: Relay, metrics: PaymentMetrics) -> None:
        self._database = database
        self._provider = provider
        self._relay = relay
        self._metrics = metrics
        self._slots = {name: asyncio.Semaphore(MAX_CONCURRENT_ORDERS) for name in PROVIDERS}

    async def execute(self, orders: Sequence[Order]) -> list[Outcome]:
        """One outcome an order, in order; an order that fails is pending, as it is unknown what became of it.

        Orders about one charge run one after the other, others at the same time. Raises OSError when none of them
        reached the database.
        """
        lanes: defaultdict[UUID, list[int]] = defaultdict(list)
        for position, order in enumerate(orders):
            lanes[order.charged_by].append(position)
        results: dict[int, Outcome | Exception] = {}

        async def run(lane: Sequence[int]) -> None:
            for position in lane:
                results[position] = await self._attempt(orders[position])

        await asyncio.gather(*map(run, lanes.values()))
        unreached = [result for result in results.values() if isinstance(result, OSError)]
        if len(unreached) == len(orders):
            raise unreached[0]
        return [_outcome(order, results[position]) for position, order in enumerate(orders)]

    async def get(self, caller: Principal, payment_id: UUID) -> PaymentRow:
        """One payment of the caller's, or any as admin; raises NotFoundError."""
        async with self._database.transaction() as session:
            row = await queries.by_id(session, payment_id)
        if row is None or (row.user_id != caller.user_id and caller.role != "admin"):
            raise NotFoundError("payment")
        return row

    async def follow_up_due(self, provider: str) -> int:
        """Ask the provider again about a batch of payments that wait for it; answers how many there were."""
        async with self._database.transaction() as session:
            rows = await queries.claim_due(session, provider, FOLLOW_UP_BATCH)
        await asyncio.gather(*map(self._follow_up, rows))
        return len(rows)

    async def _attempt(self, order: Order) -> Outcome | Exception:
        """What became of the order, or what kept us from knowing."""
        try:
            async with self._slot(provider_of(order.method)):
                row = await (self._refund(order) if order.kind is Kind.REFUND else self._execute(order))
        except Exception as error:  # noqa: BLE001 - one order's trouble is its own
            _log.error("%s of transaction %s: %s", order.kind, order.transaction_id, _cause(error))
            return error
        return _outcome_of(row)

    async def _follow_up(self, row: PaymentRow) -> None:
        try:
            async with self._slot(row.provider):
                await self._ask(row)
        except Exception as error:  # noqa: BLE001 - the lease ends, and the payment is due again
            _log.warning("follow-up of payment %s: %s", row.id, _cause(error))

    @asynccontextmanager
    async def _slot(self, provider: str) -> AsyncIterator[None]:
        """One of the provider's places; raises TimeoutError when none becomes free in the request's time."""
        slots = self._slots[provider]
        async with asyncio.timeout(_time_for_the_provider()):
            await slots.acquire()
        try:
            yield
        finally:
            slots.release()

    async def _execute(self, order: Order) -> PaymentRow:
        """Have the operation carried out, or see to it that it is not any more."""
        async with self._database.transaction() as session:
            row, _ = await queries.open_payment(session, order, CANCELLED if order.cancel else None)
        _require_same_terms(row, order)
        return await self._finish(row, cancel=order.cancel)

    async def _refund(self, order: Order) -> PaymentRow:
        """Give back what was charged, all or part of it.

        A refund of the transaction's own charge also sees to it that nothing is charged afterwards. Where there is
        nothing to give back its answer is the charge that did not take place, and where the charge is still unknown,
        that one.
        """
        if order.original_id is None:
            async with self._database.transaction() as session:
                charge, _ = await queries.open_payment(session, charge_of(order), VOIDED)
            charge = await self._finish(charge)
            if charge.status != Status.SUCCEEDED:
                return charge
        return await self._finish(await self._open_refund(order))

    async def _open_refund(self, order: Order) -> PaymentRow:
        """The refund, pending if the charge covers it; under its lock no two refunds count on the same rest."""
        async with self._database.transaction() as session:
            charge = await queries.lock_charge(session, order.charged_by)
            row, new = await queries.open_payment(session, order)
            _require_same_terms(row, order)
            if not new:
                return row
            code = refund_refusal(
                order,
                _order(charge) if charge and charge.status == Status.SUCCEEDED else None,
                disputed=charge is not None and charge.reversal is not None,
                given_back_minor=await queries.given_back_minor(session, order.charged_by),
            )
            if code is None:
                return row
            row = await self._settle(session, row.id, Answer(Status.DECLINED, decline_code=code))
        self._relay.wake()
        return row

    async def _finish(self, row: PaymentRow, *, cancel: bool = False) -> PaymentRow:
        """The payment as its provider knows it, asked only while that is not on record."""
        return await self._ask(row, cancel=cancel) if row.status == Status.PENDING else row

    async def _ask(self, row: PaymentRow, *, cancel: bool = False) -> PaymentRow:
        """Ask the provider under the payment's own key, while it lives, and record what it says.

        Where no answer comes in time it is not known whether the provider has acted: the payment stays as it is.
        """
        if row.age_seconds + PROVIDER_TIMEOUT_SECONDS > KEY_SECONDS:
            return await self._give_up(row)
        ask = self._provider.cancel if cancel else self._provider.execute
        try:
            async with asyncio.timeout(_time_for_the_provider()):
                answer = await ask(_order(row), str(row.id), row.age_seconds)
        except TimeoutError:
            _log.warning("%s has not answered about payment %s", row.provider, row.id)
            self._metrics.timeouts.labels(row.provider).inc()
            async with self._database.transaction() as session:
                return await queries.plan_check(session, row.id, expected=True)
        async with self._database.transaction() as session:
            row = await self._record(session, row.id, answer)
        self._relay.wake()
        return row

    async def _give_up(self, row: PaymentRow) -> PaymentRow:
        """Never ask the provider again: under a key that it has forgotten, it would do it a second time."""
        async with self._database.transaction() as session:
            given_up = await queries.give_up(session, row.id)
        if given_up and row.status == Status.PENDING:
            _log.error("payment %s needs a person: %s has given no answer in a day", row.id, row.provider)
            self._metrics.given_up.labels(row.provider, row.kind).inc()
        return row

    async def _record(self, session: AsyncSession, payment_id: UUID, answer: Answer) -> PaymentRow:
        """The payment with what is new in the answer; others may have asked meanwhile, and settled stays settled."""
        row = await queries.lock_payment(session, payment_id)
        if row.status == Status.PENDING and answer.status is not Status.PENDING:
            row = await self._settle(session, row.id, answer)
        if row.status != answer.status:
            return row
        expects_more = answer.expects_more
        if answer.reversal and row.reversal is None:
            # Whether a refund that is under way succeeds decides how much a dispute takes.
            if await queries.has_pending_refund(session, row.transaction_id):
                expects_more = True
            else:
                row = await self._reverse(session, row, answer.reversal)
        if expects_more or row.next_check_at is not None:
            row = await queries.plan_check(session, row.id, expected=expects_more)
        return row

    async def _settle(self, session: AsyncSession, payment_id: UUID, answer: Answer) -> PaymentRow:
        row = await queries.settle(session, payment_id, answer)
        event = (
            _event(row, PaymentSucceeded, row.amount_minor, provider_reference=row.provider_reference)
            if row.status == Status.SUCCEEDED
            else _event(row, PaymentDeclined, row.amount_minor, decline_code=row.decline_code)
        )
        await outbox.append(session, models.outbox, [event])
        return row

    async def _reverse(self, session: AsyncSession, row: PaymentRow, reversal: Reversal) -> PaymentRow:
        """Record that the money came back. A dispute takes what was not given back already, and may find nothing."""
        disputed = reversal is Reversal.DISPUTED
        given_back = await queries.given_back_minor(session, row.transaction_id) if disputed else 0
        if given_back == row.amount_minor:
            return row
        row = await queries.reverse(session, row.id, reversal, row.amount_minor - given_back)
        kind = PaymentDisputed if disputed else PaymentReturned
        event = _event(row, kind, row.reversed_minor, provider_reference=row.provider_reference)
        await outbox.append(session, models.outbox, [event])
        return row


def _time_for_the_provider() -> float:
    """In seconds: less than the caller waits, who has other orders to hear of."""
    return min(PROVIDER_TIMEOUT_SECONDS, seconds_left() - ANSWER_SECONDS)


def _order(row: PaymentRow) -> Order:
    """What is asked of the provider: always what is on record, whoever asks for it."""
    amount = Money(row.amount_minor, row.currency)
    return Order(row.transaction_id, Kind(row.kind), row.user_id, row.method, amount, row.original_id)


def _require_same_terms(row: PaymentRow, order: Order) -> None:
    if _order(row).terms != order.terms:
        raise OrderChangedError(row.id, row.provider)


def _cause(error: Exception) -> str:
    """The error for the log, without the row that the database's further lines repeat."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _outcome_of(row: PaymentRow) -> Outcome:
    return Outcome(row.transaction_id, Kind(row.kind), row.id, row.provider, Status(row.status), row.decline_code)


def _outcome(order: Order, result: Outcome | Exception) -> Outcome:
    """Unknown never becomes a no: whatever went wrong, the order is pending."""
    if isinstance(result, Outcome):
        return result
    payment_id, provider, code = None, provider_of(order.method), "unknown"
    if isinstance(result, OrderChangedError):
        payment_id, provider, code = result.payment_id, result.provider, "order_changed"
    return Outcome(order.transaction_id, order.kind, payment_id, provider, Status.PENDING, code)


def _event(row: PaymentRow, kind: type[PaymentEvent], amount_minor: int | None, **said: str | None) -> OutgoingEvent:
    data = kind.model_validate(
        {
            "payment_id": row.id,
            "transaction_id": row.transaction_id,
            "kind": row.kind,
            "provider": row.provider,
            "amount_minor": amount_minor,
            "currency": row.currency,
        }
        | said
    )
    return OutgoingEvent.of(data, subject=row.id, sequence=row.event_sequence, actor="payment-gateway")
