"""Wrong passwords are counted, and whoever guesses too often has to wait, without locking the owner out.

A guess is counted before its hash is computed and given back when it was right, so that no number of guesses at once
gets past a limit. Right ones would be in each other's way while they are counted, so a network has its turn only four
times at once, which also keeps it from filling the queue of hashes. Redis counts for all processes; while it is out,
each process counts for itself, and what it counted then still counts when Redis is back.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from shared.errors import UnavailableError
from shared.redis import OUT, connect
from shared.settings import Settings
from user_service.domain import TooManyAttemptsError

MAX_COUNTED_ALONE: Final = 20_000
MAX_AT_ONCE: Final = 4
MAX_WAIT_SECONDS: Final = 8.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """So many wrong passwords within a time that begins with the first."""

    name: str
    attempts: int
    seconds: int


PAIR: Final = Limit("pair", 10, 15 * 60)  # one account from one network
NETWORK: Final = Limit("network", 20, 15 * 60)  # all accounts from one network
ACCOUNT: Final = Limit("account", 100, 60 * 60)  # one account from all networks that have never got in

# KEYS are counters; ARGV what is left of their limits, and their times in ms. Counts in all of them, or in none;
# answers 0, or how many ms it takes until none is full.
_RESERVE: Final = """
local wait = 0
for i, key in ipairs(KEYS) do
  if tonumber(redis.call('get', key) or '0') >= tonumber(ARGV[2 * i - 1]) then
    wait = math.max(wait, redis.call('pttl', key), 1)
  end
end
if wait > 0 then return wait end
for i, key in ipairs(KEYS) do
  if redis.call('incr', key) == 1 then redis.call('pexpire', key, ARGV[2 * i]) end
end
return 0
"""
_GIVE_BACK: Final = """
for _, key in ipairs(KEYS) do
  if tonumber(redis.call('get', key) or '0') > 0 then redis.call('decr', key) end
end
"""


@dataclass(frozen=True, slots=True)
class Guess:
    """A password on its way to be verified, counted as wrong until it is given back."""

    counters: tuple[tuple[str, Limit], ...]
    alone: bool


@dataclass(slots=True)
class _Turn:
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AT_ONCE))
    wanted: int = 0


class Guesses:
    """Counts wrong passwords by account, by network and by both."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = f"{settings.redis_key_prefix}guesses:"
        self._redis = connect(settings)
        self._reserve = self._redis.register_script(_RESERVE)
        self._give_back = self._redis.register_script(_GIVE_BACK)
        self._alone = _Counters(MAX_COUNTED_ALONE)
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, network: str) -> AsyncIterator[None]:
        """Wait until few enough guesses from a network are in hand; raises UnavailableError when that takes long."""
        turn = self._turns.setdefault(network, _Turn())
        turn.wanted += 1
        try:
            try:
                async with asyncio.timeout(MAX_WAIT_SECONDS):
                    await turn.free.acquire()
            except TimeoutError:
                raise UnavailableError from None
            try:
                yield
            finally:
                turn.free.release()
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[network]

    async def reserve(self, account: str, network: str, *, known: bool) -> Guess:
        """Count one guess at an account; raises TooManyAttemptsError.

        An unknown account counts as a known one does. From a network that is `known`, because somebody has got into
        the account from there, what others do does not matter.
        """
        name = hashlib.sha256(account.encode()).hexdigest()[:32]
        counters = [(f"{name}:{network}", PAIR), (network, NETWORK)]
        if not known:
            counters.append((name, ACCOUNT))
        named = tuple((f"{self._prefix}{limit.name}:{key}", limit) for key, limit in counters)
        wait_ms, alone = await self._count(named)
        if wait_ms:
            raise TooManyAttemptsError(math.ceil(wait_ms / 1000))
        return Guess(named, alone)

    async def give_back(self, guess: Guess) -> None:
        """The guess was right, or nobody has looked at it."""
        keys = [key for key, _ in guess.counters]
        if guess.alone:
            self._alone.give_back(keys)
            return
        try:
            await self._give_back(keys=keys)
        except OUT as error:
            _log.warning("a guess stays counted: %s", type(error).__name__)

    async def close(self) -> None:
        """Let go of Redis."""
        await self._redis.aclose()

    async def _count(self, counters: Sequence[tuple[str, Limit]]) -> tuple[int, bool]:
        wait_ms = self._alone.wait(counters)
        if wait_ms:
            return wait_ms, True
        left = [(limit.attempts - self._alone.count(key), limit.seconds * 1000) for key, limit in counters]
        arguments = [value for pair in left for value in pair]
        try:
            return int(await self._reserve(keys=[key for key, _ in counters], args=arguments)), False
        except OUT as error:
            _log.warning("guesses are counted in this process alone: %s", type(error).__name__)
        wait_ms = self._alone.wait(counters)  # others may have come first
        if not wait_ms:
            self._alone.add(counters)
        return wait_ms, True


class _Counters:
    """What was counted without Redis, in this process; bounded, the oldest counters go first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: dict[str, tuple[int, float]] = {}

    def count(self, key: str) -> int:
        """How many guesses a counter has."""
        count, ends_at = self._counts.get(key, (0, 0.0))
        return count if time.monotonic() < ends_at else 0

    def wait(self, counters: Sequence[tuple[str, Limit]]) -> int:
        """0, or how many ms it takes until none is full."""
        ends = [self._counts[key][1] for key, limit in counters if self.count(key) >= limit.attempts]
        return max(1, math.ceil((max(ends) - time.monotonic()) * 1000)) if ends else 0

    def add(self, counters: Sequence[tuple[str, Limit]]) -> None:
        """Count one guess in all of them."""
        for key, limit in counters:
            count = self.count(key)
            ends_at = self._counts[key][1] if count else time.monotonic() + limit.seconds
            if not count:
                self._counts.pop(key, None)
            self._counts[key] = (count + 1, ends_at)
        while len(self._counts) > self._size:
            del self._counts[next(iter(self._counts))]

    def give_back(self, keys: Sequence[str]) -> None:
        """Take one guess out of all of them."""
        for key in keys:
            count, ends_at = self._counts.get(key, (0, 0.0))
            if count:
                self._counts[key] = (count - 1, ends_at)
