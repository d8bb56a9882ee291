"""What a consumer has already handled, stored in the transaction of the effect."""

from collections.abc import Collection
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.ext.asyncio import AsyncSession


def inbox_table(metadata: sa.MetaData) -> sa.Table:
    """The inbox of the service whose `metadata` this is."""
    return sa.Table(
        "inbox",
        metadata,
        sa.Column("event_id", sa.Uuid, primary_key=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    )


async def new_ones(session: AsyncSession, table: sa.Table, event_ids: Collection[UUID]) -> set[UUID]:
    """Remember the events; answers those that were not handled before."""
    if not event_ids:
        return set()
    ids = sa.func.unnest(sa.bindparam("ids", sorted(event_ids), ARRAY(sa.Uuid))).column_valued()
    statement = (
        insert(table)
        .from_select([table.c.event_id], sa.select(ids))
        .on_conflict_do_nothing()
        .returning(table.c.event_id)
    )
    return set((await session.scalars(statement)).all())
