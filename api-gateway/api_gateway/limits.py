"""Rate limits: at most so many requests a minute for a key, over all gateway processes together.

Each process keeps what it has let through (its uses) and tells Redis all of it whenever it asks for a lot: some units
that it may then use for a second without asking. Redis counts the uses and the lots of all processes. As a process
states what it knows rather than changes a number, repeating a call, losing an answer, and a Redis that comes back
empty do no harm. While Redis is out, each process keeps to the limit by its own uses.
"""

import asyncio
import logging
import math
import secrets
import struct
import time
from array import array
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.batching import Batcher
from shared.errors import AppError
from shared.redis import OUT, longest_wait

WINDOW_SECONDS: Final = 60.0
LOT_SECONDS: Final = 1.0
LOTS_PER_LIMIT: Final = 20
SLOTS_PER_WINDOW: Final = 240  # uses are remembered by quarters of a second, and count until their slot's end
BACK_OFF_SECONDS: Final = 1.0
MAX_KEYS: Final = 50_000
MAX_KEYS_PER_CALL: Final = 128

# Answers {units granted, units that are left beyond them, ms until the oldest use or lot no longer counts}.
LEASE: Final = """
-- KEYS[1]: a field for each process, which it alone writes:
--   when it was sent by its own clock, when it arrived by ours (ms), units of the lot in its hand,
--   then for each slot the age of its uses on arrival (ms) and how many they are, the latest first
-- ARGV: own field, sent, limit, units wanted, window (ms), validity of a lot (ms), ages and uses as above
local own, sent, limit, wanted = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local window, validity = tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000

local total, first = 0, window

local function count(units, left)
    total = total + units
    first = math.min(first, left)
end

local function count_uses(value, position, passed)
    while position <= #value do
        local age, uses
        age, uses, position = struct.unpack('<I4I4', value, position)
        local left = window - passed - age
        if left <= 0 then break end
        count(uses, left)
    end
end

local known = redis.call('HGETALL', KEYS[1])
for i = 1, #known, 2 do
    local was_sent, arrived, lot, position = struct.unpack('<ddI4', known[i + 1])
    local passed = now - arrived
    if known[i] == own then
        if was_sent > sent then return {0, 0, 0} end  -- overtaken: its sender has long stopped waiting
    elseif passed < 0 or passed >= window + validity then  -- negative: our clock was set back
        redis.call('HDEL', KEYS[1], known[i])
    else
        if lot > 0 then count(lot, window + validity - passed) end
        count_uses(known[i + 1], position, passed)
    end
end
count_uses(ARGV[7], 1, 0)

local granted = math.max(0, math.min(wanted, limit - total))
if granted == 0 and ARGV[7] == '' then
    redis.call('HDEL', KEYS[1], own)
else
    redis.call('HSET', KEYS[1], own, struct.pack('<ddI4', sent, now, granted) .. ARGV[7])
    redis.call('PEXPIRE', KEYS[1], window + validity)
end
return {granted, math.max(0, limit - total - granted), math.ceil(first)}
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `per_minute` requests, one or more, in any minute for each key; metrics show the unique `name`."""

    name: str
    per_minute: int


class Verdict(NamedTuple):
    """Whether a request passes, and what is left to its key.

    `reset_seconds` is how long until the oldest request no longer counts, so that there is one more.
    """

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: int


def rate_limit_headers(verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """`RateLimit-*` as in draft-ietf-httpapi-ratelimit-headers-06, the last one with three fields."""
    return [
        (b"ratelimit-limit", b"%d" % verdict.limit),
        (b"ratelimit-remaining", b"%d" % verdict.remaining),
        (b"ratelimit-reset", b"%d" % verdict.reset_seconds),
    ]


class RateLimitedError(AppError):
    """429: too many requests, and when to come again."""

    def __init__(self, verdict: Verdict) -> None:
        headers = {name.decode(): value.decode() for name, value in rate_limit_headers(verdict)}
        super().__init__(
            "rate_limited",
            429,
            "Too many requests; wait as long as Retry-After says.",
            headers=headers | {"Retry-After": str(verdict.reset_seconds)},
        )


@dataclass(slots=True, eq=False)
class _Account:
    """What this process knows of one key.

    `uses` is flat: a slot's number, how many passed in it, the next slot's number, and so on. `lot` units were
    granted, of which `left` may be used before `valid_until`; `last` says that there were no more. `spare` units were
    left beyond the lot, and one more comes at `frees_at`. `untold` passed without a lot since Redis was last told.
    """

    limit: Limit
    key: str
    number: int
    uses: "array[int]" = field(default_factory=lambda: array("Q"))
    lot: int = 0
    left: int = 0
    last: bool = False
    valid_until: float = 0.0
    spare: int = 0
    frees_at: float = 0.0
    untold: int = 0

    def note(self, slot: int) -> None:
        """Remember one use."""
        uses = self.uses
        if uses and uses[-2] == slot:
            uses[-1] += 1
        else:
            uses.append(slot)
            uses.append(1)

    def forget(self, before: int) -> None:
        """Drop what was used in slots before this one."""
        uses = self.uses
        end = 0
        while end < len(uses) and uses[end] < before:
            end += 2
        del uses[:end]

    def covers(self, requests: int, now: float) -> bool:
        """True when so many need no lease."""
        return now < self.valid_until and (self.left >= requests or (self.last and now < self.frees_at))

    def wanted(self, requests: int, now: float) -> int:
        """Units for these requests and some to come: twice the last lot if that was used up in its time."""
        used_up = not self.left and now < self.valid_until
        size = 2 * self.lot if used_up else self.lot - self.left
        largest = max(1, self.limit.per_minute // LOTS_PER_LIMIT)
        return requests - 1 + max(1, min(size, largest))


class RateLimiter:
    """Never more than the limit in any window over all processes, and never less by more than one lot each.

    A lot is a twentieth of the limit at most, and one unit until a key is seen to be busy. Keys that are asked for at
    the same time share a call, requests of one key a lot. When Redis does not answer in 50 ms, the process keeps to
    the limit by itself, and one request a second tries Redis again. At most `max_keys` keys are remembered; of those
    that are forgotten Redis still knows.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        registry: CollectorRegistry,
        *,
        window_seconds: float = WINDOW_SECONDS,
        lot_seconds: float = LOT_SECONDS,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._redis = redis
        self._script = redis.register_script(LEASE)
        self._prefix = f"{prefix}limit:v1:"  # of the fields' format: versions that differ do not read each other's
        self._window_seconds = window_seconds
        self._lot_seconds = lot_seconds
        self._slots_per_second = SLOTS_PER_WINDOW / window_seconds
        self._max_keys = max_keys
        self._accounts: OrderedDict[tuple[str, str], _Account] = OrderedDict()
        self._process = f"{secrets.token_hex(8)}-"
        self._numbers = count()
        self._leases = Batcher(self._decide, max_size=MAX_KEYS_PER_CALL)
        self._out_until = 0.0
        self._out = False
        self._metrics = _Metrics(registry)

    def take_now(self, limit: Limit, key: str) -> Verdict | None:
        """The verdict on one request, if it needs no question to Redis."""
        account = self._accounts.get((limit.name, key))
        now = time.monotonic()
        if account is not None and account.covers(1, now):
            return self._settle(account, now, "leased")
        if now < self._out_until:
            return self._decide_alone(self._account(limit, key), now)
        return None

    async def take(self, limit: Limit, key: str) -> Verdict:
        """The verdict on one request; raises UnavailableError when far too many wait for theirs."""
        verdict = self.take_now(limit, key)
        if verdict is not None:
            return verdict
        (outcome,) = await self._leases.submit([self._account(limit, key)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Return when nothing is under way; the Redis client is the caller's."""
        await self._leases.close()

    def _account(self, limit: Limit, key: str) -> _Account:
        """The account of a key, from now on the last to be forgotten."""
        known = self._accounts.get((limit.name, key))
        if known is not None:
            self._accounts.move_to_end((limit.name, key))
            return known
        if len(self._accounts) >= self._max_keys:
            self._accounts.popitem(last=False)
        # Its number gives it a field of its own: one that was forgotten and comes back must not unsay what it said.
        account = _Account(limit, key, next(self._numbers))
        self._accounts[limit.name, key] = account
        return account

    async def _decide(self, accounts: Sequence[_Account]) -> list[Verdict]:
        """One verdict for each request; no other is being decided with Redis at the same time."""
        now = time.monotonic()
        asked = {
            account: requests for account, requests in Counter(accounts).items() if not account.covers(requests, now)
        }
        if now >= self._out_until and asked:
            if self._out:
                self._out_until = now + BACK_OFF_SECONDS  # while this one tries, others do without
            try:
                async with asyncio.timeout(longest_wait(self._redis)):
                    await self._lease(asked, now)
            except OUT as error:
                self._lost(error)
            else:
                self._found()
        now = time.monotonic()
        return [self._settle(account, now, "asked") for account in accounts]

    def _settle(self, account: _Account, now: float, source: str) -> Verdict:
        """The verdict on one request by the lot in hand; without one, by what this process has let through."""
        if now >= account.valid_until or not (account.left or account.last):
            return self._decide_alone(account, now)
        allowed = account.left > 0
        if allowed:
            account.left -= 1
            account.note(int(now * self._slots_per_second))
        return self._verdict(account, now, source, allowed, account.spare + account.left, account.frees_at)

    def _decide_alone(self, account: _Account, now: float) -> Verdict:
        self._forget(account, now)
        used = sum(account.uses[1::2])
        allowed = used < account.limit.per_minute
        if allowed:
            account.note(int(now * self._slots_per_second))
            account.untold += 1
        oldest_at = min(now, (account.uses[0] + 1) / self._slots_per_second)
        frees_at = oldest_at + self._window_seconds
        remaining = max(0, account.limit.per_minute - used - 1)
        return self._verdict(account, now, "alone", allowed, remaining, frees_at)

    def _verdict(
        self, account: _Account, now: float, source: str, allowed: bool, remaining: int, frees_at: float
    ) -> Verdict:
        self._metrics.verdicts[account.limit.name, source, allowed] += 1
        reset_seconds = math.ceil(frees_at - now)
        return Verdict(allowed, account.limit.per_minute, remaining, reset_seconds if reset_seconds > 0 else 1)

    async def _lease(self, asked: Mapping[_Account, int], now: float) -> None:
        """A new lot for each account, or the knowledge that there is none; raises one of OUT."""
        questions = [self._question(account, requests, now) for account, requests in asked.items()]
        answers = await self._send(questions)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self._redis.script_load(LEASE)
            answers = await self._send(questions)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        answered_at = time.monotonic()
        for question, (granted, spare, frees_ms) in zip(questions, answers, strict=True):
            account = question.account
            account.lot = granted
            account.left = max(0, granted - account.untold)
            account.last = granted < question.wanted
            account.spare = spare
            # For Redis the lot begins after `now`, so this is the earlier end. A refusal is remembered as long.
            account.valid_until = (now if granted else answered_at) + self._lot_seconds
            account.frees_at = answered_at + frees_ms / 1000

    def _question(self, account: _Account, requests: int, now: float) -> "_Question":
        """What to ask for these requests; the lot in hand is handed in with it."""
        self._forget(account, now)
        wanted = account.wanted(requests, now)
        account.left, account.valid_until, account.untold = 0, 0.0, 0
        uses: list[int] = []
        for position in range(len(account.uses) - 2, -1, -2):
            slot, used = account.uses[position : position + 2]
            age_seconds = now - (slot + 1) / self._slots_per_second
            uses += (max(0, int(age_seconds * 1000)), used)
        arguments = (
            f"{self._prefix}{account.limit.name}:{account.key}",
            f"{self._process}{account.number}",
            *(now * 1000, account.limit.per_minute, wanted),
            *(int(self._window_seconds * 1000), int(self._lot_seconds * 1000)),
            struct.pack(f"<{len(uses)}I", *uses),
        )
        return _Question(account, wanted, arguments)

    async def _send(self, questions: Sequence["_Question"]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for question in questions:
                pipeline.evalsha(self._script.sha, 1, *question.arguments)
            return await pipeline.execute(raise_on_error=False)

    def _forget(self, account: _Account, now: float) -> None:
        account.forget(math.floor((now - self._window_seconds) * self._slots_per_second))

    def _lost(self, error: BaseException) -> None:
        self._out_until = time.monotonic() + BACK_OFF_SECONDS
        if not self._out:
            self._out = True
            _log.warning("Redis is out (%s): each process keeps to the rate limits by itself", type(error).__name__)

    def _found(self) -> None:
        self._out_until = 0.0
        if self._out:
            self._out = False
            _log.info("Redis is back: the rate limits hold over all processes")


class _Question(NamedTuple):
    """A lease to be asked for, of `wanted` units."""

    account: _Account
    wanted: int
    arguments: tuple[Any, ...]


class _Metrics(Collector):
    """Verdicts by limit, by where they came from and by outcome, counted in plain numbers as HTTP requests are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.verdicts: defaultdict[tuple[str, str, bool], int] = defaultdict(int)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The figures in Prometheus' model."""
        verdicts = CounterMetricFamily(
            "rate_limit_verdicts",
            "Verdicts: leased (by what Redis last said), asked (of Redis now), alone (Redis is out).",
            labels=["limit", "source", "outcome"],
        )
        for (limit, source, allowed), number in self.verdicts.items():
            verdicts.add_metric([limit, source, "allowed" if allowed else "refused"], number)
        yield verdicts
