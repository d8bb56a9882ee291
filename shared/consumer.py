"""Kafka consumers: an offset is committed after the effect, so every message is handled at least once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer

from shared.events import Envelope
from shared.kafka import check_brokers, ensure_topics, start, stop
from shared.settings import DatabaseSettings

POLL_MS: Final = 1000
MAX_RECORDS: Final = 500
MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 10.0

Handler = Callable[[Sequence[Envelope]], Awaitable[None]]

# What a message that makes no sense raises; pydantic's and msgspec's errors are ValueErrors.
SENSELESS: Final = (ValueError, LookupError, TypeError)

_log = logging.getLogger(__name__)


class Consumer:
    """Hands the events of `topics` to `handle`, many at a time, in each partition's order, until cancelled.

    Only events of `types` are read whole, if any are named. What `handle` cannot make sense of is looked for event by
    event, and passed over.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        topics: Sequence[str],
        handle: Handler,
        types: Collection[str] = (),
    ) -> None:
        self._servers = settings.kafka_bootstrap_servers
        self._group = settings.kafka_topic_prefix + settings.service
        self._topics = [settings.kafka_topic_prefix + topic for topic in topics]
        self._replication_factor = settings.kafka_replication_factor
        self._handle = handle
        self._types = frozenset(types)
        self._backoff = MIN_BACKOFF_SECONDS

    async def run(self) -> None:
        """Consume through any outage; what was not committed is read again."""
        while True:
            try:
                await self._consume()
            except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
                _log.warning("consumer interrupted: %s: %s", type(error).__name__, error)
                await asyncio.sleep(self._backoff)
                self._backoff = min(self._backoff * 2, MAX_BACKOFF_SECONDS)

    async def check(self) -> None:
        """Raises when no broker answers within a second."""
        await check_brokers(self._servers)

    async def _consume(self) -> None:
        await ensure_topics(self._servers, self._topics, self._replication_factor)
        consumer = AIOKafkaConsumer(
            *self._topics,
            bootstrap_servers=self._servers,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=MAX_RECORDS,
        )
        try:
            await start(consumer)
            while True:
                batches = await consumer.getmany(timeout_ms=POLL_MS)
                for records in batches.values():
                    await self._handle_records(records)
                if batches:
                    await consumer.commit()
                    self._backoff = MIN_BACKOFF_SECONDS
        finally:
            await stop(consumer)

    async def _handle_records(self, records: Sequence[Any]) -> None:
        found = [(record, envelope) for record in records if (envelope := self._read(record)) is not None]
        if not found:
            return
        try:
            await self._handle([envelope for _, envelope in found])
        except SENSELESS:
            for record, envelope in found:
                try:
                    await self._handle([envelope])
                except SENSELESS as error:
                    _pass_over(record, error)

    def _read(self, record: Any) -> Envelope | None:
        value = record.value or b""
        try:
            if self._types and _kind(value).type not in self._types:
                return None
            return Envelope.model_validate_json(value)
        except SENSELESS as error:
            _pass_over(record, error)
            return None


class _Kind(msgspec.Struct):
    type: str


_kind: Final = msgspec.json.Decoder(_Kind).decode


def each(handle: Callable[[Envelope], Awaitable[None]]) -> Handler:
    """A handler of many events from one of a single event."""

    async def handle_each(envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            await handle(envelope)

    return handle_each


def _pass_over(record: Any, error: Exception) -> None:
    _log.error(
        "message passed over: topic %s, partition %s, offset %s: %s",
        record.topic,
        record.partition,
        record.offset,
        type(error).__name__,
    )
