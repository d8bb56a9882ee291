"""SQL of notification-service."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.ext.asyncio import AsyncSession

from notification_service.domain import Channel, Contact, Kind, Preference, State
from notification_service.models import ChooserRow, ContactRow, NotificationRow, PreferenceRow

WAITS_FOR_CONTACT = "contact_unknown"


# -------------------------------------------------------------------------------------- contacts


async def store_contacts(session: AsyncSession, contacts: Collection[Contact]) -> list[UUID]:
    """Learn what is newer than what is known; whose contact is another now. One contact a person."""
    if not contacts:
        return []
    ordered = sorted(contacts)  # two processes lock in the same order
    statement = insert(ContactRow).values([contact._asdict() for contact in ordered])
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=[ContactRow.user_id],
        set_={name: new[name] for name in Contact._fields if name != "user_id"},
        where=ContactRow.sequence < new.sequence,
    )
    return list((await session.scalars(statement.returning(ContactRow.user_id))).all())


async def wake_waiting(session: AsyncSession, user_ids: Collection[UUID]) -> None:
    """What waited for these people's contacts is due now."""
    if user_ids:
        await session.execute(
            sa.update(NotificationRow)
            .where(
                NotificationRow.user_id.in_(user_ids),
                NotificationRow.state == State.PENDING,
                NotificationRow.reason == WAITS_FOR_CONTACT,
            )
            .values(next_attempt_at=sa.func.now())
            .execution_options(synchronize_session=False)
        )


async def contacts(session: AsyncSession, user_ids: Collection[UUID]) -> dict[UUID, Contact]:
    """What is known of these people."""
    rows = await session.scalars(sa.select(ContactRow).where(ContactRow.user_id.in_(user_ids)))
    return {row.user_id: Contact(**{name: getattr(row, name) for name in Contact._fields}) for row in rows}


# ----------------------------------------------------------------------------------- preferences


async def preferences(session: AsyncSession, user_ids: Collection[UUID]) -> dict[tuple[UUID, Kind], Preference]:
    """What these people have said."""
    rows = await session.scalars(sa.select(PreferenceRow).where(PreferenceRow.user_id.in_(user_ids)))
    return {(row.user_id, Kind(row.kind)): Preference(row.email, row.sms) for row in rows}


async def lock_chooser(session: AsyncSession, user_id: UUID) -> None:
    """Nobody else replaces this person's preferences until the session's transaction ends."""
    lock = sa.func.hashtextextended(sa.cast(str(user_id), sa.Text), 0)
    await session.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


async def next_event_sequence(session: AsyncSession, user_id: UUID) -> int:
    """The number of what is told next of this person's choices, from 1; the person is locked."""
    statement = (
        insert(ChooserRow)
        .values(user_id=user_id, event_sequence=1)
        .on_conflict_do_update(
            index_elements=[ChooserRow.user_id], set_={"event_sequence": ChooserRow.event_sequence + 1}
        )
        .returning(ChooserRow.event_sequence)
    )
    return (await session.scalars(statement)).one()


async def replace_preferences(session: AsyncSession, user_id: UUID, chosen: Mapping[Kind, Preference]) -> None:
    """Forget what a person has said, for this; the person is locked."""
    await session.execute(sa.delete(PreferenceRow).where(PreferenceRow.user_id == user_id))
    if chosen:
        rows = [{"user_id": user_id, "kind": kind, **preference._asdict()} for kind, preference in chosen.items()]
        await session.execute(sa.insert(PreferenceRow), rows)


# --------------------------------------------------------------------------------- notifications


# One statement with an array a column: rows as rows cost SQLAlchemy and PostgreSQL three times as much.
_STORED: Final[Mapping[str, Any]] = {
    "id": sa.Uuid(),
    "event_id": sa.Uuid(),
    "user_id": sa.Uuid(),
    "channel": sa.Text(),
    "kind": sa.Text(),
    "template": sa.Text(),
    "facts": JSONB(),
    "occurred_at": sa.DateTime(timezone=True),
    "state": sa.Text(),
    "reason": sa.Text(),
    "next_attempt_at": sa.DateTime(timezone=True),
}
_ARRAYS: Final = sa.func.unnest(*(sa.bindparam(name, type_=ARRAY(kind)) for name, kind in _STORED.items()))
_STORE: Final = sa.insert(NotificationRow).from_select(
    list(_STORED), sa.select(_ARRAYS.table_valued(*_STORED).render_derived())
)


async def store(session: AsyncSession, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write new notifications."""
    if rows:
        connection = await session.connection()
        await connection.execute(_STORE, {name: [row[name] for row in rows] for name in _STORED})


@dataclass(frozen=True, slots=True)
class Due:
    """A notification that was taken to be delivered, once more by this `attempt`."""

    id: UUID
    event_id: UUID
    user_id: UUID
    kind: Kind
    template: str
    facts: dict[str, str]
    occurred_at: datetime
    created_at: datetime
    attempt: int
    age_seconds: float
    late_seconds: float


async def take_due(session: AsyncSession, channel: Channel, limit: int, lease_seconds: float) -> list[Due]:
    """Take due notifications, the longest due first; nobody else takes them before the lease is over."""
    row = NotificationRow
    due = (
        sa.select(row.id, row.next_attempt_at)
        .where(row.state == State.PENDING, row.channel == channel, row.next_attempt_at <= sa.func.now())
        .order_by(row.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True, key_share=True)
        .cte("due")
    )
    statement = (
        sa.update(row)
        .where(row.id == due.c.id)
        .values(
            attempts=row.attempts + 1,
            next_attempt_at=sa.func.now() + sa.func.make_interval(0, 0, 0, 0, 0, 0, lease_seconds),
        )
        .returning(
            row.id,
            row.event_id,
            row.user_id,
            row.kind,
            row.template,
            row.facts,
            row.occurred_at,
            row.created_at,
            row.attempts.label("attempt"),
            sa.extract("epoch", sa.func.now() - row.created_at).cast(sa.Float).label("age_seconds"),
            sa.extract("epoch", sa.func.now() - due.c.next_attempt_at).cast(sa.Float).label("late_seconds"),
        )
        .execution_options(synchronize_session=False)
    )
    found = await session.execute(statement)
    return [Due(**(dict(each) | {"kind": Kind(each["kind"])})) for each in found.mappings()]


async def end_as_sent(session: AsyncSession, due: Due) -> bool:
    """Write down that a notification was accepted, whoever has it by now; False when that is known."""
    values = {"state": State.SENT, "reason": None, "next_attempt_at": None, "sent_at": sa.func.clock_timestamp()}
    return await _change(session, NotificationRow.id == due.id, values)


async def end(session: AsyncSession, due: Due, state: State, reason: str) -> bool:
    """Write down why a notification is not sent; False when somebody else has it by now."""
    return await _change(session, _held(due), {"state": state, "reason": reason, "next_attempt_at": None})


async def put_off(session: AsyncSession, due: Due, reason: str, seconds: float) -> bool:
    """Have a notification tried again after so long; False when somebody else has it by now."""
    later = sa.func.clock_timestamp() + sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
    return await _change(session, _held(due), {"reason": reason, "next_attempt_at": later})


def _held(due: Due) -> sa.ColumnElement[bool]:
    """Nobody has taken the notification since."""
    return sa.and_(NotificationRow.id == due.id, NotificationRow.attempts == due.attempt)


async def _change(session: AsyncSession, which: sa.ColumnElement[bool], values: dict[str, Any]) -> bool:
    row = NotificationRow
    statement = sa.update(row).where(which, row.state == State.PENDING).values(values).returning(row.id)
    statement = statement.execution_options(synchronize_session=False)
    return (await session.scalar(statement)) is not None


async def delete_old(session: AsyncSession, days: int, limit: int) -> int:
    """Delete notifications that were ended and are so old; how many."""
    row = NotificationRow
    old = (
        sa.select(row.id)
        .where(row.created_at < sa.func.now() - sa.func.make_interval(0, 0, 0, days), row.state != State.PENDING)
        .order_by(row.created_at)
        .limit(limit)
    )
    statement = sa.delete(row).where(row.id.in_(old)).returning(row.id).execution_options(synchronize_session=False)
    return len((await session.scalars(statement)).all())


async def get(session: AsyncSession, user_id: UUID, notification_id: UUID) -> NotificationRow | None:
    """One notification, if it is this person's."""
    row = NotificationRow
    return await session.scalar(sa.select(row).where(row.id == notification_id, row.user_id == user_id))


async def mark_read(session: AsyncSession, user_id: UUID, notification_id: UUID) -> NotificationRow | None:
    """Remember when this person first said that they have read it; None if it is not theirs."""
    row = NotificationRow
    statement = (
        sa.update(row)
        .where(row.id == notification_id, row.user_id == user_id)
        .values(read_at=sa.func.coalesce(row.read_at, sa.func.now()))
        .returning(row)
    )
    return await session.scalar(statement)


async def page(
    session: AsyncSession, user_id: UUID, limit: int, cursor: NotificationRow | None, *, newer: bool
) -> list[NotificationRow]:
    """At most `limit` of a person's notifications, newest first.

    They are the ones next to the cursor, on its older side, or the `newer` one.
    """
    row = NotificationRow
    position = sa.tuple_(row.created_at, row.id)
    statement = sa.select(row).where(row.user_id == user_id)
    if cursor is not None:
        at = sa.tuple_(sa.literal(cursor.created_at), sa.literal(cursor.id))
        statement = statement.where(position > at if newer else position < at)
    columns = (row.created_at, row.id)
    order = columns if newer else tuple(column.desc() for column in columns)
    found = list(await session.scalars(statement.order_by(*order).limit(limit)))
    return found[::-1] if newer else found
