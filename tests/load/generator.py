"""The load: keep-alive connections that send prepared requests, as cheaply as Python can.

It shares the CPUs with what it measures, so it reads of an answer what it must: its status and where it ends.
"""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import uvloop

from tests.load.measuring import Round, collect_rarely, peak_rss_bytes
from tests.load.own_process import answering

GC_THRESHOLD = 10_000
ANSWER_LIMIT_SECONDS = 30.0
MAX_SAMPLES = 3
SAMPLE_BYTES = 600
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "
KEY = b"{idempotency-key}"
"""Where a request has this, each one that is sent has a key of its own."""

NO_ANSWER = "none"


@dataclass(frozen=True, slots=True)
class Load:
    """Each of `connections` sends the next of `requests`, again and again, once it has its last answer.

    With a `rate`, so many requests are due a second, and each is sent when it is, or by the first connection that is
    free after that: what it waits for one is part of its latency.
    """

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    expected: str
    """The status that counts; all others are errors."""
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Driven:
    """What came of a load: the answers that counted, how many came with which status, and some of the errors."""

    round: Round
    statuses: Counter[str]
    samples: Sequence[str]

    @property
    def errors(self) -> int:
        """Answers that were not as expected, or did not come."""
        return self.statuses.total() - self.round.transfers


def serve(pipe: "Pipe[Any, Any]") -> None:
    """Drive the loads that come through `pipe`; runs in a process of its own."""
    collect_rarely(GC_THRESHOLD)
    uvloop.run(answering(pipe, drive))


async def drive(load: Load) -> Driven:
    """Whatever was begun is waited for and counts."""
    state = _State(load, _endless(load.requests))
    cpu, begun = time.process_time(), time.perf_counter()
    state.begun_at, state.ends_at = begun, begun + load.seconds
    connecting = [state.connect() for _ in range(load.connections)]
    await asyncio.gather(*connecting)
    try:
        async with asyncio.timeout(load.seconds + ANSWER_LIMIT_SECONDS):
            await state.all_done.wait()
    except TimeoutError:
        state.statuses[NO_ANSWER.encode()] += state.open
    statuses = Counter({status.decode(): count for status, count in state.statuses.items()})
    measured = Round(
        transfers=statuses[load.expected],
        seconds=time.perf_counter() - begun,
        latencies_ms=sorted(seconds * 1000 for seconds in state.latencies),
        python_cpu=time.process_time() - cpu,
        peak_rss_bytes=peak_rss_bytes(),
    )
    return Driven(measured, statuses, state.samples)


def _endless(requests: Sequence[bytes]) -> Iterator[bytes]:
    if KEY not in requests[0]:
        return itertools.cycle(requests)
    keys = itertools.count(time.time_ns())
    return (request.replace(KEY, b"load-%d" % next(keys)) for request in itertools.cycle(requests))


@dataclass(slots=True)
class _State:
    load: Load
    requests: Iterator[bytes]
    begun_at: float = 0.0
    ends_at: float = 0.0
    sent: int = 0
    open: int = 0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[bytes] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    all_done: asyncio.Event = field(default_factory=asyncio.Event)
    again: set[asyncio.Task[None]] = field(default_factory=set)

    def next_due(self, now: float) -> float:
        """When the next request is to be sent."""
        if not self.load.rate:
            return now
        self.sent += 1
        return self.begun_at + self.sent / self.load.rate

    async def connect(self) -> None:
        """Open one connection, which begins at once; one that cannot be opened is an answer that did not come."""
        self.open += 1
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.load.port)
        except OSError as error:
            self.failed(repr(error).encode())
            self.done()

    def reconnect(self) -> None:
        """The server has closed a connection: open another in its place."""
        self.done()
        task = asyncio.get_running_loop().create_task(self.connect())
        self.again.add(task)
        task.add_done_callback(self.again.discard)

    def failed(self, answer: bytes, status: bytes = NO_ANSWER.encode()) -> None:
        """Count an answer that is not as expected, and keep it while there are few."""
        self.statuses[status] += 1
        if len(self.samples) < MAX_SAMPLES:
            self.samples.append(answer[:SAMPLE_BYTES].decode("utf-8", "replace"))

    def done(self) -> None:
        """One connection has ended."""
        self.open -= 1
        if self.open == 0 and time.perf_counter() >= self.ends_at:
            self.all_done.set()


class _Connection(asyncio.Protocol):
    __slots__ = ("_begun", "_expected", "_rest", "_state", "_transport")

    def __init__(self, state: _State) -> None:
        self._state = state
        self._expected = state.load.expected.encode()
        self._rest = b""
        self._begun = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own are no subclass
        self._next(time.perf_counter())

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        head_end = data.find(HEAD_END)
        if head_end < 0:
            self._rest = data
            return
        if len(data) < head_end + len(HEAD_END) + content_length(data, head_end):
            self._rest = data
            return
        self._rest = b""
        now = time.perf_counter()
        status = data[9:12]  # after "HTTP/1.1 "
        if status == self._expected:
            self._state.statuses[status] += 1
        else:
            self._state.failed(data, status)
        self._state.latencies.append(now - self._begun)
        self._begun = 0.0
        self._next(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._begun:
            self._state.failed(repr(exc).encode())
        if time.perf_counter() < self._state.ends_at:
            self._state.reconnect()
        else:
            self._state.done()

    def _next(self, now: float) -> None:
        due = self._state.next_due(now)
        if now >= self._state.ends_at:
            self._transport.close()
        elif due >= self._state.ends_at:  # closed before its time, it would be opened again
            asyncio.get_running_loop().call_later(self._state.ends_at - now, self._transport.close)
        elif due > now:
            asyncio.get_running_loop().call_later(due - now, self._send, due)
        else:
            self._send(due)

    def _send(self, due: float) -> None:
        if not self._transport.is_closing():
            self._begun = due
            self._transport.write(next(self._state.requests))


def content_length(data: bytes, head_end: int) -> int:
    """The length of the body that follows the head of `data`; 0 where it does not say."""
    at = data.find(LENGTH, 0, head_end)
    if at < 0:
        at = data[:head_end].lower().find(LENGTH)
        if at < 0:
            return 0
    at += len(LENGTH)
    return int(data[at : data.index(b"\r\n", at)])
