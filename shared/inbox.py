"""What a consumer has already handled, stored in the transaction of the effect."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession


def inbox_table(metadata: sa.MetaData) -> sa.Table:
    """The inbox of the service whose `metadata` this is."""
    return sa.Table(
        "inbox",
        metadata,
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


async def first_time(session: AsyncSession, table: sa.Table, event_id: UUID) -> bool:
    """Remember the event; False when it was handled before."""
    statement = insert(table).values(event_id=event_id).on_conflict_do_nothing().returning(table.c.event_id)
    return (await session.execute(statement)).scalar() is not None
