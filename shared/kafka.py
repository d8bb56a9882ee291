"""Kafka by aiokafka, with every wait bounded."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    TopicAlreadyExistsError,
    UnknownError,
    for_code,
)

from shared.settings import DatabaseSettings

PARTITIONS: Final = 3
START_TIMEOUT_SECONDS: Final = 10.0
SEND_TIMEOUT_SECONDS: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 3.0
# A broker's restart takes up to 16 s; a send must outlive it.
REQUEST_TIMEOUT_MS: Final = 20_000
# A Kafka broker takes no larger batch by default.
MAX_REQUEST_BYTES: Final = 1_048_576

# aiokafka's own names for what runs in the background of a client.
_TASKS: Final = ("_sender_task", "_coordination_task", "_heartbeat_task", "_commit_refresh_task", "_fetch_task")

_log = logging.getLogger(__name__)


class Message(NamedTuple):
    """What is sent as it is: `topic` with its prefix, key, value and headers."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class EventProducer:
    """Sends batches in order and waits for every acknowledgement; rebuilt after any failure.

    It makes the service's own topic when it starts, or else `topics`, and sends nothing of more than
    `max_request_bytes`.
    """

    def __init__(
        self, settings: DatabaseSettings, topics: Sequence[str] = (), max_request_bytes: int = MAX_REQUEST_BYTES
    ) -> None:
        self._servers = settings.kafka_bootstrap_servers
        self._replication_factor = settings.kafka_replication_factor
        self._idempotent = settings.kafka_producer_idempotence
        self._prefix = settings.kafka_topic_prefix
        self._topics = topics or [settings.topic]
        self._max_request_bytes = max_request_bytes
        self._producer: Any = None

    async def send(self, events: Sequence[tuple[str, bytes, bytes]]) -> None:
        """Publish `(topic, key, value)` in order; raises when one was not acknowledged (all may be sent again)."""
        await self.send_messages([Message(self._prefix + topic, key, value) for topic, key, value in events])

    async def send_messages(self, messages: Sequence[Message]) -> None:
        """As `send`, with headers; raises MessageSizeTooLargeError for what is too large here or for the broker."""
        producer = await self._started()
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                acknowledgements = [
                    await producer.send(topic, key=key, value=value, headers=headers)
                    for topic, key, value, headers in messages
                ]
                await asyncio.gather(*acknowledgements)
        except (KafkaError, TimeoutError, asyncio.CancelledError) as error:
            await self.close()
            if self._idempotent and isinstance(error, UnknownError):
                raise KafkaConnectionError(
                    "the broker may not know idempotent producers: KAFKA_PRODUCER_IDEMPOTENCE=false"
                ) from error
            raise

    async def check(self) -> None:
        """Raises when no broker answers within a second."""
        await check_brokers(self._servers)

    async def close(self) -> None:
        """Stop the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await stop(producer)

    async def _started(self) -> Any:
        if self._producer is None:
            await ensure_topics(self._servers, self._topics, self._replication_factor)
            producer = AIOKafkaProducer(
                bootstrap_servers=self._servers,
                acks="all",
                enable_idempotence=self._idempotent,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
                linger_ms=5,
                max_request_size=self._max_request_bytes,
            )
            self._producer = producer
            try:
                await start(producer)
            except (KafkaError, TimeoutError, asyncio.CancelledError):
                await self.close()
                raise
        return self._producer


async def start(client: Any) -> None:
    """Start an aiokafka client; raises TimeoutError when that takes more than 10 s.

    Broken off while it says hello it would never close that connection: whoever is cancelled waits a moment for it.
    """
    starting = asyncio.ensure_future(client.start())
    try:
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            await asyncio.shield(starting)
    finally:
        if not starting.done():
            try:
                await asyncio.wait([starting], timeout=STOP_TIMEOUT_SECONDS)
            finally:  # also when the wait is broken off, by a second cancellation
                starting.cancel()
        elif not starting.cancelled():
            starting.exception()  # heard by the caller already, or nobody is there to hear it


async def stop(client: Any) -> None:
    """Stop an aiokafka client. One that hangs or fails, as in the middle of a rebalance, is taken apart.

    Left alone it would go on opening connections that nobody closes. A consumer that stops while its broker is out
    cancels its own fetches and stumbles over that: it must not look as if whoever stops it were cancelled.
    """
    stopping = asyncio.gather(client.stop(), return_exceptions=True)
    try:
        await asyncio.wait([stopping], timeout=STOP_TIMEOUT_SECONDS)
    finally:
        stopped = stopping.done() and not any(stopping.result())
        stopping.cancel()
    if stopped:
        return
    parts = [getattr(client, name, None) for name in ("_sender", "_coordinator", "_fetcher")]
    tasks = [task for part in parts for name in _TASKS if (task := getattr(part, name, None)) is not None]
    tasks += [task for part in parts for task in getattr(part, "_pending_tasks", ())]
    for task in tasks:
        task.cancel()
    await asyncio.wait([stopping, *tasks], timeout=STOP_TIMEOUT_SECONDS)
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            await client._client.close() if hasattr(client, "_client") else await client.client.close()  # noqa: SLF001


async def check_brokers(servers: str) -> None:
    """Raises KafkaConnectionError when no broker accepts a connection within a second."""
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            continue
        writer.close()
        return
    raise KafkaConnectionError("no broker answers")


async def ensure_topics(servers: str, topics: Sequence[str], replication_factor: int) -> None:
    """Make the topics that are missing (a first send to one that is not there fails or waits for ever)."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        await start(admin)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            existing = await admin.list_topics()
            missing = [
                NewTopic(name=topic, num_partitions=PARTITIONS, replication_factor=replication_factor)
                for topic in topics
                if topic not in existing
            ]
            if missing:
                response = await admin.create_topics(missing)
                for topic, code, *_ in response.topic_errors:
                    if code and for_code(code) is not TopicAlreadyExistsError:
                        raise for_code(code)(f"topic {topic}")
                _log.info("topics made: %s", ", ".join(topic.name for topic in missing))
    finally:
        with contextlib.suppress(KafkaError, TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
                await admin.close()
