"""A consumer of one topic in a process of its own, which notes when it has each event."""

import asyncio
import time
from multiprocessing.connection import Connection as Pipe
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from shared.kafka import PARTITIONS, start, stop
from shared.serve import GC_THRESHOLD
from shared.settings import DatabaseSettings
from tests.load.arena import Arena
from tests.load.measuring import collect_rarely
from tests.load.own_process import answering
from tests.load.sinks import read

LISTEN, ARRIVALS = "listen", "arrivals"
# A broker answers a consumer that waits as soon as there is something; the embedded one when half of the time is over
# that the consumer would wait. By default, 500 ms, that would be most of what is measured.
FETCH_WAIT_MS = 100


def serve(place: Arena, pipe: "Pipe[Any, Any]") -> None:
    """Consume what comes from LISTEN on, and answer ARRIVALS with the instant of each event's arrival, by its id."""
    collect_rarely(GC_THRESHOLD)
    uvloop.run(_serve(place.settings, pipe))


async def _serve(settings: DatabaseSettings, pipe: "Pipe[Any, Any]") -> None:
    arrived: list[tuple[float, bytes]] = []
    client: Any = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers, group_id=None, fetch_max_wait_ms=FETCH_WAIT_MS
    )
    await start(client)

    async def listen() -> None:
        while True:
            batches = await client.getmany(timeout_ms=1000)
            now = time.monotonic()
            arrived.extend((now, record.value) for records in batches.values() for record in records)

    async def answer(asked: str) -> dict[str, float]:
        if asked == LISTEN:
            client.assign([TopicPartition(settings.topic, number) for number in range(PARTITIONS)])
            await client.seek_to_end()
            listening.append(asyncio.create_task(listen()))
        return {read(value).id: at for at, value in reversed(arrived)}  # of one that came twice, the first time

    listening: list[asyncio.Task[None]] = []
    try:
        await answering(pipe, answer)
    finally:
        for task in listening:
            task.cancel()
        await stop(client)
