"""The cache: what it answers, how late anything may be, and what it does when Redis is no help."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from shared import cache as caching
from shared.cache import Cache, Versioned
from shared.metrics import CacheMetrics
from shared.redis import connect
from shared.settings import Settings
from shared.testing.sandbox import Sandbox
from shared.testing.valkey import OwnValkey, own_valkey
from shared.testing.waiting import eventually

TTL_SECONDS = 300.0


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What is cached here."""

    text: str


class Table:
    """Rows with versions, as a database has them, and a gate in which a load can be held after it has read."""

    def __init__(self) -> None:
        self.rows: dict[str, Versioned[Note]] = {}
        self.loads: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def commit(self, key: str, text: str = "") -> Versioned[Note]:
        """The next version of a row."""
        version = self.rows[key].version + 1 if key in self.rows else 1
        self.rows[key] = Versioned(version, Note(text or f"{key}.{version}"))
        return self.rows[key]

    async def load(self, keys: Sequence[str]) -> Mapping[str, Versioned[Note]]:
        self.loads.append(list(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.gate.wait()
        return found


class Place:
    """A Redis, a table, and caches of processes that share both."""

    def __init__(self, redis: Redis, name: str) -> None:
        self.redis, self.name = redis, name
        self.table = Table()
        self.registries: list[CollectorRegistry] = []
        self.caches: list[Cache[Note]] = []

    def cache(self, redis: Redis | None = None) -> Cache[Note]:
        """One more process."""
        registry = CollectorRegistry()
        cache = Cache(redis or self.redis, CacheMetrics(registry), self.name, TTL_SECONDS, Note, self.table.load)
        self.registries.append(registry)
        self.caches.append(cache)
        return cache

    def counted(self, name: str, process: int = 0) -> float:
        labels = {"kind": self.name.rpartition(":")[2]}
        return self.registries[process].get_sample_value(f"cache_{name}_total", labels) or 0.0

    async def version(self, key: str) -> int | None:
        """What Redis says the version is."""
        text: bytes | None = await self.redis.get(f"{self.name}:{key}")  # type: ignore[assignment]
        return int(text.split(b":")[1]) if text else None

    async def commit(self, cache: Cache[Note], key: str, text: str = "") -> None:
        cache.put({key: self.table.commit(key, text)})
        await cache.settle()


@asynccontextmanager
async def place_on(settings: Settings) -> AsyncIterator[Place]:
    async with connect(settings) as redis:
        place = Place(redis, f"{settings.redis_key_prefix}test:{secrets.token_hex(4)}")
        try:
            yield place
        finally:
            place.table.gate.set()
            for cache in place.caches:
                await cache.close()


@pytest.fixture
async def place(sandbox: Sandbox) -> AsyncIterator[Place]:
    async with place_on(sandbox.settings(Settings)) as place:
        yield place


@pytest.fixture
async def valkey() -> AsyncIterator[OwnValkey]:
    async with own_valkey() as valkey:
        yield valkey


@pytest.fixture
async def breakable(sandbox: Sandbox, valkey: OwnValkey) -> AsyncIterator[Place]:
    """As `place`, on a Valkey that may be killed and frozen."""
    settings = sandbox.settings(Settings, redis_host="127.0.0.1", redis_port=valkey.port, redis_timeout_ms=50)
    async with place_on(settings) as place:
        yield place


# ------------------------------------------------------------------------------------------------ reading


async def test_what_was_loaded_once_is_read_from_redis_by_every_process(place: Place) -> None:
    ours, theirs = place.cache(), place.cache()
    place.table.commit("a")

    first = await ours.get("a")
    await ours.settle()
    second, third = await ours.get("a"), await theirs.get("a")

    assert first == second == third == Note("a.1")
    assert place.table.loads == [["a"]]
    assert (place.counted("hits"), place.counted("misses"), place.counted("hits", 1)) == (1, 1, 1)


async def test_what_is_not_there_is_asked_for_again(place: Place) -> None:
    cache = place.cache()

    assert await cache.get("a") is None
    place.table.commit("a")
    assert await cache.get("a") == Note("a.1")


async def test_a_value_is_kept_for_its_time_and_no_longer(place: Place) -> None:
    cache = place.cache()

    await place.commit(cache, "a")

    assert TTL_SECONDS - 5 < await place.redis.ttl(f"{place.name}:a") <= TTL_SECONDS


async def test_several_values_come_in_the_order_of_their_keys(place: Place) -> None:
    cache = place.cache()
    for key in "abc":
        place.table.commit(key)
    await cache.get("b")
    await cache.settle()

    assert await cache.get_many(["c", "b", "x", "a"]) == [Note("c.1"), Note("b.1"), None, Note("a.1")]
    assert place.table.loads == [["b"], ["c", "x", "a"]]


async def test_all_who_miss_meanwhile_share_one_load_that_begins_after_they_asked(place: Place) -> None:
    cache = place.cache()
    place.table.commit("a")
    place.table.gate.clear()
    early = [asyncio.ensure_future(cache.get("a")) for _ in range(2)]

    async def two_loads() -> bool:
        return len(place.table.loads) >= 1

    await eventually(two_loads)
    place.table.commit("a")  # by somebody who told nobody
    late = [asyncio.ensure_future(cache.get("a")) for _ in range(50)]
    await asyncio.sleep(0)
    place.table.gate.set()
    answers = await asyncio.gather(*late)
    await asyncio.gather(*early)

    assert len(place.table.loads) <= 3
    assert set(answers) == {Note("a.2")}


async def test_a_load_that_fails_is_the_callers_error_and_nothing_is_kept(place: Place) -> None:
    async def fail(_: Sequence[str]) -> Mapping[str, Versioned[Note]]:
        raise ConnectionError

    cache = Cache(place.redis, CacheMetrics(CollectorRegistry()), place.name, TTL_SECONDS, Note, fail)

    with pytest.raises(ConnectionError):
        await cache.get("a")

    assert await place.version("a") is None
    await cache.close()


# ------------------------------------------------------------------------------------------------ who is late


async def test_a_reader_with_an_old_row_does_not_replace_what_was_written_through_after_it(place: Place) -> None:
    reader, writer = place.cache(), place.cache()
    place.table.commit("a")
    place.table.gate.clear()
    reading = asyncio.ensure_future(reader.get("a"))
    await eventually(lambda: _true(place.table.loads))

    await place.commit(writer, "a")
    place.table.gate.set()
    assert await reading == Note("a.1")  # it had asked before the commit
    await reader.settle()

    assert await place.version("a") == 2
    assert await reader.get("a") == await writer.get("a") == Note("a.2")


async def test_writes_that_overtake_each_other_leave_the_newest(place: Place) -> None:
    caches = [place.cache() for _ in range(3)]
    versions = [place.table.commit("a") for _ in range(60)]

    for cache, version in zip(itertools.cycle(caches), reversed(versions), strict=False):
        cache.put({"a": version})
    await asyncio.gather(*(cache.settle() for cache in caches))

    assert await place.version("a") == 60


async def test_what_was_dropped_is_loaded_again_and_an_older_row_does_not_come_back(place: Place) -> None:
    reader, writer = place.cache(), place.cache()
    await place.commit(writer, "a")
    old = place.table.rows["a"]
    new = place.table.commit("a")

    writer.drop({"a": new.version})
    await writer.settle()
    reader.put({"a": old})
    await reader.settle()

    assert await reader.get("a") == Note("a.2")


async def test_ones_own_write_is_read_at_once_also_before_redis_has_it(breakable: Place) -> None:
    cache = breakable.cache()
    await breakable.commit(cache, "a")
    await breakable.redis.client_pause(1_000, all=False)  # writes only

    for number in range(2, 20):
        cache.put({"a": breakable.table.commit("a")})
        assert await cache.get("a") == Note(f"a.{number}")
    assert await breakable.version("a") == 1


async def test_a_settled_write_is_read_at_once_by_every_other_process(place: Place) -> None:
    writer, reader = place.cache(), place.cache()
    await place.commit(writer, "a")
    await reader.get("a")

    for number in range(2, 50):
        await place.commit(writer, "a")
        assert await reader.get("a") == Note(f"a.{number}")
    assert len(place.table.loads) == 0


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(st.sampled_from(["commit", "tell", "begin", "end", "evict"]), st.integers(0, 1)), max_size=25
)


async def test_no_order_of_loads_and_writes_leaves_an_older_version_than_one_that_was_accepted(place: Place) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=100, deadline=None)
    @given(steps=STEPS)
    def interleave(steps: list[Step]) -> None:
        asyncio.run_coroutine_threadsafe(_interleave(place, steps), loop).result(timeout=30)

    await asyncio.to_thread(interleave)


async def _interleave(place: Place, steps: list[Step]) -> None:
    """Two processes commit, tell of it late or never, and put rows back that they have read long ago.

    While Redis keeps a value, its version never falls; once it has lost it, an old row may come back, and then not
    for longer than its time.
    """
    await place.redis.delete(f"{place.name}:a")
    caches = [place.cache() for _ in range(2)]
    place.table.rows.clear()
    place.table.commit("a")
    untold: list[list[Versioned[Note]]] = [[], []]
    read: list[list[Versioned[Note]]] = [[], []]
    accepted = 0
    for step, process in steps:
        if step == "commit":
            untold[process].append(place.table.commit("a"))
        elif step == "begin":
            read[process].append(place.table.rows["a"])
        elif step == "evict":
            await place.redis.delete(f"{place.name}:a")
            accepted = 0
        else:
            late = untold[process] if step == "tell" else read[process]
            if late:
                item = late.pop()
                caches[process].put({"a": item})
                await caches[process].settle()
                accepted = max(accepted, item.version)
        found = await place.version("a")
        assert (found or 0) == accepted
        if found:
            assert await place.redis.pttl(f"{place.name}:a") > 0
    for cache in caches:
        await cache.close()


# ------------------------------------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"garbage",
        b":",
        b"::",
        b":1",
        b":1:",
        b":1:garbage",
        b":99999999999999999999:garbage",
        b":1e300:\x91\xa1x",
        b":-5:\x91\xa1x",
        b":" + b"9" * 5000 + b":\x91\xa1x",
        b":7:\x91\x05",
        b":7:\x93\xa1x\x01\x02\x03" + b"\x81" * 2000,
        b"elsewhere:7:\x91\xa1x",
    ],
)
async def test_a_value_that_makes_no_sense_is_a_miss_and_is_replaced(place: Place, text: bytes) -> None:
    cache = place.cache()
    place.table.commit("a")
    await place.redis.set(f"{place.name}:a", text)

    assert await cache.get("a") == Note("a.1")
    await cache.settle()

    assert await place.version("a") == 1
    assert await cache.get("a") == Note("a.1")
    assert place.table.loads == [["a"]]
    assert place.counted("errors") == 0


@pytest.mark.parametrize("what", ["value", "generation"])
async def test_a_key_of_another_type_is_replaced_or_done_without(place: Place, what: str) -> None:
    cache = place.cache()
    place.table.commit("a")
    await place.redis.rpush(place.name if what == "generation" else f"{place.name}:a", "x")

    assert await cache.get("a") == Note("a.1")
    await cache.settle()

    assert await cache.get("a") == Note("a.1")
    assert place.table.loads == [["a"]]
    assert place.counted("errors") == 0


async def test_after_a_flush_everything_is_loaded_again(place: Place) -> None:
    cache = place.cache()
    await place.commit(cache, "a")

    await place.redis.delete(f"{place.name}:a", place.name)

    assert await cache.get("a") == Note("a.1")


# ------------------------------------------------------------------------------------------------ outages


async def _true(value: object) -> bool:
    return bool(value)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_everything_comes_from_the_database_at_the_cost_of_one_wait(
    breakable: Place, valkey: OwnValkey, how: str
) -> None:
    cache = breakable.cache()
    await breakable.commit(cache, "a")
    await (valkey.kill() if how == "killed" else asyncio.to_thread(valkey.freeze))
    loop = asyncio.get_running_loop()

    began = loop.time()
    first = await cache.get("a")
    waited = loop.time() - began
    breakable.table.commit("a")
    began = loop.time()
    rest = await asyncio.gather(*(cache.get("a") for _ in range(200)))
    cache.put({"a": breakable.table.rows["a"]})
    await cache.settle()

    assert first == Note("a.1")
    assert set(rest) == {Note("a.2")}
    assert waited < 0.5
    assert loop.time() - began < 0.5
    assert breakable.counted("errors") <= 4  # the first reader's, and whoever looks whether it is back
    valkey.thaw() if how == "frozen" else await valkey.start()


async def test_what_redis_missed_it_is_told_when_it_is_back_before_anybody_believes_it(
    breakable: Place, valkey: OwnValkey, sandbox: Sandbox
) -> None:
    ours, theirs = breakable.cache(), breakable.cache()
    await breakable.commit(ours, "a")
    await theirs.get("a")
    valkey.freeze()
    await asyncio.gather(ours.get("b"), theirs.get("b"))  # both notice

    await breakable.commit(ours, "a")
    assert await ours.get("a") == await theirs.get("a") == Note("a.2")
    valkey.thaw()

    async def told() -> bool:
        answers = {await ours.get("a"), await theirs.get("a")}
        assert answers == {Note("a.2")}
        return await breakable.version("a") == 2 and breakable.counted("hits", 1) >= 2

    await eventually(told)


async def test_who_is_back_first_does_not_believe_what_another_has_yet_to_put_right(
    breakable: Place, valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = breakable.cache(), breakable.cache()
    await breakable.commit(late, "a")
    valkey.freeze()
    monkeypatch.setattr(caching, "MAX_BACKOFF_SECONDS", 0.05)
    await early.get("b")
    await eventually(lambda: _true(breakable.counted("errors") >= 6))  # it has been out for half a second
    monkeypatch.setattr(caching, "MIN_BACKOFF_SECONDS", 0.5)
    await late.get("b")
    late.put({"a": breakable.table.commit("a")})
    valkey.thaw()

    async def believed() -> bool:
        assert await early.get("a") == Note("a.2")
        return breakable.counted("hits") > 0

    await eventually(believed)


async def test_when_more_was_missed_than_is_remembered_nothing_from_before_is_believed(
    breakable: Place, valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "MAX_UNWRITTEN", 10)
    ours, theirs = breakable.cache(), breakable.cache()
    keys = [f"k{number}" for number in range(40)]
    for key in keys:
        await breakable.commit(ours, key)
    valkey.freeze()
    await asyncio.gather(ours.get("x"), theirs.get("x"))
    for key in keys:
        ours.put({key: breakable.table.commit(key)})
    valkey.thaw()

    async def believed() -> bool:
        answers = [await theirs.get(key) for key in keys]
        await theirs.settle()
        assert answers == [Note(f"{key}.2") for key in keys]
        return breakable.counted("hits", 1) >= 40

    await eventually(believed)
    assert [await ours.get(key) for key in keys] == [Note(f"{key}.2") for key in keys]


async def test_a_redis_that_cannot_be_written_to_is_not_read_either(breakable: Place, valkey: OwnValkey) -> None:
    cache = breakable.cache()
    await breakable.commit(cache, "a")
    await breakable.redis.config_set("maxmemory", "1")
    await breakable.redis.config_set("maxmemory-policy", "noeviction")

    await breakable.commit(cache, "a")

    assert await cache.get("a") == Note("a.2")
    assert breakable.counted("errors") == 1


async def test_evictions_are_counted(breakable: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "EVICTIONS_SECONDS", 0.0)
    cache = breakable.cache()
    await breakable.redis.config_set("maxmemory-policy", "allkeys-lru")
    used = (await breakable.redis.info("memory"))["used_memory"]
    await breakable.redis.config_set("maxmemory", str(used + 200_000))

    for number in range(100):
        await breakable.commit(cache, f"k{number}", "x" * 5_000)

    assert (breakable.registries[0].get_sample_value("redis_evicted_keys") or 0) > 0


async def test_what_was_put_last_is_written_before_the_end(place: Place) -> None:
    cache = place.cache()
    cache.put({"a": place.table.commit("a")})

    await cache.close()

    assert await place.version("a") == 1
