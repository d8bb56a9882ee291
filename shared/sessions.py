"""Which sessions have ended: told by user-service through Redis, known in every process within a second.

Redis has one channel, on which user-service tells each end and sends a heartbeat, and one sorted set of the sessions
whose end still matters, for processes that start. The key `complete` is there while the set is: whatever loses one
loses the other, and then no heartbeat is sent until the set has been filled from Postgres again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple
from uuid import UUID

from shared.background import stop_if_cancelled
from shared.redis import OUT, connect
from shared.settings import Settings

HEARTBEAT_SECONDS: Final = 0.3
FRESH_SECONDS: Final = 1.0
RECONNECT_SECONDS: Final = 0.2
FORGET_SECONDS: Final = 60.0
MAX_ENDED: Final = 100_000  # some 20 MB
PAGE: Final = 500
HEARTBEAT: Final = b"."

_log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """A session that has ended; from the instant `until`, in seconds since 1970, no token of it counts anyway."""

    session_id: UUID
    until: float


class Names(NamedTuple):
    """What the channel and the keys are called."""

    channel: str
    ended: str
    complete: str

    @classmethod
    def of(cls, settings: Settings) -> "Names":
        """The names with the prefix of these settings."""
        prefix = f"{settings.redis_key_prefix}sessions"
        return cls(prefix, f"{prefix}:ended", f"{prefix}:complete")


def encode(ended: Iterable[Ended]) -> bytes:
    """A message of the channel, with the ends of some sessions."""
    return "\n".join(f"{session_id} {until:.3f}" for session_id, until in ended).encode()


def decode(message: bytes) -> list[Ended]:
    """What `encode` was given; raises ValueError."""
    pairs = [line.split(" ") for line in message.decode().split("\n")]
    return [Ended(UUID(session_id), float(until)) for session_id, until in pairs]


class EndedSessions:
    """Those known to have ended, until that cannot matter any more; bounded."""

    def __init__(self, size: int = MAX_ENDED) -> None:
        self._size = size
        self._until: dict[UUID, float] = {}
        self._incomplete_until = 0.0

    def __contains__(self, session_id: UUID) -> bool:
        return session_id in self._until

    def __len__(self) -> int:
        return len(self._until)

    @property
    def complete(self) -> bool:
        """False while a session that did not fit still matters: then nothing can be said of those not in it."""
        return time.time() >= self._incomplete_until

    def add(self, ended: Ended) -> None:
        """Keep one more."""
        if len(self._until) >= self._size and ended.session_id not in self._until:
            self.forget()
            if len(self._until) >= self._size:
                self._incomplete_until = max(self._incomplete_until, ended.until)
                return
        self._until[ended.session_id] = ended.until

    def forget(self) -> None:
        """Let go of those that cannot matter any more."""
        now = time.time()
        self._until = {session_id: until for session_id, until in self._until.items() if until > now}


class RevocationFeed:
    """Follows the ends of sessions; `fresh_until`, by the monotonic clock, says up to when nothing is missing."""

    def __init__(self, settings: Settings, ended: EndedSessions, on_end: Callable[[UUID], None]) -> None:
        self.fresh_until = 0.0
        self._names = Names.of(settings)
        self._redis = connect(settings, max_connections=2)
        self._ended = ended
        self._on_end = on_end
        self._loaded = False
        self._was_fresh = True
        self._forget_at = time.monotonic() + FORGET_SECONDS

    async def run(self) -> None:
        """Follow through any outage, until cancelled."""
        while True:
            try:
                await self._follow()
            except (*OUT, ValueError) as error:
                self._report(error)
            stop_if_cancelled()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def close(self) -> None:
        """Let go of Redis."""
        self.fresh_until = 0.0
        await self._redis.aclose()

    async def _follow(self) -> None:
        async with self._redis.pubsub() as subscription:
            await subscription.subscribe(self._names.channel)
            while True:
                stop_if_cancelled()
                message = await subscription.get_message(timeout=FRESH_SECONDS)
                if message is None:
                    raise TimeoutError("no heartbeat")
                await self._take(message)

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":  # also after a connection that was replaced unseen
            self._loaded = await self._load()
        elif message["data"] == HEARTBEAT:
            self._loaded = self._loaded or await self._load()
            if self._loaded:
                self._beat()
        else:
            for ended in decode(message["data"]):
                self._note(ended)

    async def _load(self) -> bool:
        """Read who has ended so far; False where the set is not whole."""
        if not await self._redis.exists(self._names.complete):
            return False
        async with asyncio.timeout(FRESH_SECONDS):
            async for member, until in self._redis.zscan_iter(self._names.ended, count=PAGE):
                self._note(Ended(UUID(member.decode()), float(until)))
        return True

    def _note(self, ended: Ended) -> None:
        self._ended.add(ended)
        if not self._ended.complete:
            self.fresh_until = 0.0
        self._on_end(ended.session_id)

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + FORGET_SECONDS
            self._ended.forget()
        if not self._ended.complete:
            return
        self.fresh_until = now + FRESH_SECONDS
        if not self._was_fresh:
            self._was_fresh = True
            _log.info("the ends of sessions are told again")

    def _report(self, error: BaseException) -> None:
        if self._was_fresh:
            self._was_fresh = False
            _log.warning("the ends of sessions are not told: %s: %s", type(error).__name__, error)
