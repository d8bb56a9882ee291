"""Tables of the schema `payments`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="payments")


class PaymentRow(Base):
    """An operation at a provider. Committed as pending, with our reference (`id`), before the provider is asked."""

    __tablename__ = "payments"
    __table_args__ = (
        sa.UniqueConstraint("transaction_id", "kind", name="payments_transaction_kind"),
        sa.CheckConstraint("kind in ('charge', 'refund')", name="payments_kind"),
        sa.CheckConstraint("status in ('pending', 'succeeded', 'declined')", name="payments_status"),
        sa.CheckConstraint("amount_minor > 0", name="payments_amount"),
        sa.CheckConstraint("(status = 'succeeded') = (provider_reference is not null)", name="payments_reference"),
        sa.CheckConstraint("(status = 'declined') = (decline_code is not null)", name="payments_decline"),
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


metadata = Base.metadata
outbox = outbox_table(metadata)
