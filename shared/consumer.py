"""Kafka consumers: an offset is committed after the effect, so every message is handled at least once.

What makes no sense goes to the dead letters, an outage is waited out: `docs/adr/0025-what-is-given-up.md`.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError
from aiokafka.structs import TopicPartition
from prometheus_client import CollectorRegistry

from shared.background import stop_if_cancelled
from shared.dead_letters import (
    SUFFIX,
    DeadLetter,
    DeadLetters,
    FailedError,
    TooLargeError,
    UnknownVersionError,
    is_for,
)
from shared.events import KINDS, Envelope
from shared.failures import is_outage
from shared.kafka import check_brokers, ensure_topics, start, stop
from shared.metrics import ConsumerMetrics
from shared.settings import DatabaseSettings

POLL_MS: Final = 1000
MAX_RECORDS: Final = 500
MAX_VALUE_BYTES: Final = 1_048_576  # what a broker takes by default; the largest event has a quarter of it
BATCH_ATTEMPTS: Final = 4
EVENT_ATTEMPTS: Final = 2  # of an event alone, after those of its batch
ATTEMPT_PAUSE_SECONDS: Final = 0.1  # doubled with each attempt
MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 10.0
COMMIT_TIMEOUT_SECONDS: Final = 5.0
REVOKE_PATIENCE_SECONDS: Final = 10.0  # that a rebalance has with the batch in hand

Handler = Callable[[Sequence[Envelope]], Awaitable[None]]

# What a message that makes no sense raises; pydantic's and msgspec's errors are ValueErrors.
SENSELESS: Final = (ValueError, LookupError, TypeError, RecursionError)

_log = logging.getLogger(__name__)


class Consumer:
    """Hands the events of `topics` to `handle`, many at a time, in each partition's order, until cancelled.

    Only events of `types` are read whole, or of all that are known here; the others are nobody's business here. A
    version that is not among them, and what `handle` cannot make sense of, goes to the dead letters.

    Whoever is in no hurry lingers so many seconds before a look, unless the last one has left more: many events at a
    time cost less each.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        topics: Sequence[str],
        handle: Handler,
        types: Collection[str] = (),
        registry: CollectorRegistry | None = None,
        linger_seconds: float = 0.0,
    ) -> None:
        self._servers = settings.kafka_bootstrap_servers
        self._group = settings.kafka_topic_prefix + settings.service
        self._topics = [settings.kafka_topic_prefix + topic for topic in topics]
        self._dead_topics = [topic + SUFFIX for topic in self._topics]
        self._replication_factor = settings.kafka_replication_factor
        self._handle = handle
        self._linger_seconds = linger_seconds
        self._types = frozenset(types or KINDS)
        self._families = frozenset(map(_family, self._types))
        self._letters = DeadLetters(settings, self._dead_topics)
        self._metrics = ConsumerMetrics(registry or CollectorRegistry())
        self._measured: set[TopicPartition] = set()
        self._resting: dict[TopicPartition, _Rest] = {}
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Consume through any outage; what was not committed is read again."""
        backoff = MIN_BACKOFF_SECONDS
        try:
            while True:
                began_at = time.monotonic()
                try:
                    await self._consume()
                except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
                    stop_if_cancelled()
                    _log.warning("consumer interrupted: %s: %s", type(error).__name__, error)
                    lasted = time.monotonic() - began_at
                    backoff = MIN_BACKOFF_SECONDS if lasted > MAX_BACKOFF_SECONDS * 2 else _longer(backoff)
                    await asyncio.sleep(_jittered(backoff))
        finally:
            await self._letters.close()

    async def check(self) -> None:
        """Raises when no broker answers within a second."""
        await check_brokers(self._servers)

    async def _consume(self) -> None:
        await ensure_topics(self._servers, [*self._topics, *self._dead_topics], self._replication_factor)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=MAX_RECORDS,
        )
        consumer.subscribe(self._topics, listener=_BatchFirst(self._busy))
        try:
            await start(consumer)
            found = 0
            while True:
                await asyncio.sleep(self._linger_seconds if found < MAX_RECORDS else 0)
                batches = await consumer.getmany(timeout_ms=self._wake_the_rested(consumer))
                found = sum(map(len, batches.values()))
                async with self._busy:
                    await self._handle_batches(consumer, batches)
                await self._measure(consumer)
        finally:
            await stop(consumer)

    async def _handle_batches(self, consumer: Any, batches: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Handle each partition's records and commit what is done, also when cancelled: the rest is read again."""
        finished: dict[TopicPartition, int] = {}
        try:
            for partition, records in batches.items():
                if partition not in consumer.assignment():
                    continue
                try:
                    await self._handle_records(records)
                except Exception as error:
                    if not is_outage(error):
                        raise
                    self._rest(consumer, partition, records[0].offset, error)
                else:
                    finished[partition] = records[-1].offset + 1
                    self._resting.pop(partition, None)
        finally:
            await _commit(consumer, finished)

    async def _handle_records(self, records: Sequence[Any]) -> None:
        """Handle what makes sense and send the rest to the dead letters; raises what an outage raises."""
        letters: list[DeadLetter] = []
        found: list[tuple[Any, Envelope]] = []
        for record in records:
            try:
                envelope = self._read(record)
            except SENSELESS as error:
                letters.append(DeadLetter.of(record, self._group, error))
            else:
                if envelope is not None:
                    found.append((record, envelope))
        given_up = await self._handle_found(found)
        letters = sorted([*letters, *given_up], key=lambda letter: letter.offset)
        await self._letters.send(letters)
        topic = records[0].topic
        self._metrics.handled.labels(topic).inc(len(found) - len(given_up))
        for letter in letters:
            self._metrics.dead_letters.labels(topic, letter.reason).inc()
            _report(letter)

    def _read(self, record: Any) -> Envelope | None:
        """The event in a record, or None for what is not for this consumer; raises one of SENSELESS."""
        if not is_for(record, self._group):
            return None
        value = record.value or b""
        if len(value) > MAX_VALUE_BYTES:
            raise TooLargeError
        kind = _kind(value).type
        if kind in self._types:
            return Envelope.model_validate_json(value)
        if _family(kind) in self._families:
            raise UnknownVersionError
        return None

    async def _handle_found(self, found: Sequence[tuple[Any, Envelope]]) -> list[DeadLetter]:
        """Handle the events together or, where that fails for another reason than an outage, one by one."""
        if not found:
            return []
        topic = found[0][0].topic
        try:
            await self._attempt(topic, [envelope for _, envelope in found], BATCH_ATTEMPTS)
        except Exception as error:
            if is_outage(error):
                raise
            _log.warning("%d events of %s are handled one by one: %s", len(found), topic, type(error).__name__)
        else:
            return []
        letters = []
        for record, envelope in found:
            try:
                await self._attempt(topic, [envelope], EVENT_ATTEMPTS)
            except SENSELESS as error:
                if is_outage(error):
                    raise
                letters.append(DeadLetter.of(record, self._group, error))
            except Exception as error:
                if is_outage(error):
                    raise
                _log.exception("an event cannot be handled")
                failed = FailedError()
                failed.__cause__ = error
                letters.append(DeadLetter.of(record, self._group, failed))
        return letters

    async def _attempt(self, topic: str, envelopes: Sequence[Envelope], attempts: int) -> None:
        """Hand over the events; what is neither an outage nor senseless is tried again at once."""
        for attempt in range(1, attempts + 1):
            try:
                return await self._handle(envelopes)
            except SENSELESS:
                raise
            except Exception as error:
                if attempt == attempts or is_outage(error):
                    raise
                self._metrics.retries.labels(topic, "event").inc()
                await asyncio.sleep(_jittered(ATTEMPT_PAUSE_SECONDS * 2 ** (attempt - 1)))
        return None

    def _rest(self, consumer: Any, partition: TopicPartition, offset: int, error: Exception) -> None:
        """Read the partition again from `offset`, after a while; the others go on, and so does the membership."""
        before = self._resting.get(partition)
        backoff = _longer(before.backoff) if before else MIN_BACKOFF_SECONDS
        self._resting[partition] = _Rest(time.monotonic() + _jittered(backoff), backoff)
        self._metrics.retries.labels(partition.topic, "outage").inc()
        _log.warning("%s %s waits: %s: %s", partition.topic, partition.partition, type(error).__name__, error)
        if partition in consumer.assignment():
            consumer.seek(partition, offset)
            consumer.pause(partition)

    def _wake_the_rested(self, consumer: Any) -> int:
        """Resume the partitions whose time has come; the milliseconds until the next one's, a poll's at most."""
        now = time.monotonic()
        for partition in set(self._resting) - consumer.assignment():
            del self._resting[partition]
        due = {partition for partition, rest in self._resting.items() if rest.until <= now}
        consumer.resume(*due)
        left = [rest.until - now for partition, rest in self._resting.items() if partition not in due]
        return min(POLL_MS, *(int(seconds * 1000) + 1 for seconds in left)) if left else POLL_MS

    async def _measure(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        for gone in self._measured - assigned:
            self._metrics.lag.remove(gone.topic, str(gone.partition))
        self._measured &= assigned
        for partition in assigned:
            try:
                end = consumer.highwater(partition)
                if end is None:  # nothing was fetched yet
                    continue
                lag = max(end - await consumer.position(partition), 0)
            except IllegalStateError:  # it was revoked just now
                continue
            self._metrics.lag.labels(partition.topic, str(partition.partition)).set(lag)
            self._measured.add(partition)


class _Rest(NamedTuple):
    """How long a partition is left alone, and how long it was meant to be before jitter."""

    until: float
    backoff: float


class _BatchFirst(ConsumerRebalanceListener):  # type: ignore[misc]
    """Lets the batch in hand end before its partitions are somebody else's; the inbox covers a longer one."""

    def __init__(self, busy: asyncio.Lock) -> None:
        self._busy = busy

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        try:
            async with asyncio.timeout(REVOKE_PATIENCE_SECONDS), self._busy:
                return
        except TimeoutError:
            _log.warning("a batch outlasts a rebalance; %d partitions may be read twice", len(revoked))

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Nothing to do: positions are those that were committed."""


class _Kind(msgspec.Struct):
    type: str


_kind: Final = msgspec.json.Decoder(_Kind).decode
_VERSIONED: Final = re.compile(r"(.+)\.v\d+", re.ASCII)


def each(handle: Callable[[Envelope], Awaitable[None]]) -> Handler:
    """A handler of many events from one of a single event."""

    async def handle_each(envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            await handle(envelope)

    return handle_each


async def _commit(consumer: Any, finished: Mapping[TopicPartition, int]) -> None:
    """Commit the offsets of partitions that are still this member's; whoever has the others reads again."""
    mine = {partition: offset for partition, offset in finished.items() if partition in consumer.assignment()}
    if not mine:
        return
    try:
        async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
            await consumer.commit(mine)
    except (CommitFailedError, IllegalStateError) as error:
        _log.warning("offsets not committed, the partitions have moved: %s", type(error).__name__)


@lru_cache(maxsize=256)
def _family(kind: str) -> str | None:
    """`users.registered` of `users.registered.v1`; None for what has no version."""
    match = _VERSIONED.fullmatch(kind)
    return match[1] if match else None


def _longer(seconds: float) -> float:
    return min(seconds * 2, MAX_BACKOFF_SECONDS)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def _report(letter: DeadLetter) -> None:
    _log.error(
        "dead letter: topic %s, partition %s, offset %s: %s (%s)%s",
        letter.topic,
        letter.partition,
        letter.offset,
        letter.reason,
        letter.error,
        f": {letter.detail}" if letter.detail else "",
    )
