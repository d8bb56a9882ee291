"""Tables of the schema `wallets`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.inbox import inbox_table
from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="wallets")


class AccountRow(Base):
    """A person's wallet (`user_id`) or a system account (`name`).

    `version` counts its entries, `event_sequence` the events about the wallet itself, `revision` every change of its
    balance, of what is held and of its status.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        sa.UniqueConstraint("user_id", "currency", name="accounts_user_currency"),
        sa.CheckConstraint("(name is null) <> (user_id is null)", name="accounts_owner"),
        sa.CheckConstraint("status in ('active', 'frozen', 'closed')", name="accounts_status"),
        sa.CheckConstraint("held_minor >= 0", name="accounts_held"),
        sa.CheckConstraint("user_id is null or balance_minor >= held_minor", name="accounts_not_overdrawn"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.Text, unique=True)
    user_id: Mapped[UUID | None]
    currency: Mapped[str] = mapped_column(sa.CHAR(3))
    status: Mapped[str] = mapped_column(sa.Text, server_default="active")
    balance_minor: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    held_minor: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    version: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    merchant: Mapped[bool] = mapped_column(sa.Boolean, server_default=sa.false())
    event_sequence: Mapped[int] = mapped_column(sa.BigInteger, server_default="1")
    revision: Mapped[int] = mapped_column(sa.BigInteger, server_default="0")
    last_entry_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012 - SQLAlchemy's way: it counts what it writes


class PersonRow(Base):
    """What is known of a person from the events of user-service, the last of which was `sequence`."""

    __tablename__ = "people"
    __table_args__ = (sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="people_status"),)

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Text)
    sequence: Mapped[int] = mapped_column(sa.BigInteger)


class PostingRow(Base):
    """What was decided about a transaction, once and for all; applied when `refusal` is null."""

    __tablename__ = "postings"
    __table_args__ = (
        sa.Index("postings_created", "created_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    refusal: Mapped[str | None] = mapped_column(sa.Text)
    available_minor: Mapped[int | None] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


class HoldRow(Base):
    """Money set aside for a transaction, or the refusal to.

    One that is released and has no account never was, and must not be made any more.
    """

    __tablename__ = "holds"
    __table_args__ = (
        sa.CheckConstraint("status in ('open', 'captured', 'released', 'refused')", name="holds_status"),
        sa.CheckConstraint("amount_minor > 0", name="holds_amount"),
        sa.CheckConstraint("(account_id is null) = (amount_minor is null)", name="holds_account"),
        sa.CheckConstraint(
            "status not in ('open', 'captured') or account_id is not null", name="holds_of_an_account"
        ),
        sa.CheckConstraint("(status = 'refused') = (refusal is not null)", name="holds_refusal"),
        sa.CheckConstraint("(status = 'open') = (ended_at is null)", name="holds_ended"),
        sa.Index("holds_open", "account_id", postgresql_where=sa.text("status = 'open'")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    account_id: Mapped[UUID | None]
    amount_minor: Mapped[int | None] = mapped_column(sa.BigInteger)
    status: Mapped[str] = mapped_column(sa.Text)
    refusal: Mapped[str | None] = mapped_column(sa.Text)
    available_minor: Mapped[int | None] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    ended_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))


class EntryRow(Base):
    """One side of a posting. Append-only: triggers refuse UPDATE, DELETE, TRUNCATE and what does not balance."""

    __tablename__ = "entries"
    __table_args__ = (
        sa.CheckConstraint("amount_minor <> 0", name="entries_amount"),
        sa.CheckConstraint("version > 0", name="entries_version"),
        sa.Index("entries_posting", "posting_id"),
        sa.Index("entries_created", "created_at", postgresql_using="brin", postgresql_with={"autosummarize": "on"}),
    )

    account_id: Mapped[UUID] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    posting_id: Mapped[UUID]
    amount_minor: Mapped[int] = mapped_column(sa.BigInteger)
    balance_minor: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))


metadata = Base.metadata
outbox = outbox_table(metadata)
inbox = inbox_table(metadata)
