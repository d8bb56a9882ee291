"""What all use cases know of people."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from shared.auth import Principal
from shared.events import EventData, UserSessionsEnded
from user_service import queries
from user_service.models import SessionRow, UserRow


@dataclass(frozen=True, slots=True)
class Caller(Principal):
    """A person whose session has not ended; `sessions_version` changes with any of their sessions.

    What is shown of them is of `profile_version` or later.
    """

    sessions_version: int = 0
    profile_version: int = 0


@dataclass(frozen=True, slots=True)
class Wakes:
    """What to wake after a commit: `told` carries events out, `ended` tells of sessions that have ended."""

    told: Callable[[], None]
    ended: Callable[[], None]


def end(user: UserRow, ended: Iterable[SessionRow], reason: str, now: datetime) -> list[EventData]:
    """End these sessions of a person whose row is locked; what is to be told of it."""
    rows = list(ended)
    for row in rows:
        row.ended_at, row.end_reason = now, reason
    if not rows:
        return []
    user.sessions_version += 1
    told = {"user_id": user.id, "session_ids": [row.id for row in rows], "reason": reason}
    return [UserSessionsEnded.model_validate(told)]


async def end_all(session: AsyncSession, user: UserRow, reason: str, but: Principal | None = None) -> list[EventData]:
    """End all sessions of a person whose row is locked, or all `but` the caller's; what is to be told of it."""
    live = await queries.live_sessions(session, user.id)
    others = [row for row in live if but is None or row.id != but.session_id]
    return end(user, others, reason, await queries.clock(session))
