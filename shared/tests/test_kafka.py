"""Kafka clients that hang leave nothing behind."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.conn import create_conn

from shared import kafka
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox, sandbox_on
from shared.testing.waiting import eventually

# A loop of its own for each test: a platform in that of the session has clients too.
pytestmark = pytest.mark.asyncio(loop_scope="function")


async def gone() -> bool:
    """Whether none of aiokafka's tasks is left in this loop."""
    tasks: list[Any] = list(asyncio.all_tasks())
    return not any("aiokafka" in task.get_coro().cr_code.co_filename for task in tasks)


async def hang() -> None:
    await asyncio.Event().wait()


@pytest.fixture
def servers(sandbox: Sandbox, probe: type[DatabaseSettings], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(kafka, "STOP_TIMEOUT_SECONDS", 0.2)
    return sandbox.settings(probe).kafka_bootstrap_servers


async def test_a_consumer_that_hangs_when_it_is_stopped_is_taken_apart(
    servers: str, sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    topic = sandbox.settings(probe).topic
    await kafka.ensure_topics(servers, [topic], 1)
    consumer: Any = AIOKafkaConsumer(topic, bootstrap_servers=servers, group_id=topic)
    await kafka.start(consumer)
    consumer._coordinator.close = hang

    await kafka.stop(consumer)

    assert not any(connection.connected() for connection in consumer._client._conns.values())
    await eventually(gone)


async def test_a_consumer_that_stumbles_over_its_own_fetches_is_taken_apart(
    servers: str, sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    """While its broker is out, a fetch pauses, and whoever waits for it when it is cancelled is told the same."""
    topic = sandbox.settings(probe).topic
    await kafka.ensure_topics(servers, [topic], 1)
    consumer: Any = AIOKafkaConsumer(topic, bootstrap_servers=servers, group_id=None)
    await kafka.start(consumer)
    fetches = [asyncio.create_task(asyncio.sleep(60)) for _ in range(2)]
    await asyncio.sleep(0)
    consumer._fetcher._pending_tasks.update(fetches)

    await kafka.stop(consumer)

    assert all(fetch.cancelled() for fetch in fetches)
    assert not any(connection.connected() for connection in consumer._client._conns.values())
    await eventually(gone)


async def test_a_producer_that_hangs_when_it_is_stopped_is_taken_apart(servers: str) -> None:
    producer: Any = AIOKafkaProducer(bootstrap_servers=servers)
    await kafka.start(producer)
    producer._message_accumulator.close = hang

    await kafka.stop(producer)

    assert not any(connection.connected() for connection in producer.client._conns.values())
    await eventually(gone)


async def test_a_sandbox_closes_a_connection_that_nobody_knows_and_no_other(
    servers: str, engines: dict[str, str]
) -> None:
    producer: Any = AIOKafkaProducer(bootstrap_servers=servers)
    await kafka.start(producer)
    await producer.client.fetch_all_metadata()
    host, _, port = servers.rpartition(":")
    async with sandbox_on(engines):
        forsaken = await create_conn(host, int(port))

    assert not forsaken.connected()
    assert any(connection.connected() for connection in producer.client._conns.values())
    await kafka.stop(producer)
