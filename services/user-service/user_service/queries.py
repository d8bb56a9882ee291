"""SQL of user-service, as functions taking a session or a connection."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Asyncpg
from shared.ids import new_id
from user_service.domain import Registration, User
from user_service.models import SessionRow, UserRow


@dataclass(frozen=True, slots=True)
class UserFilters:
    """Which people to list; None leaves a filter out."""

    email: str | None = None
    role: str | None = None
    status: str | None = None


async def insert_user(session: AsyncSession, registration: Registration, password_hash: str) -> UserRow | None:
    """The new row, of which nothing is told yet, or None when the address is taken."""
    statement = (
        insert(UserRow)
        .values(
            id=new_id(),
            email=registration.email,
            password_hash=password_hash,
            first_name=registration.first_name,
            last_name=registration.last_name,
            phone=registration.phone,
            role=registration.role,
            event_sequence=0,
        )
        .on_conflict_do_nothing(index_elements=[UserRow.email])
        .returning(UserRow)
    )
    return (await session.scalars(statement)).one_or_none()


async def by_email(session: AsyncSession, email: str) -> UserRow | None:
    """The person with this canonical address."""
    return (await session.scalars(sa.select(UserRow).where(UserRow.email == email))).one_or_none()


async def by_email_from(session: AsyncSession, email: str, network: str) -> tuple[UserRow | None, bool]:
    """The person with this canonical address, and whether they have ever signed in from this network."""
    known = sa.exists().where(SessionRow.user_id == UserRow.id, SessionRow.network == network)
    found = (await session.execute(sa.select(UserRow, known).where(UserRow.email == email))).one_or_none()
    return (found[0], found[1]) if found else (None, False)


async def by_id(session: AsyncSession, user_id: UUID) -> UserRow | None:
    """The person with this id."""
    return await session.get(UserRow, user_id)


async def profiles(connection: Asyncpg, user_ids: Sequence[UUID]) -> list[tuple[User, int]]:
    """The people with these ids, each with the number of events told of them; unknown ids are left out."""
    found = await connection.fetch(
        "select id, email, first_name, last_name, phone, role, status, created_at, event_sequence "
        "from users where id = any($1)",
        user_ids,
    )
    return [(User(*fields), sequence) for *fields, sequence in found]


async def lock_user(session: AsyncSession, user_id: UUID) -> UserRow | None:
    """The person with this id; nobody else changes them or their sessions until the transaction ends."""
    statement = (
        sa.select(UserRow)
        .where(UserRow.id == user_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    return (await session.scalars(statement)).one_or_none()


async def clock(session: AsyncSession) -> datetime:
    """The database's time, which is one for all processes."""
    now = await session.scalar(sa.select(sa.func.clock_timestamp()))
    assert isinstance(now, datetime)  # noqa: S101 - for mypy
    return now


async def user_page(
    session: AsyncSession, filters: UserFilters, limit: int, after: UUID | None, before: UUID | None
) -> list[UserRow]:
    """People after or before the one with this id, newest first, at most `limit`; before: the nearest ones."""
    statement = sa.select(UserRow).limit(limit)
    for column, value in (
        (UserRow.email, filters.email),
        (UserRow.role, filters.role),
        (UserRow.status, filters.status),
    ):
        if value is not None:
            statement = statement.where(column == value)
    place = sa.tuple_(UserRow.created_at, UserRow.id)
    if after is not None:
        statement = statement.where(place < _place_of(after))
    if before is not None:
        statement = statement.where(place > _place_of(before))
        upwards = await session.scalars(statement.order_by(UserRow.created_at, UserRow.id))
        return list(upwards)[::-1]
    return list(await session.scalars(statement.order_by(UserRow.created_at.desc(), UserRow.id.desc())))


def _place_of(user_id: UUID) -> Any:
    return sa.select(UserRow.created_at, UserRow.id).where(UserRow.id == user_id).scalar_subquery()


# -------------------------------------------------------------------------------------------------- sessions


async def session_of(session: AsyncSession, session_id: UUID) -> SessionRow | None:
    """The session with this id, as it is now."""
    statement = sa.select(SessionRow).where(SessionRow.id == session_id).execution_options(populate_existing=True)
    return (await session.scalars(statement)).one_or_none()


async def live_sessions(session: AsyncSession, user_id: UUID) -> list[SessionRow]:
    """A person's sessions that have not ended, the latest used first."""
    statement = (
        sa.select(SessionRow)
        .where(
            SessionRow.user_id == user_id,
            SessionRow.ended_at.is_(None),
            SessionRow.expires_at > sa.func.clock_timestamp(),
        )
        .order_by(SessionRow.last_used_at.desc(), SessionRow.id.desc())
    )
    return list(await session.scalars(statement))


async def is_new_device(session: AsyncSession, user_id: UUID, network: str, user_agent: str) -> bool:
    """Whether a person with earlier sessions has none that came from this network with this user agent."""
    own = sa.select(
        sa.func.count(),
        sa.func.count().filter(SessionRow.network == network, SessionRow.user_agent == user_agent),
    ).where(SessionRow.user_id == user_id)
    earlier, alike = (await session.execute(own)).one()
    return bool(earlier and not alike)


async def caller_of(session: AsyncSession, user_id: UUID, session_id: UUID) -> tuple[str, int, int] | None:
    """Role, version of the sessions and number of events of an active person in a session that has not ended."""
    statement = (
        sa.select(UserRow.role, UserRow.sessions_version, UserRow.event_sequence)
        .join(SessionRow, SessionRow.user_id == UserRow.id)
        .where(
            UserRow.id == user_id,
            UserRow.status == "active",
            SessionRow.id == session_id,
            SessionRow.ended_at.is_(None),
        )
    )
    found = (await session.execute(statement)).one_or_none()
    return (found[0], found[1], found[2]) if found else None


async def sessions_to_announce(connection: Asyncpg, limit: int) -> Sequence[asyncpg.Record]:
    """Ends that were not told yet: `id`, `access_until`, and what time it is, `now`."""
    found: list[asyncpg.Record] = await connection.fetch(
        "select id, access_until, now() as now from sessions "
        "where ended_at is not null and not announced order by id limit $1",
        limit,
    )
    return found


async def ended_sessions(connection: Asyncpg, after: UUID, limit: int) -> Sequence[asyncpg.Record]:
    """Ended sessions with tokens that would still count, by id: as `sessions_to_announce`."""
    found: list[asyncpg.Record] = await connection.fetch(
        "select id, access_until, now() as now from sessions "
        "where ended_at is not null and access_until > now() and id > $1 order by id limit $2",
        after,
        limit,
    )
    return found


async def mark_announced(connection: Asyncpg, session_ids: Sequence[UUID]) -> None:
    """Remember that these ends were told."""
    await connection.execute("update sessions set announced = true where id = any($1) and not announced", session_ids)


async def delete_old_sessions(connection: Asyncpg, days: int, limit: int) -> int:
    """Delete sessions that were over so long ago; how many."""
    deleted: str = await connection.execute(
        "delete from sessions where id in (select id from sessions "
        "where greatest(coalesce(ended_at, expires_at), access_until) < now() - make_interval(days => $1) limit $2)",
        days,
        limit,
    )
    return int(deleted.rpartition(" ")[2])
