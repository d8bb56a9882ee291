"""SQL of payment-gateway, as functions taking a session."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from payment_gateway.domain import VOIDED, Answer, Order, Status, provider_of
from payment_gateway.models import PaymentRow
from shared.ids import new_id


async def open_payment(session: AsyncSession, order: Order, voided: bool = False) -> PaymentRow:
    """The payment of this order: the one that an earlier call has left, or a new one.

    A new one is pending; `voided` makes it a declined one instead, which refuses a charge that comes too late.
    """
    ended = {"status": Status.DECLINED, "decline_code": VOIDED} if voided else {}
    await session.execute(
        insert(PaymentRow)
        .values(
            **ended,
            id=new_id(),
            transaction_id=order.transaction_id,
            kind=order.kind,
            user_id=order.user_id,
            provider=provider_of(order.method),
            method=order.method,
            amount_minor=order.amount.minor,
            currency=order.amount.currency,
        )
        .on_conflict_do_nothing(constraint="payments_transaction_kind")
    )
    statement = sa.select(PaymentRow).where(
        PaymentRow.transaction_id == order.transaction_id, PaymentRow.kind == order.kind
    )
    return (await session.scalars(statement)).one()


async def settle_payment(session: AsyncSession, payment_id: UUID, answer: Answer) -> PaymentRow | None:
    """The payment as the answer leaves it, or None when it had been settled before."""
    statement = (
        sa.update(PaymentRow)
        .where(PaymentRow.id == payment_id, PaymentRow.status == Status.PENDING)
        .values(
            status=answer.status,
            provider_reference=answer.reference,
            decline_code=answer.decline_code,
            updated_at=sa.func.now(),
        )
        .returning(PaymentRow)
    )
    return (await session.scalars(statement)).one_or_none()


async def by_id(session: AsyncSession, payment_id: UUID) -> PaymentRow | None:
    """The payment with this id."""
    return await session.get(PaymentRow, payment_id, populate_existing=True)
