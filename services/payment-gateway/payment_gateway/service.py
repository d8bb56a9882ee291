"""Use cases of payment-gateway."""

from collections.abc import Sequence
from uuid import UUID

from payment_gateway import models, queries
from payment_gateway.domain import Kind, Order, Status, charge_of
from payment_gateway.simulator import SandboxProvider
from shared import outbox
from shared.auth import Principal
from shared.database import Database
from shared.errors import NotFoundError
from shared.events import OutgoingEvent, PaymentDeclined, PaymentSucceeded
from shared.outbox import Relay


class OrderChangedError(ValueError):
    """The same transaction asks for the same kind of operation with other terms."""


class Payments:
    """Orders at providers, each executed once however often it is asked for."""

    def __init__(self, database: Database, provider: SandboxProvider, relay: Relay) -> None:
        self._database = database
        self._provider = provider
        self._relay = relay

    async def execute(self, orders: Sequence[Order]) -> list[models.PaymentRow]:
        """One payment an order, in order; raises OrderChangedError."""
        return [
            await (self._refund(order) if order.kind is Kind.REFUND else self._execute(order)) for order in orders
        ]

    async def get(self, caller: Principal, payment_id: UUID) -> models.PaymentRow:
        """One payment of the caller's, or any as admin; raises NotFoundError."""
        async with self._database.transaction() as session:
            row = await queries.by_id(session, payment_id)
        if row is None or (row.user_id != caller.user_id and caller.role != "admin"):
            raise NotFoundError("payment")
        return row

    async def _refund(self, order: Order) -> models.PaymentRow:
        """Give back what was charged, and see to it that nothing is charged afterwards.

        The answer is the refund; where there is nothing to give back it is the charge that did not take place, and
        where the charge is still unknown, that one.
        """
        async with self._database.transaction() as session:
            charge = await queries.open_payment(session, charge_of(order), voided=True)
        if charge.status == Status.PENDING:
            charge = await self._execute(charge_of(order))
        return await self._execute(order) if charge.status == Status.SUCCEEDED else charge

    async def _execute(self, order: Order) -> models.PaymentRow:
        async with self._database.transaction() as session:
            row = await queries.open_payment(session, order)
        if (row.amount_minor, row.currency, row.method) != (order.amount.minor, order.amount.currency, order.method):
            raise OrderChangedError
        if row.status != Status.PENDING:
            return row
        answer = await self._provider.execute(order, idempotency_key=str(row.id))
        if answer.status is Status.PENDING:
            return row
        async with self._database.transaction() as session:
            settled = await queries.settle_payment(session, row.id, answer)
            if settled is None:
                return await queries.by_id(session, row.id) or row
            await outbox.append(session, models.outbox, [_event(settled)])
        self._relay.wake()
        return settled


def _event(row: models.PaymentRow) -> OutgoingEvent:
    common = {
        "payment_id": row.id,
        "transaction_id": row.transaction_id,
        "kind": row.kind,
        "provider": row.provider,
        "amount_minor": row.amount_minor,
        "currency": row.currency,
    }
    data: PaymentSucceeded | PaymentDeclined
    if row.status == Status.SUCCEEDED:
        data = PaymentSucceeded.model_validate(common | {"provider_reference": row.provider_reference})
    else:
        data = PaymentDeclined.model_validate(common | {"decline_code": row.decline_code})
    return OutgoingEvent.of(data, subject=row.id, sequence=1, actor="payment-gateway")
