"""Who calls, with what each request costs kept small: a token is verified once, and counts until its session ends."""

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol
from uuid import UUID

from prometheus_client import CollectorRegistry

from shared.auth import LEEWAY_SECONDS, Principal, ServiceTokens, UserTokens, bearer_token
from shared.background import running
from shared.errors import UnauthorizedError
from shared.http.client import ServiceCallError, ServiceClient
from shared.metrics import SessionMetrics
from shared.sessions import Ended, EndedSessions, RevocationFeed
from shared.settings import Settings

MAX_REMEMBERED: Final = 16_384
CHECK_TIMEOUT_SECONDS: Final = 0.5
CHECK_KEPT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 1.0  # after a check without an answer nobody asks for so long
MAX_CHECKED: Final = 16_384


class Authenticates(Protocol):
    """Whatever can say who a request speaks for."""

    async def authenticate(self, authorization: str) -> Principal:
        """Who the value of this `Authorization` header speaks for; raises UnauthorizedError."""


class Authenticator:
    """Knows people by their `Authorization` header.

    While the feed of ended sessions is fresh it alone decides. While it is not, user-service is asked about each
    session; what it cannot say either counts if it is signed and not known to have ended: money still moves.
    """

    def __init__(
        self,
        settings: Settings,
        tokens: UserTokens,
        checks: "SessionChecks",
        metrics: SessionMetrics,
        size: int = MAX_REMEMBERED,
    ) -> None:
        self._tokens = tokens
        self._checks = checks
        self._metrics = metrics
        self._remembered = _Remembered(size)
        self._known = self._remembered.known
        self._ended = EndedSessions()
        self._feed = RevocationFeed(settings, self._ended, self._remembered.forget)
        metrics.fresh.set_function(lambda: float(time.monotonic() < self._feed.fresh_until))

    def recognise(self, authorization: str) -> Principal | None:
        """Who this header speaks for, without waiting; None where `authenticate` has to be asked."""
        known = self._known.get(authorization)
        if known is None or time.monotonic() >= self._feed.fresh_until or time.time() >= known.expires_at:
            return None
        return known

    async def authenticate(self, authorization: str) -> Principal:
        """Who this header speaks for; raises UnauthorizedError."""
        known = self.recognise(authorization)
        if known is not None:
            return known
        principal = self._verified(authorization)
        if principal.session_id not in self._ended and time.monotonic() >= self._feed.fresh_until:
            await self._check(principal)
        if principal.session_id in self._ended:
            raise UnauthorizedError
        if time.time() < principal.expires_at:  # one that lives on the leeway for clocks is verified each time
            self._remembered.keep(authorization, principal)
        return principal

    async def run(self) -> None:
        """Follow the feed of ended sessions until cancelled."""
        await self._feed.run()

    async def close(self) -> None:
        """Let go of Redis and of user-service."""
        await self._feed.close()
        await self._checks.close()

    def _verified(self, authorization: str) -> Principal:
        known = self._known.get(authorization)
        if known is not None and time.time() < known.expires_at:
            return known
        return self._tokens.verify(bearer_token(authorization))

    async def _check(self, principal: Principal) -> None:
        ended = await self._checks.has_ended(principal.session_id)
        self._metrics.checks.labels({True: "ended", False: "live", None: "unanswered"}[ended]).inc()
        if ended:
            self._ended.add(Ended(principal.session_id, principal.expires_at + LEEWAY_SECONDS))
            self._remembered.forget(principal.session_id)


class SessionChecks:
    """Asks user-service whether a session has ended: at most one question a session at a time and in 5 s."""

    def __init__(self, users: ServiceClient) -> None:
        self._users = users
        self._live_until: dict[UUID, float] = {}
        self._asking: dict[UUID, asyncio.Task[bool | None]] = {}
        self._silent_until = 0.0

    async def has_ended(self, session_id: UUID) -> bool | None:
        """None where user-service does not say."""
        if time.monotonic() < self._live_until.get(session_id, 0.0):
            return False
        asking = self._asking.get(session_id)
        if asking is None:
            if time.monotonic() < self._silent_until:
                return None
            # Its deadline is its own: the caller in hand may have none left, and others wait for the answer too.
            asking = asyncio.create_task(self._ask(session_id), context=contextvars.Context())
            self._asking[session_id] = asking
            asking.add_done_callback(lambda _: self._asking.pop(session_id, None))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Let go of user-service."""
        for asking in list(self._asking.values()):
            asking.cancel()
        await self._users.close()

    async def _ask(self, session_id: UUID) -> bool | None:
        self._users.open()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
                answer = await self._users.get(f"/internal/sessions/{session_id}")
            ended = answer["ended"] is True
        except (ServiceCallError, TimeoutError, LookupError, TypeError):
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            return None
        if not ended:
            while len(self._live_until) >= MAX_CHECKED:
                del self._live_until[next(iter(self._live_until))]
            self._live_until.pop(session_id, None)
            self._live_until[session_id] = time.monotonic() + CHECK_KEPT_SECONDS
        return ended


class _Remembered:
    """Verified headers by what they are and by session; bounded, the oldest go first."""

    def __init__(self, size: int) -> None:
        self.known: dict[str, Principal] = {}
        self._size = size
        self._of_session: dict[UUID, set[str]] = {}

    def keep(self, authorization: str, principal: Principal) -> None:
        """Remember one more."""
        if authorization in self.known:
            return
        if len(self.known) >= self._size:
            self._drop(next(iter(self.known)))  # all live equally long: the first one in expires first
        self.known[authorization] = principal
        self._of_session.setdefault(principal.session_id, set()).add(authorization)

    def forget(self, session_id: UUID) -> None:
        """Forget whatever belongs to a session."""
        for authorization in self._of_session.pop(session_id, ()):
            del self.known[authorization]

    def _drop(self, authorization: str) -> None:
        session_id = self.known.pop(authorization).session_id
        headers = self._of_session[session_id]
        headers.discard(authorization)
        if not headers:
            del self._of_session[session_id]


def authenticator_of(settings: Settings, registry: CollectorRegistry) -> Authenticator:
    """What a service knows its callers by."""
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    users = ServiceClient("user-service", settings.user_service_url, service_tokens)
    return Authenticator(settings, UserTokens.of(settings), SessionChecks(users), SessionMetrics(registry))


@asynccontextmanager
async def following(authenticator: Authenticator) -> AsyncIterator[None]:
    """The ends of sessions are followed for the length of the block."""
    try:
        async with running(authenticator.run):
            yield
    finally:
        await authenticator.close()
