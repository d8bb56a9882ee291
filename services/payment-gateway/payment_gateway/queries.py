"""SQL of payment-gateway, as functions taking a session."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from payment_gateway.domain import Answer, Kind, Order, Reversal, Status, provider_of
from payment_gateway.models import PaymentRow
from shared.ids import new_id

LEASE_SECONDS: Final = 15.0  # how long whoever asks the provider has it to himself, as a courtesy
MIN_CHECK_SECONDS: Final = 0.5
MAX_CHECK_SECONDS: Final = 60.0


async def open_payment(
    session: AsyncSession, order: Order, declined_as: str | None = None
) -> tuple[PaymentRow, bool]:
    """The payment of this order, and whether it is a new one or one that an earlier call has left.

    A new one is pending; `declined_as` makes it a declined one instead, which refuses an order that comes too late.
    """
    state = (
        {"status": Status.DECLINED, "decline_code": declined_as}
        if declined_as
        else {"status": Status.PENDING, "next_check_at": _in_seconds(LEASE_SECONDS)}
    )
    statement = (
        insert(PaymentRow)
        .values(
            **state,
            id=new_id(),
            transaction_id=order.transaction_id,
            kind=order.kind,
            user_id=order.user_id,
            provider=provider_of(order.method),
            method=order.method,
            amount_minor=order.amount.minor,
            currency=order.amount.currency,
            original_id=order.original_id,
        )
        .on_conflict_do_nothing(constraint="payments_transaction_kind")
        .returning(PaymentRow.id)
    )
    new = (await session.scalars(statement)).one_or_none() is not None
    return (await session.scalars(_of(order.transaction_id, order.kind))).one(), new


async def lock_charge(session: AsyncSession, transaction_id: UUID) -> PaymentRow | None:
    """The transaction's charge, which nobody else gives back or takes back until the session's transaction ends."""
    statement = _of(transaction_id, Kind.CHARGE).with_for_update(key_share=True)
    return (await session.scalars(statement)).one_or_none()


async def lock_payment(session: AsyncSession, payment_id: UUID) -> PaymentRow:
    """The payment with this id, which nobody else changes until the session's transaction ends."""
    statement = sa.select(PaymentRow).where(PaymentRow.id == payment_id).with_for_update(key_share=True)
    return (await session.scalars(statement)).one()


async def given_back_minor(session: AsyncSession, transaction_id: UUID) -> int:
    """The sum of the refunds of this transaction's charge, without those that were declined."""
    statement = sa.select(sa.func.coalesce(sa.func.sum(PaymentRow.amount_minor), 0)).where(
        _refunds_of(transaction_id), PaymentRow.status != Status.DECLINED
    )
    return int((await session.scalars(statement)).one())


async def has_pending_refund(session: AsyncSession, transaction_id: UUID) -> bool:
    """Whether it is not known yet what becomes of a refund of this transaction's charge."""
    statement = sa.select(sa.exists().where(_refunds_of(transaction_id), PaymentRow.status == Status.PENDING))
    return bool((await session.scalars(statement)).one())


def _refunds_of(transaction_id: UUID) -> sa.ColumnElement[bool]:
    own = sa.and_(PaymentRow.transaction_id == transaction_id, PaymentRow.original_id.is_(None))
    return sa.and_(PaymentRow.kind == Kind.REFUND, sa.or_(PaymentRow.original_id == transaction_id, own))


async def settle(session: AsyncSession, payment_id: UUID, answer: Answer) -> PaymentRow:
    """The payment, locked and pending before, as the provider's definite answer leaves it."""
    return await _update(
        session,
        payment_id,
        status=answer.status,
        provider_reference=answer.reference,
        decline_code=answer.decline_code,
        event_sequence=PaymentRow.event_sequence + 1,
        next_check_at=None,
        updated_at=sa.func.now(),
    )


async def reverse(session: AsyncSession, payment_id: UUID, reversal: Reversal, reversed_minor: int) -> PaymentRow:
    """The payment, locked and succeeded before, with this much of its money taken back."""
    return await _update(
        session,
        payment_id,
        reversal=reversal,
        reversed_minor=reversed_minor,
        reversed_at=sa.func.now(),
        # The code before this column settled payments, and told of it, without counting.
        event_sequence=sa.func.greatest(PaymentRow.event_sequence, 1) + 1,
        next_check_at=None,
        updated_at=sa.func.now(),
    )


async def plan_check(session: AsyncSession, payment_id: UUID, *, expected: bool) -> PaymentRow:
    """Have the provider asked again when the payment has waited as long again, a minute at most, or never again."""
    wait = sa.func.least(MAX_CHECK_SECONDS, sa.func.greatest(MIN_CHECK_SECONDS, PaymentRow.age_seconds))
    next_check = _in_seconds(wait * (0.5 + sa.func.random() / 2)) if expected else None
    return await _update(session, payment_id, next_check_at=next_check)


async def give_up(session: AsyncSession, payment_id: UUID) -> bool:
    """Have the provider never asked again; whether it was still going to be."""
    statement = (
        sa.update(PaymentRow)
        .where(PaymentRow.id == payment_id, PaymentRow.next_check_at.is_not(None))
        .values(next_check_at=None)
        .returning(PaymentRow.id)
        .execution_options(synchronize_session=False)
    )
    return (await session.scalars(statement)).one_or_none() is not None


async def claim_due(session: AsyncSession, provider: str, limit: int) -> Sequence[PaymentRow]:
    """At most `limit` payments that this provider has to be asked about again, leased to the caller, the longest due
    first."""
    due = (
        sa.select(PaymentRow.id)
        .where(PaymentRow.next_check_at <= sa.func.now(), PaymentRow.provider == provider)
        .order_by(PaymentRow.next_check_at)
        .limit(limit)
        .with_for_update(key_share=True, skip_locked=True)
        .cte("due")
    )
    claim = (
        sa.update(PaymentRow)
        .where(PaymentRow.id == due.c.id)
        .values(next_check_at=_in_seconds(LEASE_SECONDS))
        .returning(PaymentRow.id)
        .execution_options(synchronize_session=False)
    )
    claimed = (await session.scalars(claim)).all()
    return (await session.scalars(sa.select(PaymentRow).where(PaymentRow.id.in_(claimed)))).all()


async def by_id(session: AsyncSession, payment_id: UUID) -> PaymentRow | None:
    """The payment with this id."""
    return await session.get(PaymentRow, payment_id)


def _of(transaction_id: UUID, kind: Kind) -> sa.Select[PaymentRow]:
    return sa.select(PaymentRow).where(PaymentRow.transaction_id == transaction_id, PaymentRow.kind == kind)


async def _update(session: AsyncSession, payment_id: UUID, **values: Any) -> PaymentRow:
    statement = (
        sa.update(PaymentRow)
        .where(PaymentRow.id == payment_id)
        .values(**values)
        .returning(PaymentRow)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return (await session.scalars(statement)).one()


def _in_seconds(seconds: Any) -> sa.ColumnElement[Any]:
    return sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
