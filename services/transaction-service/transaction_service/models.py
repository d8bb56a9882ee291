"""Tables of the schema `transactions`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.inbox import inbox_table
from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="transactions")


class TransactionRow(Base):
    """A transaction. While it is pending, `next_attempt_at` says when the sweeper takes it up.

    `original_id` is what a refund, payout return or dispute gives back; `refunded_minor` how much of this one has
    been given back or is reserved for it.
    """

    __tablename__ = "transactions"
    __table_args__ = (
        sa.CheckConstraint(
            "type in ('deposit', 'withdrawal', 'transfer', 'payment', 'refund', 'payout_return', 'dispute')",
            name="transactions_type",
        ),
        sa.CheckConstraint("status in ('pending', 'completed', 'failed')", name="transactions_status"),
        sa.CheckConstraint("amount_minor > 0", name="transactions_amount"),
        sa.CheckConstraint("fee_minor >= 0 and fee_minor < amount_minor", name="transactions_fee"),
        sa.CheckConstraint("refunded_minor between 0 and amount_minor", name="transactions_refunded"),
        sa.CheckConstraint(
            "(original_id is not null) = (type in ('refund', 'payout_return', 'dispute'))",
            name="transactions_original",
        ),
        sa.CheckConstraint("(status = 'failed') = (failure_code is not null)", name="transactions_failure"),
        sa.CheckConstraint("(status = 'pending') = (completed_at is null)", name="transactions_completed"),
        sa.Index("transactions_by_user", "user_id", "created_at", "id"),
        sa.Index("transactions_by_payee", "payee_user_id", "created_at", "id"),
        sa.Index("transactions_of_original", "original_id", postgresql_where=sa.text("original_id is not null")),
        sa.Index(
            "transactions_reversed_once",
            "original_id",
            "type",
            unique=True,
            postgresql_where=sa.text("type in ('payout_return', 'dispute')"),
        ),
        sa.Index(
            "transactions_ended", "completed_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}
        ),
        sa.Index("transactions_open", "next_attempt_at", postgresql_where=sa.text("status = 'pending'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Text, server_default="pending")
    user_id: Mapped[UUID]
    payee_user_id: Mapped[UUID | None]
    from_wallet_id: Mapped[UUID | None]
    to_wallet_id: Mapped[UUID | None]
    amount_minor: Mapped[int] = mapped_column(sa.BigInteger)
    currency: Mapped[str] = mapped_column(sa.CHAR(3))
    fee_minor: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    original_id: Mapped[UUID | None]
    original_type: Mapped[str | None] = mapped_column(sa.Text)
    refunded_minor: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    payment_method: Mapped[str | None] = mapped_column(sa.Text)
    provider: Mapped[str | None] = mapped_column(sa.Text)
    description: Mapped[str | None] = mapped_column(sa.Text)
    details: Mapped[dict[str, str]] = mapped_column("metadata", JSONB)
    failure_code: Mapped[str | None] = mapped_column(sa.Text)
    available_minor: Mapped[int | None] = mapped_column(sa.BigInteger)
    declined: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    cancel_requested: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    attempts: Mapped[int] = mapped_column(sa.Integer, server_default="0")
    event_sequence: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    completed_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    next_attempt_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))


class IdempotencyKeyRow(Base):
    """A caller's key, what it stands for and, once known, the answer that every repeat gets."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        sa.Index("idempotency_keys_transaction", "transaction_id"),
        sa.Index(
            "idempotency_keys_created", "created_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}
        ),
    )

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    operation: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    key: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(sa.LargeBinary)
    transaction_id: Mapped[UUID]
    response_status: Mapped[int | None] = mapped_column(sa.Integer)
    response_body: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


metadata = Base.metadata
outbox = outbox_table(metadata)
inbox = inbox_table(metadata)
