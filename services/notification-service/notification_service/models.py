"""Tables of the schema `notifications`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.inbox import inbox_table
from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="notifications")


metadata = Base.metadata
inbox = inbox_table(metadata)
outbox = outbox_table(metadata)


class ContactRow(Base):
    """How a person is reached: what the newest of their events that was seen says."""

    __tablename__ = "contacts"
    __table_args__ = (sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="contacts_status"),)

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(sa.Text)
    phone: Mapped[str] = mapped_column(sa.Text)
    first_name: Mapped[str] = mapped_column(sa.Text)
    last_name: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Text)
    sequence: Mapped[int] = mapped_column(sa.BigInteger)


class PreferenceRow(Base):
    """What a person has said of one kind; where there is no row, the default counts."""

    __tablename__ = "preferences"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    email: Mapped[bool]
    sms: Mapped[bool]


class ChooserRow(Base):
    """Somebody who has chosen; `event_sequence` counts what was told of that."""

    __tablename__ = "choosers"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    event_sequence: Mapped[int] = mapped_column(sa.BigInteger)


class NotificationRow(Base):
    """One message to one person by one channel about one event.

    While it is pending, `next_attempt_at` says when it is due, and `reason` why the last attempt was in vain.
    `attempts` also tells a worker whose time was up that somebody else has taken the row.
    """

    __tablename__ = "notifications"
    __table_args__ = (
        sa.UniqueConstraint("event_id", "user_id", "channel", name="notifications_once"),
        sa.CheckConstraint("channel in ('email', 'sms')", name="notifications_channel"),
        sa.CheckConstraint("state in ('pending', 'sent', 'failed', 'skipped')", name="notifications_state"),
        sa.CheckConstraint("(state = 'pending') = (next_attempt_at is not null)", name="notifications_due"),
        sa.CheckConstraint("(state = 'sent') = (sent_at is not null)", name="notifications_sent"),
        sa.Index(
            "notifications_pending", "channel", "next_attempt_at", postgresql_where=sa.text("state = 'pending'")
        ),
        sa.Index("notifications_age", "created_at"),
        sa.Index("notifications_of_user", "user_id", "created_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    event_id: Mapped[UUID]
    user_id: Mapped[UUID]
    channel: Mapped[str] = mapped_column(sa.Text)
    kind: Mapped[str] = mapped_column(sa.Text)
    template: Mapped[str] = mapped_column(sa.Text)
    facts: Mapped[dict[str, str]] = mapped_column(JSONB)
    occurred_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True))
    state: Mapped[str] = mapped_column(sa.Text)
    reason: Mapped[str | None] = mapped_column(sa.Text)
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_attempt_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())
    sent_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    read_at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
