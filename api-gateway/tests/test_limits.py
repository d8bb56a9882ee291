"""The rate limiter on a real Valkey: never above the limit, hardly below it, whatever happens to Valkey."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import secrets
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import api_gateway.limits
import shared.redis
from api_gateway.limits import (
    BACK_OFF_SECONDS,
    LEASE,
    LOTS_PER_LIMIT,
    SLOTS_PER_WINDOW,
    Limit,
    RateLimitedError,
    RateLimiter,
    Verdict,
    rate_limit_headers,
)
from shared.settings import ROOT, Settings
from shared.testing.valkey import OwnValkey, own_valkey
from shared.testing.waiting import eventually

HAMMER = Path(__file__).with_name("hammer.py")
WINDOW_SECONDS = 2.0
LOT_SECONDS = 0.2
KEY = "192.0.2.1"
LIMIT = Limit("address", 100)
LARGEST_LOT = LIMIT.per_minute // LOTS_PER_LIMIT

Taken = tuple[float, float, bool]
Make = Callable[..., Awaitable["Process"]]


class Process:
    """A limiter as a gateway process has it, with its own connections and metrics."""

    def __init__(
        self, valkey: OwnValkey, prefix: str, *, lot_seconds: float, max_keys: int, window_seconds: float
    ) -> None:
        self.redis = shared.redis.connect(Settings(_env_file=None, redis_host="127.0.0.1", redis_port=valkey.port))
        self.registry = CollectorRegistry()
        self.limiter = RateLimiter(
            self.redis,
            prefix,
            self.registry,
            window_seconds=window_seconds,
            lot_seconds=lot_seconds,
            max_keys=max_keys,
        )

    async def take(self, limit: Limit = LIMIT, key: str = KEY) -> Verdict:
        return await self.limiter.take(limit, key)

    async def passed(self, requests: int, limit: Limit = LIMIT, key: str = KEY) -> int:
        """How many of so many requests, one after the other, are let through."""
        return sum([(await self.take(limit, key)).allowed for _ in range(requests)])

    def counted(self, source: str) -> int:
        """Verdicts from this source."""
        return sum(
            int(sample.value)
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name.endswith("_total") and sample.labels["source"] == source
        )

    async def close(self) -> None:
        await self.limiter.close()
        await self.redis.aclose()


@pytest.fixture(scope="module")
async def valkey() -> AsyncIterator[OwnValkey]:
    async with own_valkey() as valkey:
        yield valkey


@pytest.fixture
def prefix() -> str:
    return f"test-{secrets.token_hex(4)}:"


@pytest.fixture
async def make(valkey: OwnValkey, prefix: str) -> AsyncIterator[Make]:
    """Makes processes that share one Valkey and one prefix."""
    made: list[Process] = []

    async def process(
        *, lot_seconds: float = LOT_SECONDS, max_keys: int = 1000, window_seconds: float = WINDOW_SECONDS
    ) -> Process:
        made.append(
            Process(valkey, prefix, lot_seconds=lot_seconds, max_keys=max_keys, window_seconds=window_seconds)
        )
        return made[-1]

    yield process
    for process_made in made:
        await process_made.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine 50 ms pass now and then, and then each process goes on alone, which is not the question."""
    monkeypatch.setenv("REDIS_TIMEOUT_MS", "5000")


async def calls_of(process: Process) -> int:
    """How often Valkey was asked for a lot, by anybody."""
    return int((await process.redis.info("commandstats")).get("cmdstat_evalsha", {"calls": 0})["calls"])


async def hammer(processes: Sequence[Process], seconds: float) -> list[Taken]:
    """What several callers of each process were told until the time was over."""
    taken: list[Taken] = []
    ends_at = time.monotonic() + seconds

    async def call(process: Process) -> None:
        after = 0.0
        while after < ends_at:
            before = time.monotonic()
            allowed = (await process.take()).allowed
            after = time.monotonic()
            taken.append((before, after, allowed))
            await asyncio.sleep(secrets.randbelow(10) / 1000)

    await asyncio.gather(*(call(process) for process in processes for _ in range(4)))
    return taken


def most_in_a_window(taken: Sequence[Taken]) -> int:
    """The most requests that certainly were let through within one window, wherever it begins."""
    passed = [(before, after) for before, after, allowed in taken if allowed]
    return max(
        sum(1 for before, after in passed if before > end - WINDOW_SECONDS and after <= end) for _, end in passed
    )


def fewest_before_a_refusal(taken: Sequence[Taken], slack_seconds: float) -> int:
    """The fewest requests that may have been let through in the window, and a little, before one was refused."""
    passed = [(before, after) for before, after, allowed in taken if allowed]
    return min(
        sum(1 for was, done in passed if was <= after and done >= before - WINDOW_SECONDS - slack_seconds)
        for before, after, allowed in taken
        if not allowed
    )


def assert_exact(taken: Sequence[Taken], processes: int) -> None:
    """Never above the limit, and below it by no more than one lot each, a slot of time late."""
    slot_seconds = WINDOW_SECONDS / SLOTS_PER_WINDOW
    assert most_in_a_window(taken) <= LIMIT.per_minute
    assert fewest_before_a_refusal(taken, slot_seconds + 0.01) >= LIMIT.per_minute - processes * LARGEST_LOT
    duration = max(after for _, after, _ in taken) - min(before for before, _, _ in taken)
    assert duration > 2 * WINDOW_SECONDS
    assert sum(allowed for _, _, allowed in taken) > 2 * (LIMIT.per_minute - processes * LARGEST_LOT)


async def test_a_lone_process_lets_exactly_the_limit_through_and_says_what_is_left(make: Make, patient: None) -> None:
    process = await make(window_seconds=60.0)

    verdicts = [await process.take(Limit("login", 3)) for _ in range(4)]

    assert verdicts == [
        Verdict(allowed=True, limit=3, remaining=2, reset_seconds=60),
        Verdict(allowed=True, limit=3, remaining=1, reset_seconds=60),
        Verdict(allowed=True, limit=3, remaining=0, reset_seconds=60),
        Verdict(allowed=False, limit=3, remaining=0, reset_seconds=60),
    ]


async def test_keys_and_limits_are_counted_apart(make: Make, patient: None) -> None:
    process = await make()
    one = Limit("login", 1)
    assert await process.passed(2, one) == 1

    assert await process.passed(2, one, "192.0.2.2") == 1
    assert await process.passed(2, Limit("user", 1)) == 1


async def test_a_thousand_requests_at_once_pass_up_to_the_limit_and_share_few_calls(
    make: Make, patient: None
) -> None:
    process = await make()
    before = await calls_of(process)

    verdicts = await asyncio.gather(*(process.take() for _ in range(1000)))

    assert sum(verdict.allowed for verdict in verdicts) == 100
    assert await calls_of(process) - before <= 10


async def test_keys_that_are_asked_for_at_once_share_their_way_to_valkey(make: Make, patient: None) -> None:
    process = await make()

    verdicts = await asyncio.gather(*(process.take(LIMIT, f"192.0.2.{n}") for n in range(200)))

    assert all(verdict.allowed for verdict in verdicts)
    assert len(await process.redis.client_list()) <= 3  # no connection for each


async def test_a_busy_key_is_let_through_by_lots_in_hand(make: Make, patient: None) -> None:
    process = await make(window_seconds=60.0, lot_seconds=10.0)
    busy = Limit("address", 10_000)

    assert await process.passed(5000, busy) == 5000

    assert process.counted("asked") < 30
    assert process.counted("leased") == 5000 - process.counted("asked")


async def test_a_key_that_is_not_busy_holds_no_more_than_it_uses(make: Make, patient: None) -> None:
    many = [await make(lot_seconds=0.001) for _ in range(10)]  # each request comes after the last one's lot

    passed = 0
    for n in range(100):
        passed += await many[n % 10].passed(1)
        await asyncio.sleep(0.002)

    assert passed == 100


async def test_what_a_lot_had_left_is_given_back(make: Make, patient: None) -> None:
    first, second = await make(window_seconds=60.0), await make(window_seconds=60.0)
    assert await first.passed(40) == 40
    begun = time.monotonic()

    async def lot_is_over() -> bool:
        return time.monotonic() > begun + LOT_SECONDS

    await eventually(lot_is_over)
    assert first.limiter.take_now(LIMIT, KEY) is None  # what is left of the lot is not used any more
    assert await first.passed(1) == 1

    passed = await second.passed(100)

    assert 100 - 41 - LARGEST_LOT < passed <= 100 - 41


async def test_what_is_left_of_a_lot_is_not_used_while_the_next_one_is_asked_for(make: Make, patient: None) -> None:
    process = await make(lot_seconds=10.0)
    account = process.limiter._account(LIMIT, KEY)
    while not account.left:
        await process.take()

    process.limiter._question(account, 10, time.monotonic())

    assert process.limiter.take_now(LIMIT, KEY) is None


async def test_two_limiters_are_never_above_the_limit_and_hardly_below(
    make: Make, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # what the clock on the wall says is of no interest
    processes = [await make(), await make()]

    taken = await hammer(processes, 2.5 * WINDOW_SECONDS)

    assert [process.counted("alone") for process in processes] == [0, 0]
    assert_exact(taken, processes=2)


async def test_two_processes_are_never_above_the_limit_and_hardly_below(valkey: OwnValkey, prefix: str) -> None:
    arguments = (valkey.port, prefix, LIMIT.per_minute, WINDOW_SECONDS, LOT_SECONDS, 3 * WINDOW_SECONDS)
    path = os.pathsep.join([str(ROOT), str(ROOT / "api-gateway")])
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, str(HAMMER), *map(str, arguments)),
            env=os.environ | {"PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(60):
        outputs = [(await process.communicate())[0] for process in running]

    own = [[(before, after, allowed) for before, after, allowed in json.loads(output)] for output in outputs]
    assert all(any(allowed for _, _, allowed in taken) for taken in own)
    assert_exact([*own[0], *own[1]], processes=2)  # on one machine they share one clock


async def test_a_slow_client_is_never_refused_whichever_process_it_comes_to(make: Make, patient: None) -> None:
    lot_seconds = 0.05
    processes = [await make(lot_seconds=lot_seconds), await make(lot_seconds=lot_seconds)]
    limit = Limit("address", 40)  # it comes 27 times in a window

    passed = 0
    for n in range(50):
        passed += await processes[n % 2].passed(1, limit)
        await asyncio.sleep(1.5 * lot_seconds)

    assert passed == 50


async def test_a_flood_of_refused_requests_asks_once_in_a_lots_time(make: Make, patient: None) -> None:
    process = await make(window_seconds=60.0, lot_seconds=10.0)
    assert await process.passed(101) == 100
    before = await calls_of(process)

    assert await process.passed(20_000) == 0

    assert await calls_of(process) - before == 0


async def test_a_refused_key_passes_again_as_soon_as_it_was_told(make: Make, patient: None) -> None:
    process = await make(lot_seconds=10.0)
    one = Limit("login", 1)
    begun = time.monotonic()
    assert (await process.take(one)).allowed
    passed_at = time.monotonic()
    refused = await process.take(one)
    assert (refused.allowed, refused.reset_seconds) == (False, 2)

    async def passes() -> bool:
        return (await process.take(one)).allowed

    await eventually(passes)

    assert begun + WINDOW_SECONDS <= time.monotonic() <= passed_at + WINDOW_SECONDS + 0.5


async def test_what_a_forgotten_key_has_used_still_counts(make: Make, patient: None) -> None:
    process = await make(window_seconds=60.0, max_keys=2)
    login = Limit("login", 10)
    assert await process.passed(7, login) == 7
    for other in ("192.0.2.2", "192.0.2.3"):
        await process.take(login, other)

    assert await process.passed(10, login) == 3


async def test_valkey_forgets_a_key_when_nothing_of_it_counts(make: Make, prefix: str, patient: None) -> None:
    process = await make()
    await process.take()
    (key,) = [name async for name in process.redis.scan_iter(match=f"{prefix}*")]

    assert key == f"{prefix}limit:v1:address:{KEY}".encode()
    assert 0 < await process.redis.pttl(key) <= (WINDOW_SECONDS + LOT_SECONDS) * 1000


async def test_an_address_that_is_only_refused_leaves_nothing_of_its_process(
    make: Make, prefix: str, patient: None
) -> None:
    first, second = await make(), await make()
    login = Limit("login", 1)
    assert await first.passed(1, login) == 1
    assert await second.passed(1, login) == 0

    assert await first.redis.hlen(f"{prefix}limit:v1:login:{KEY}") == 1


async def test_a_process_that_ended_is_forgotten_when_its_requests_no_longer_count(
    make: Make, prefix: str, patient: None
) -> None:
    ended = await make(window_seconds=0.2, lot_seconds=0.1)
    other = await make(window_seconds=0.2, lot_seconds=0.1)
    await ended.take()
    name = f"{prefix}limit:v1:address:{KEY}"

    async def is_forgotten() -> bool:
        await other.take()
        return int(await other.redis.hlen(name)) == 1

    await eventually(is_forgotten)


async def test_a_call_that_was_overtaken_changes_nothing(make: Make, prefix: str) -> None:
    process = await make()

    async def lease(sent: float, uses: bytes) -> list[int]:
        answer: list[int] = await process.redis.eval(LEASE, 1, f"{prefix}key", "own", sent, 10, 3, 60_000, 1000, uses)
        return answer

    assert (await lease(2000.0, struct.pack("<2I", 100, 4)))[:2] == [3, 3]
    known = await process.redis.hgetall(f"{prefix}key")

    assert await lease(1000.0, b"") == [0, 0, 0]

    assert await process.redis.hgetall(f"{prefix}key") == known


async def test_what_lies_in_the_future_is_from_before_the_clock_was_set_back_and_goes(
    make: Make, prefix: str
) -> None:
    process = await make()
    future_ms = (time.time() + 7200) * 1000
    name = f"{prefix}limit:v1:login:{KEY}"
    await process.redis.hset(name, "another", struct.pack("<ddI", 0.0, future_ms, 10))

    assert await process.passed(11, Limit("login", 10)) == 10

    assert await process.redis.hexists(name, "another") is False


async def test_a_valkey_that_lost_the_script_is_told_again(make: Make, patient: None) -> None:
    process = await make(window_seconds=60.0)
    assert await process.passed(60) == 60
    await process.redis.script_flush()

    assert await process.passed(100) == 40
    assert process.counted("alone") == 0


async def test_a_valkey_that_was_emptied_learns_what_a_process_knows(make: Make, patient: None) -> None:
    process, other = await make(window_seconds=60.0), await make(window_seconds=60.0)
    assert await process.passed(60) == 60
    await process.redis.flushall()

    assert await process.passed(100) == 40
    assert await other.passed(100) == 0


async def back_with_valkey(process: Process, key: str) -> None:
    """Wait until Valkey is asked again."""
    before = process.counted("asked") + process.counted("leased")

    async def asks() -> bool:
        await process.take(LIMIT, key)
        return process.counted("asked") + process.counted("leased") > before

    await eventually(asks)


async def test_without_valkey_each_process_keeps_to_the_limit_and_remembers_it_afterwards(prefix: str) -> None:
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=1000, window_seconds=60.0)
        login = Limit("login", 10)
        assert await process.passed(4, login) == 4
        await valkey.kill()

        assert await process.passed(100, login) == 6
        refused = await process.take(login)
        assert (refused.allowed, refused.remaining) == (False, 0)
        assert 0 < refused.reset_seconds <= 60
        assert await process.passed(200) == 100

        await valkey.start()
        await back_with_valkey(process, "192.0.2.9")
        assert await process.passed(100, login) == 0
        assert await process.passed(100) == 0
        await process.close()


async def test_a_frozen_valkey_costs_one_request_a_second_fifty_milliseconds(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=100_000, window_seconds=60.0)
        await process.take()
        valkey.freeze()

        with caplog.at_level(logging.WARNING):
            begun = time.monotonic()
            await process.take(LIMIT, "192.0.2.2")
            first_seconds = time.monotonic() - begun
            at_once = tried = 0
            while time.monotonic() < begun + 2.5 * BACK_OFF_SECONDS:
                key = f"198.51.100.{at_once}"
                if process.limiter.take_now(LIMIT, key) is None:
                    await process.take(LIMIT, f"{key}-{tried}")
                    tried += 1
                else:
                    at_once += 1
                await asyncio.sleep(0)

        assert 0.04 < first_seconds < 1.0
        assert 1 <= tried <= 2
        assert process.counted("alone") == 1 + at_once + tried
        assert [record.getMessage() for record in caplog.records] == [
            "Redis is out (TimeoutError): each process keeps to the rate limits by itself"
        ]

        valkey.thaw()
        await back_with_valkey(process, "192.0.2.9")
        await process.close()


async def test_what_passes_while_valkey_is_tried_again_is_paid_from_the_lot_that_it_grants(prefix: str) -> None:
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=1000, window_seconds=60.0)
        login = Limit("login", 10)
        await process.take(login, "192.0.2.2")
        valkey.freeze()
        await process.take(login, "192.0.2.3")

        async def is_tried_again() -> bool:
            return process.limiter.take_now(login, "192.0.2.4") is None

        await eventually(is_tried_again)
        trying = asyncio.create_task(process.take(login))

        async def is_under_way() -> bool:
            return process.limiter.take_now(login, "192.0.2.4") is not None

        await eventually(is_under_way)
        verdicts = [process.limiter.take_now(login, KEY) for _ in range(12)]
        meanwhile = sum(verdict is not None and verdict.allowed for verdict in verdicts)
        assert meanwhile == 10
        valkey.thaw()

        assert meanwhile + (await trying).allowed + await process.passed(20, login) == 10
        await process.close()


async def test_whatever_happens_to_valkey_a_process_is_never_above_the_limit(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_gateway.limits, "BACK_OFF_SECONDS", 0.1)
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=1000, window_seconds=WINDOW_SECONDS)
        hammering = asyncio.create_task(hammer([process], 3 * WINDOW_SECONDS))

        for trouble in itertools.cycle(("kill", "freeze", "empty")):
            if (await asyncio.wait([hammering], timeout=0.3))[0]:  # otherwise that was a moment of peace
                break
            if trouble == "kill":
                await valkey.kill()
                await valkey.start()
            elif trouble == "freeze":
                valkey.freeze()
                await asyncio.wait([hammering], timeout=0.2)
                valkey.thaw()
            else:
                with contextlib.suppress(*shared.redis.OUT):
                    await process.redis.flushall()

        taken = await hammering
        assert most_in_a_window(taken) <= LIMIT.per_minute
        assert sum(allowed for _, _, allowed in taken) > 2 * (LIMIT.per_minute - LARGEST_LOT)
        assert all(process.counted(source) > 0 for source in ("leased", "asked", "alone"))
        await process.close()


async def test_those_who_wait_while_valkey_freezes_wait_together(prefix: str) -> None:
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=1000, window_seconds=60.0)
        await process.take()
        valkey.freeze()
        begun = time.monotonic()

        verdicts = await asyncio.gather(*(process.take(LIMIT, f"198.51.100.{n}") for n in range(500)))

        assert all(verdict.allowed for verdict in verdicts)
        assert time.monotonic() - begun < 1.0  # not 500 times 50 ms, nor once for each call's worth
        await process.close()


async def test_callers_that_hang_up_disturb_nobody_who_waits_with_them(make: Make, patient: None) -> None:
    process = await make()
    leaving = [asyncio.create_task(process.take()) for _ in range(10)]
    staying = [asyncio.create_task(process.take()) for _ in range(10)]
    await asyncio.sleep(0)

    for task in leaving:
        task.cancel()

    verdicts = await asyncio.gather(*staying)
    assert [verdict.allowed for verdict in verdicts] == [True] * 10
    assert all(task.cancelled() for task in leaving)


async def test_no_more_keys_are_remembered_than_allowed_with_and_without_valkey(prefix: str) -> None:
    async with own_valkey() as valkey:
        process = Process(valkey, prefix, lot_seconds=LOT_SECONDS, max_keys=10, window_seconds=60.0)
        for n in range(30):
            await process.take(LIMIT, f"192.0.2.{n}")
        assert len(process.limiter._accounts) == 10
        await valkey.kill()
        for n in range(30):
            await process.take(LIMIT, f"198.51.100.{n}")

        assert len(process.limiter._accounts) == 10
        await process.close()


def test_headers_tell_what_is_left_and_a_refusal_when_to_come_again() -> None:
    verdict = Verdict(allowed=False, limit=100, remaining=0, reset_seconds=17)

    assert rate_limit_headers(verdict) == [
        (b"ratelimit-limit", b"100"),
        (b"ratelimit-remaining", b"0"),
        (b"ratelimit-reset", b"17"),
    ]
    error = RateLimitedError(verdict)
    assert (error.status, error.code) == (429, "rate_limited")
    assert error.headers == {
        "ratelimit-limit": "100",
        "ratelimit-remaining": "0",
        "ratelimit-reset": "17",
        "Retry-After": "17",
    }
