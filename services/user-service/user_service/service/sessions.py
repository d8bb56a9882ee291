"""Signing in and staying signed in."""

import secrets
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from shared.auth import LEEWAY_SECONDS, UserTokens, bearer_token
from shared.database import Database
from shared.errors import NotFoundError, UnauthorizedError
from shared.events import UserSessionReused, UserSignedIn
from shared.ids import new_id
from user_service import queries
from user_service.domain import (
    GRACE,
    MAX_LIVE_SESSIONS,
    InvalidCredentialsError,
    InvalidRefreshTokenError,
    Origin,
    Session,
    User,
    Verdict,
    judge,
)
from user_service.events import tell
from user_service.models import SessionRow, UserRow
from user_service.profiles import Profiles, user_of_row
from user_service.refresh_tokens import NONCE_BYTES, Presented, RefreshTokens
from user_service.service.credentials import Credentials
from user_service.service.people import Caller, Wakes, end
from user_service.session_cache import SessionCache

_SHOWN: Final = tuple(field.name for field in fields(Session))


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a session gives its owner: a token for calls, and one for the next tokens."""

    access: str
    refresh: str


class Sessions:
    """Sessions, whose truth is in Postgres: a change is made while the person's row is locked."""

    def __init__(
        self,
        database: Database,
        credentials: Credentials,
        access_tokens: UserTokens,
        refresh_tokens: RefreshTokens,
        cache: SessionCache,
        profiles: Profiles,
        wakes: Wakes,
        life: timedelta,
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._cache = cache
        self._profiles = profiles
        self._wakes = wakes
        self._life = life
        # The tokens of one rotation are issued until its grace is over.
        self._access_life = timedelta(seconds=access_tokens.expire_seconds + LEEWAY_SECONDS) + GRACE

    async def log_in(self, email: str, password: str, origin: Origin) -> tuple[User, Tokens]:
        """Begin a session; raises InvalidCredentialsError, after the same time for every reason, and
        TooManyAttemptsError."""
        async with self._database.transaction() as session:
            found, known = await queries.by_email_from(session, email, origin.network)
        # Whoever is shut out is nobody, and that takes the same time.
        stored = found.password_hash if found and found.status == "active" else None
        if not await self._credentials.are_right(email, password, stored, origin, known=known) or found is None:
            raise InvalidCredentialsError
        renewed = await self._credentials.renewed(password, found.password_hash)
        async with self._database.transaction() as session:
            user = await queries.lock_user(session, found.id)
            if user is None or user.status != "active" or user.password_version != found.password_version:
                raise InvalidCredentialsError  # disabled, or another password, while this one was verified
            user.password_hash = renewed or user.password_hash
            row = await self._begin(session, user, origin)
        self._profiles.put(user)
        self._wakes.told()
        self._wakes.ended()
        return user_of_row(user), self._tokens(user, row)

    async def refresh(self, token: str, origin: Origin) -> Tokens:
        """The next tokens of a session, the same refresh token for all who ask in time.

        Raises InvalidRefreshTokenError; a token that had been replaced ends the session.
        """
        presented = self._refresh_tokens.read(token)
        async with self._database.transaction() as session:
            user, row = await self._proven(session, presented)
            now = await queries.clock(session)
            verdict = judge(presented.generation, row.generation, row.rotated_at, now)
            if row.ended_at is not None or row.expires_at <= now or user.status != "active":
                verdict = Verdict.STALE
            if verdict is Verdict.ROTATE:
                self._rotate(user, row, now)
            elif verdict is Verdict.REUSE:
                told = end(user, [row], "reused", now)
                reused = UserSessionReused(
                    user_id=user.id, session_id=row.id, ip=origin.address, user_agent=origin.user_agent
                )
                await tell(session, user, str(user.id), reused, *told)
        if verdict is Verdict.REUSE:
            self._wakes.ended()
            self._wakes.told()
        if verdict in {Verdict.REUSE, Verdict.STALE}:
            raise InvalidRefreshTokenError
        return self._tokens(user, row)

    async def log_out(self, caller: Caller) -> None:
        """End the caller's session."""
        await self._end(caller, caller.session_id, "logged_out")

    async def revoke(self, caller: Caller, session_id: UUID) -> None:
        """End one of the caller's sessions; raises NotFoundError."""
        if not await self._end(caller, session_id, "revoked"):
            raise NotFoundError("session")

    async def list(self, caller: Caller) -> list[Session]:
        """The caller's sessions, the latest used first."""
        known = await self._cache.get(caller.user_id, caller.sessions_version)
        if known is not None:
            return [shown for shown in known if shown.expires_at > datetime.now(UTC)]
        async with self._database.transaction() as session:
            rows = await queries.live_sessions(session, caller.user_id)
        found = [Session(**{name: getattr(row, name) for name in _SHOWN}) for row in rows]
        # Read after the version, it may be of a later one (which the next caller asks for), never of an earlier.
        await self._cache.put(caller.user_id, caller.sessions_version, found)
        return found

    async def authenticate(self, authorization: str) -> Caller:
        """Who the header speaks for, by what the database says now; raises UnauthorizedError."""
        principal = self._access_tokens.verify(bearer_token(authorization))
        async with self._database.transaction() as session:
            found = await queries.caller_of(session, principal.user_id, principal.session_id)
        if found is None:
            raise UnauthorizedError
        role, sessions_version, profile_version = found
        return Caller(
            principal.user_id, role, principal.session_id, principal.expires_at, sessions_version, profile_version
        )

    async def has_ended(self, session_id: UUID) -> bool:
        """Whether a session is known to have ended before its time."""
        async with self._database.transaction() as session:
            row = await queries.session_of(session, session_id)
        return row is not None and row.ended_at is not None

    async def _begin(self, session: AsyncSession, user: UserRow, origin: Origin) -> SessionRow:
        now = await queries.clock(session)
        live = await queries.live_sessions(session, user.id)
        told = end(user, live[MAX_LIVE_SESSIONS - 1 :], "too_many", now)
        new_device = await queries.is_new_device(session, user.id, origin.network, origin.user_agent)
        row = SessionRow(
            id=new_id(),
            user_id=user.id,
            address=origin.address,
            network=origin.network,
            user_agent=origin.user_agent,
            nonce=secrets.token_bytes(NONCE_BYTES),
            generation=0,
            created_at=now,
        )
        self._rotate(user, row, now)
        session.add(row)
        signed_in = UserSignedIn(
            user_id=user.id,
            session_id=row.id,
            ip=origin.address,
            user_agent=origin.user_agent,
            new_device=new_device,
        )
        await tell(session, user, str(user.id), *told, signed_in)
        return row

    def _rotate(self, user: UserRow, row: SessionRow, now: datetime) -> None:
        user.sessions_version += 1
        row.generation += 1
        row.rotated_at = row.last_used_at = now
        row.expires_at = now + self._life
        until = now + self._access_life
        row.access_until = max(until, row.access_until or until)  # its earlier tokens may have a longer life

    async def _proven(self, session: AsyncSession, presented: Presented) -> tuple[UserRow, SessionRow]:
        """The session of a genuine token and its owner, whose row is locked; raises InvalidRefreshTokenError."""
        row = await queries.session_of(session, presented.session_id)
        if row is None or not self._refresh_tokens.prove(presented, row.nonce):
            raise InvalidRefreshTokenError
        user = await queries.lock_user(session, row.user_id)
        row = await queries.session_of(session, presented.session_id)  # as it is under the lock
        if user is None or row is None:
            raise InvalidRefreshTokenError
        return user, row

    async def _end(self, caller: Caller, session_id: UUID, reason: str) -> bool:
        async with self._database.transaction() as session:
            user = await queries.lock_user(session, caller.user_id)
            live = await queries.live_sessions(session, caller.user_id)
            meant = [row for row in live if row.id == session_id]
            if user is None or not meant:
                return False
            told = end(user, meant, reason, await queries.clock(session))
            await tell(session, user, str(caller.user_id), *told)
        self._wakes.ended()
        self._wakes.told()
        return True

    def _tokens(self, user: UserRow, row: SessionRow) -> Tokens:
        return Tokens(
            access=self._access_tokens.issue(user.id, user.role, row.id),
            refresh=self._refresh_tokens.issue(row.id, row.generation, row.nonce),
        )
