"""Tables of the schema `payments`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="payments")


class PaymentRow(Base):
    """An operation at a provider. Committed as pending, with our reference (`id`), before the provider is asked.

    `original_id` is the transaction whose charge a refund gives back, null for its own. `next_check_at` is when the
    worker asks the provider again, null when nothing more is expected. `age_seconds` is by the database's clock, and
    comes with a SELECT only, not with RETURNING.
    """

    __tablename__ = "payments"
    __table_args__ = (
        sa.UniqueConstraint("transaction_id", "kind", name="payments_transaction_kind"),
        sa.CheckConstraint("kind in ('charge', 'refund', 'payout')", name="payments_kind"),
        sa.CheckConstraint("status in ('pending', 'succeeded', 'declined')", name="payments_status"),
        sa.CheckConstraint("amount_minor > 0", name="payments_amount"),
        sa.CheckConstraint("(status = 'succeeded') = (provider_reference is not null)", name="payments_reference"),
        sa.CheckConstraint("(status = 'declined') = (decline_code is not null)", name="payments_decline"),
        sa.CheckConstraint("original_id is null or kind = 'refund'", name="payments_original"),
        sa.CheckConstraint(
            "reversal is null or status = 'succeeded' "
            "and (kind = 'charge' and reversal = 'disputed' or kind = 'payout' and reversal = 'returned')",
            name="payments_reversal",
        ),
        sa.CheckConstraint(
            "(reversal is null) = (reversed_minor is null) and (reversal is null) = (reversed_at is null)",
            name="payments_reversal_whole",
        ),
        sa.CheckConstraint("reversed_minor > 0 and reversed_minor <= amount_minor", name="payments_reversed"),
        sa.Index("payments_due", "next_check_at", postgresql_where=sa.text("next_check_at is not null")),
        sa.Index("payments_refunds", "original_id", postgresql_where=sa.text("original_id is not null")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    transaction_id: Mapped[UUID]
    kind: Mapped[str] = mapped_column(sa.Text)
    user_id: Mapped[UUID]
    provider: Mapped[str] = mapped_column(sa.Text)
    method: Mapped[str] = mapped_column(sa.Text)
    amount_minor: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.CHAR(3))
    status: Mapped[str] = mapped_column(sa.Text, server_default="pending")
    provider_reference: Mapped[str | None] = mapped_column(sa.Text)
    decline_code: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    updated_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    original_id: Mapped[UUID | None]
    event_sequence: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    next_check_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    reversal: Mapped[str | None] = mapped_column(sa.Text)
    reversed_minor: Mapped[int | None] = mapped_column(sa.BigInteger)
    reversed_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    age_seconds: Mapped[float] = column_property(
        sa.cast(sa.extract("epoch", sa.func.clock_timestamp() - created_at), sa.Double)
    )


metadata = Base.metadata
outbox = outbox_table(metadata)
