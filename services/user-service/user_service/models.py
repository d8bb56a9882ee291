"""Tables of the schema `users`."""

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from shared.outbox import outbox_table


class Base(DeclarativeBase):
    """This service's tables."""

    metadata = sa.MetaData(schema="users")


class UserRow(Base):
    """A person. `event_sequence` counts the events told of them."""

    __tablename__ = "users"
    __table_args__ = (
        sa.CheckConstraint("role in ('user', 'merchant', 'admin')", name="users_role"),
        sa.CheckConstraint("status in ('active', 'disabled', 'closed')", name="users_status"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(sa.Text, unique=True)
    password_hash: Mapped[str] = mapped_column(sa.Text)
    first_name: Mapped[str] = mapped_column(sa.Text)
    last_name: Mapped[str] = mapped_column(sa.Text)
    phone: Mapped[str] = mapped_column(sa.Text)
    role: Mapped[str] = mapped_column(sa.Text)
    status: Mapped[str] = mapped_column(sa.Text, server_default="active")
    event_sequence: Mapped[int] = mapped_column(sa.BigInteger, server_default="1")
    created_at: Mapped[datetime] = mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())


metadata = Base.metadata
outbox = outbox_table(metadata)
