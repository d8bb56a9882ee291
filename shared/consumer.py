"""Kafka consumers: an offset is committed after the effect, so every message is handled at least once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer

from shared.events import Envelope
from shared.kafka import check_brokers, ensure_topics, start, stop
from shared.settings import DatabaseSettings

POLL_MS: Final = 1000
MAX_RECORDS: Final = 500
MIN_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 10.0

Handler = Callable[[Envelope], Awaitable[None]]

_log = logging.getLogger(__name__)


class Consumer:
    """Hands the events of `topics` to `handle`, in each partition's order, until cancelled."""

    def __init__(self, settings: DatabaseSettings, topics: Sequence[str], handle: Handler) -> None:
        self._servers = settings.kafka_bootstrap_servers
        self._group = settings.kafka_topic_prefix + settings.service
        self._topics = [settings.kafka_topic_prefix + topic for topic in topics]
        self._replication_factor = settings.kafka_replication_factor
        self._handle = handle
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
                    for record in records:
                        await self._handle_record(record)
                if batches:
                    await consumer.commit()
                    self._backoff = MIN_BACKOFF_SECONDS
        finally:
            await stop(consumer)

    async def _handle_record(self, record: Any) -> None:
        try:
            await self._handle(Envelope.model_validate_json(record.value or b""))
        except (
            ValueError,
            LookupError,
            TypeError,
        ) as error:  # a message that makes no sense; pydantic's are ValueErrors
            _log.error(
                "message passed over: topic %s, partition %s, offset %s: %s",
                record.topic,
                record.partition,
                record.offset,
                type(error).__name__,
            )
