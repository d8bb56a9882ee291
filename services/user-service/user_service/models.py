"""Tables of the schema `users`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="users")
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's way
        str: sa.Text,
        int: sa.BigInteger,
        datetime: sa.DateTime(timezone=True),
    }


class UserRow(Base):
    """A person, whose row is locked by whatever changes them or their sessions.

    `event_sequence` counts the events told of them, `password_version` the passwords they have had, and
    `sessions_version` the changes of their sessions.
    """

    __tablename__ = "users"
    __table_args__ = (
        sa.CheckConstraint("role in ('user', 'merchant', 'admin')", name="users_role"),
        sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="users_status"),
        sa.Index("users_by_time", "created_at", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    first_name: Mapped[str]
    last_name: Mapped[str]
    phone: Mapped[str]
    role: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="active")
    event_sequence: Mapped[int] = mapped_column(server_default="1")
    password_version: Mapped[int] = mapped_column(server_default="1")
    sessions_version: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[datetime] = mapped_column(server_default=sa.func.now())


class SessionRow(Base):
    """A sign-in. `generation` is that of the latest refresh token, `nonce` what its tokens are made with.

    No access token of it counts after `access_until`. `announced` once every process was told of its end.
    """

    __tablename__ = "sessions"
    __table_args__ = (
        sa.Index("sessions_live", "user_id", postgresql_where=sa.text("ended_at is null")),
        sa.Index("sessions_known", "user_id", "network"),
        sa.Index("sessions_ended", "access_until", postgresql_where=sa.text("ended_at is not null")),
        sa.Index("sessions_to_announce", "id", postgresql_where=sa.text("ended_at is not null and not announced")),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID] = mapped_column(sa.ForeignKey("users.users.id"))
    address: Mapped[str]
    network: Mapped[str]
    user_agent: Mapped[str]
    nonce: Mapped[bytes]
    generation: Mapped[int]
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime]
    rotated_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    access_until: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str | None]
    announced: Mapped[bool] = mapped_column(server_default=sa.false())


metadata = Base.metadata
outbox = outbox_table(metadata)
