"""A cache beside the database: kept in Redis, filled by whoever misses, written through after a commit.

Each value has the version of its row, and an older one never replaces a newer one, whoever is late. What Redis could
not be told is told later, or everything of the kind is forgotten. Nothing is decided by what is read here.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from redis.asyncio import Redis

from shared.batching import Batcher
from shared.metrics import CacheMetrics
from shared.redis import OUT, longest_wait

# After a failure, until the writer tries Redis again: soon at first, as a stalled event loop looks like an outage.
MIN_BACKOFF_SECONDS: Final = 0.05
MAX_BACKOFF_SECONDS: Final = 1.0
# Once Redis is back, until what it holds is believed: twice the time that it was out, at most this. By then the other
# processes have told it what it missed.
MAX_DISTRUST_SECONDS: Final = 2.0
MAX_READ: Final = 256  # keys in one call
MAX_WRITE: Final = 512  # values in one call
MAX_WAITING: Final = 4096  # keys that wait to be read, or to be loaded; beyond it, 503
MAX_UNWRITTEN: Final = 10_000  # values that Redis has yet to be told
CLOSE_SECONDS: Final = 1.0  # for what is left to be written at the end
EVICTIONS_SECONDS: Final = 10.0  # between two looks at how many keys Redis has evicted

# A value is `generation:version:data`. One of another generation counts as absent; KEYS[1] holds the present one.
_WRITE: Final = """
local function text(key)
    local found = redis.pcall('GET', key)
    return type(found) == 'string' and found or ''
end
local head = text(KEYS[1]) .. ':'
for i = 2, #KEYS do
    local known = text(KEYS[i])
    local version = known:sub(1, #head) == head and known:match('^(%d+):', #head + 1)
    if not version or tonumber(version) <= tonumber(ARGV[i]:match('^%d+')) then
        redis.call('SET', KEYS[i], head .. ARGV[i], 'PX', ARGV[1])
    end
end
"""
_FORGET: Final = "if redis.pcall('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

Value = TypeVar("Value")

_log = logging.getLogger(__name__)


class Versioned(NamedTuple, Generic[Value]):
    """A value as of a version of its row, which grows with every change; without a value: ask the database."""

    version: int
    value: Value | None


Load = Callable[[Sequence[str]], Awaitable[Mapping[str, Versioned[Value]]]]


class Cache(Generic[Value]):
    """Values of one kind in Redis, by key, for at most `ttl_seconds`; `name` begins the name of each key.

    `load` reads rows by their keys, and leaves out those that are not there. It is called for many keys at once: who
    misses while a load is under way shares the next one, so that nobody is given a row that was read before they
    asked.
    """

    def __init__(
        self, redis: Redis, metrics: CacheMetrics, name: str, ttl_seconds: float, kind: Any, load: Load[Value]
    ) -> None:
        self._redis = redis
        self._metrics = metrics.of(name.rpartition(":")[2])
        self._name = name
        self._ttl_ms = int(ttl_seconds * 1000)
        self._load = load
        self._encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
        self._decoder: msgspec.msgpack.Decoder[Value] = msgspec.msgpack.Decoder(kind)
        self._write_script = redis.register_script(_WRITE)
        self._forget_script = redis.register_script(_FORGET)
        limits: dict[str, Any] = {"max_size": MAX_READ, "max_in_flight": 2, "max_waiting": MAX_WAITING}
        self._reads: Batcher[str, Versioned[Value] | None] = Batcher(self._read, concerns_all=(Exception,), **limits)
        self._loads: Batcher[str, Value | None] = Batcher(self._load_all, concerns_all=(Exception,), **limits)
        self._unwritten: dict[str, Versioned[Value]] = {}
        self._lost = False  # something that Redis should have been told is not known any more
        self._puts = 0
        self._settling: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._out = False
        self._out_since = 0.0
        self._backoff = MIN_BACKOFF_SECONDS
        self._retry: asyncio.TimerHandle | None = None
        self._trusted_from = 0.0
        self._look_at = 0.0
        self._closed = False

    async def get(self, key: str) -> Value | None:
        """The value, from Redis or else from the database; None when there is none."""
        [value] = await self.get_many([key])
        return value

    async def get_many(self, keys: Sequence[str]) -> list[Value | None]:
        """The values in the order of their keys. Raises what `load` raises, and UnavailableError."""
        found: Sequence[Versioned[Value] | Exception | None] = [None] * len(keys)
        if self._trusted():
            found = await self._reads.submit(keys)
        values = [each.value if isinstance(each, Versioned) else None for each in found]
        missing = [key for key, value in zip(keys, values, strict=True) if value is None]
        self._metrics.hits.inc(len(keys) - len(missing))
        if not missing:
            return values
        self._metrics.misses.inc(len(missing))
        loaded = iter(await self._loads.submit(missing))
        values = [next(loaded) if value is None else value for value in values]
        for value in values:
            if isinstance(value, Exception):
                raise value
        return values

    def put(self, items: Mapping[str, Versioned[Value]]) -> None:
        """Have Redis told, soon; call it after the commit. It never waits, and never fails.

        From now on this process reads nothing older.
        """
        unwritten = self._unwritten
        for key, item in items.items():
            known = unwritten.get(key)
            if known is None or known.version <= item.version:
                unwritten[key] = item
        self._puts += 1
        if len(unwritten) > MAX_UNWRITTEN:
            unwritten.clear()
            self._lost = True
        self._start()

    def drop(self, versions: Mapping[str, int]) -> None:
        """Have the next reader of each key ask the database, and nobody put back what is older than this version."""
        self.put({key: Versioned(version, None) for key, version in versions.items()})

    async def settle(self) -> None:
        """Return when what was put is in Redis for all to see, or had its time; at once while Redis is out."""
        if self._out or not (self._unwritten or self._lost):
            return
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settling.append((self._puts, written))
        self._start()
        await asyncio.wait([written], timeout=longest_wait(self._redis))

    async def close(self) -> None:
        """Write what is left, if Redis takes it; put and get nothing afterwards."""
        await self._reads.close()
        await self._loads.close()
        self._stop_waiting()
        self._start()
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=CLOSE_SECONDS)
        self._closed = True
        self._stop_waiting()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])

    # ------------------------------------------------------------------------------------------ reading

    def _trusted(self) -> bool:
        return not (self._out or self._lost) and asyncio.get_running_loop().time() >= self._trusted_from

    async def _read(self, keys: Sequence[str]) -> Sequence[Versioned[Value] | None]:
        if not self._trusted():
            return [None] * len(keys)
        try:
            texts: list[Any] = await self._redis.mget([self._name, *map(self._key, keys)])
            head = (texts.pop(0) or b"") + b":"
            return [await self._decode(key, text, head) for key, text in zip(keys, texts, strict=True)]
        except OUT as error:
            self._failed(error)
            return [None] * len(keys)

    async def _decode(self, key: str, text: bytes | None, head: bytes) -> Versioned[Value] | None:
        """What the text says, unless it is older than what this process has yet to write."""
        if text is None or not text.startswith(head):
            return None
        version, _, data = text[len(head) :].partition(b":")
        try:
            number = int(version if version.isdigit() else b"")
            value = self._decoder.decode(data) if data else None
        except (ValueError, msgspec.MsgspecError, RecursionError):
            await self._forget_script(keys=[self._key(key)], args=[text])  # its version would keep others out
            return None
        newer = self._unwritten.get(key)
        return None if newer is not None and newer.version > number else Versioned(number, value)

    async def _load_all(self, keys: Sequence[str]) -> Sequence[Value | None]:
        found = await self._load(list(dict.fromkeys(keys)))
        if not self._out and len(self._unwritten) + len(found) <= MAX_UNWRITTEN:
            self.put(found)
        return [found[key].value if key in found else None for key in keys]

    def _key(self, key: str) -> str:
        return f"{self._name}:{key}"

    # ------------------------------------------------------------------------------------------ writing

    def _start(self) -> None:
        if self._writer is None and self._retry is None and not self._closed:
            self._writer = asyncio.get_running_loop().create_task(self._write_all(), context=Context())

    async def _write_all(self) -> None:
        try:
            if self._out:
                await self._redis.ping()
            while self._unwritten or self._lost:
                await self._forget_all_if_lost()
                puts, items = self._puts, list(self._unwritten.items())
                for begin in range(0, len(items), MAX_WRITE):
                    await self._write(items[begin : begin + MAX_WRITE])
                self._settled(puts)
                await self._look_at_evictions()
            self._back()
        except OUT as error:
            self._failed(error)
        finally:
            self._writer = None
            self._settled(self._puts)

    async def _forget_all_if_lost(self) -> None:
        """Begin a new generation: every value in Redis may be one that is out of date."""
        if self._lost:
            await self._redis.set(self._name, secrets.token_hex(8))
            self._lost = False

    async def _write(self, items: Sequence[tuple[str, Versioned[Value]]]) -> None:
        await self._write_script(
            keys=[self._name, *[self._key(key) for key, _ in items]],
            args=[self._ttl_ms, *[self._text(item) for _, item in items]],
        )
        for key, item in items:
            if self._unwritten.get(key) is item:
                del self._unwritten[key]

    def _text(self, item: Versioned[Value]) -> bytes:
        return b"%d:%b" % (item.version, b"" if item.value is None else self._encoder.encode(item.value))

    def _settled(self, puts: int) -> None:
        while self._settling and self._settling[0][0] <= puts:
            _, written = self._settling.popleft()
            if not written.done():
                written.set_result(None)

    async def _look_at_evictions(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._look_at:
            self._look_at = now + EVICTIONS_SECONDS
            self._metrics.evicted.set((await self._redis.info("stats"))["evicted_keys"])

    # ------------------------------------------------------------------------------------------ outages

    def _failed(self, error: Exception) -> None:
        """Leave Redis alone for a moment; until it is back, everything is read from the database."""
        self._metrics.errors.inc()
        loop = asyncio.get_running_loop()
        if not self._out:
            _log.warning("%s: Redis is out: %s: %s", self._name, type(error).__name__, error)
            self._out_since, self._backoff = loop.time(), MIN_BACKOFF_SECONDS
        self._out = True
        if self._retry is None and not self._closed:
            self._retry = loop.call_later(self._backoff, self._try_again)
            self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)

    def _try_again(self) -> None:
        self._retry = None
        self._start()

    def _back(self) -> None:
        if self._out:
            _log.info("%s: Redis is back", self._name)
            self._out = False
            now = asyncio.get_running_loop().time()
            self._trusted_from = now + min(2 * (now - self._out_since), MAX_DISTRUST_SECONDS)
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
