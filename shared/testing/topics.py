"""A topic of a test's own, and consumers of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition
from prometheus_client import CollectorRegistry

from shared.consumer import Consumer
from shared.dead_letters import MAX_LETTER_BYTES, SUFFIX, DeadLetter
from shared.events import Envelope, OutgoingEvent, UserRegistered
from shared.http.context import Trace
from shared.ids import new_id
from shared.kafka import PARTITIONS, EventProducer, Message, start, stop
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually

LIMIT_SECONDS: Final = 30.0
TRACE: Final = Trace("request-0123456789", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


class Topic:
    """A topic of the test's own, with the consumers and the dead letters of it."""

    def __init__(self, settings: DatabaseSettings, name: str, producer: EventProducer) -> None:
        self.settings = settings
        self.name = name
        self.full_name = settings.kafka_topic_prefix + name
        self._registry = CollectorRegistry()
        self._producer = producer

    async def send(self, *values: bytes | None, key: bytes | None = b"key", suffix: str = "") -> None:
        """Publish the values in one partition."""
        await self._producer.send_messages([Message(self.full_name + suffix, key, value) for value in values])

    def consumer(
        self, handle: Callable[[Sequence[Envelope]], Awaitable[None]], *types: str, linger_seconds: float = 0.0
    ) -> Consumer:
        """One that handles registrations, unless others are named."""
        self._registry = CollectorRegistry()
        chosen = types or [UserRegistered.type]
        return Consumer(self.settings, [self.name], handle, chosen, self._registry, linger_seconds)

    async def letters(self) -> list[DeadLetter]:
        """All dead letters there are."""
        records = await records_of(self.settings, self.full_name + SUFFIX)
        return [DeadLetter.read(record) for record in records]

    async def handled(self, count: int) -> None:
        """Wait until so many messages are behind the group's offsets."""

        async def look() -> bool:
            return await self.committed() == count

        await eventually(look, LIMIT_SECONDS)

    async def committed(self) -> int:
        """How many messages are behind the group's offsets."""
        client: Any = AIOKafkaConsumer(
            bootstrap_servers=self.settings.kafka_bootstrap_servers,
            group_id=self.settings.kafka_topic_prefix + self.settings.service,
            enable_auto_commit=False,
        )
        await start(client)
        try:
            partitions = [TopicPartition(self.full_name, number) for number in range(PARTITIONS)]
            return sum([await client.committed(partition) or 0 for partition in partitions])
        finally:
            await stop(client)

    def figure(self, name: str, **labels: str) -> float | None:
        """A metric of the latest consumer."""
        return self._registry.get_sample_value(name, {"topic": self.full_name} | labels)


async def records_of(settings: DatabaseSettings, topic: str) -> list[Any]:
    """Everything in the topic, partition by partition."""
    return [record async for records in batches_of(settings, topic) for record in records]


async def batches_of(settings: DatabaseSettings, topic: str) -> AsyncIterator[list[Any]]:
    """Everything in the topic, some at a time, in each partition's order."""
    client: Any = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers, group_id=None, auto_offset_reset="earliest"
    )
    await start(client)
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        client.assign(partitions)
        left = {partition for partition, end in (await client.end_offsets(partitions)).items() if end}
        while left:
            for records in (await client.getmany(*left, timeout_ms=1000)).values():
                yield records
            # What comes with the messages is right; asked for its end, the embedded broker names its last batch's.
            left = {each for each in left if await client.position(each) < (client.highwater(each) or 1)}
    finally:
        await stop(client)


async def _make(settings: DatabaseSettings, topics: Sequence[str]) -> None:
    """Topics that take what is too large for a letter, too."""
    admin: Any = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await start(admin)
    try:
        configuration = {"max.message.bytes": str(4 * MAX_LETTER_BYTES)}
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=configuration) for topic in topics])
    finally:
        await admin.close()


@asynccontextmanager
async def topic_of(sandbox: Sandbox, kind: type[DatabaseSettings]) -> AsyncIterator[Topic]:
    """A topic and a consumer group that nobody else has."""
    name = f"{new_id().hex}.events"

    class OwnSettings(kind):  # type: ignore[valid-type, misc]
        service = f"group-{name}"

    settings = sandbox.settings(OwnSettings)
    full_name = settings.kafka_topic_prefix + name
    await _make(settings, [full_name, full_name + SUFFIX])
    producer = EventProducer(settings, [full_name], 4 * MAX_LETTER_BYTES)
    yield Topic(settings, name, producer)
    await producer.close()


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[None]:
    """Run the consumer for the length of the block."""
    task = asyncio.create_task(consumer.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def registered(name: str) -> bytes:
    """The event of a registration, told apart by the first name."""
    data = UserRegistered(
        user_id=new_id(), email="a@example.com", phone="", first_name=name, last_name="B", role="user"
    )
    return OutgoingEvent.of(data, subject=data.user_id, sequence=1, actor="test", trace=TRACE).payload.encode()
