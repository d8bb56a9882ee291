"""Events for a relay to carry, and what of them has arrived where."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer

from shared import outbox
from shared.chain import CHAIN, genesis, link
from shared.database import Database
from shared.events import OutgoingEvent
from shared.ids import new_id
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox

TABLE: Final = outbox.outbox_table(sa.MetaData())


def events_of(settings: DatabaseSettings, keys: int, each: int) -> list[OutgoingEvent]:
    """`each` numbered events of each of `keys` aggregates, taking turns."""
    names = [str(new_id()) for _ in range(keys)]
    found = []
    for number in range(1, each + 1):
        for key in names:
            event_id = new_id()
            payload = json.dumps({"id": str(event_id), "subject": key, "sequence": number, "text": "Zoë"})
            found.append(OutgoingEvent(event_id, f"{settings.schema_name}.events", key, payload))
    return found


async def commit(database: Database, events: Sequence[OutgoingEvent]) -> None:
    async with database.transaction() as session:
        await outbox.append(session, TABLE, events)


async def in_kafka(settings: DatabaseSettings, events: Sequence[OutgoingEvent]) -> list[OutgoingEvent]:
    """Those of `events` that are in the topic, as often as they are, in each partition's order."""
    known = {event.payload.encode(): event for event in events}
    consumer = AIOKafkaConsumer(
        settings.topic, bootstrap_servers=settings.kafka_bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        partitions = consumer.assignment()
        ends = await consumer.end_offsets(partitions)
        found = []
        while any([await consumer.position(partition) < ends[partition] for partition in partitions]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    if record.value in known:
                        assert record.key.decode() == known[record.value].key
                        found.append(known[record.value])
        return found
    finally:
        await consumer.stop()


async def in_audit(
    sandbox: Sandbox, settings: DatabaseSettings, events: Sequence[OutgoingEvent]
) -> list[dict[str, Any]]:
    """The audit's documents of `events`, in the order of `events`, without their places in the chain."""
    ids = [str(event.id) for event in events]

    def look() -> list[dict[str, Any]]:
        with sandbox.mongo() as client:
            collection = client[settings.mongo_db][f"{settings.schema_name}_audit"]
            found = collection.find({"_id": {"$in": ids}}, {"chain": 0})
            return sorted(found, key=lambda each: ids.index(each["_id"]))

    return await asyncio.to_thread(look)


def documents(events: Sequence[OutgoingEvent]) -> list[dict[str, Any]]:
    """The audit's documents as they must be."""
    return [{"_id": str(event.id)} | json.loads(event.payload) for event in events]


def by_key(events: Sequence[OutgoingEvent]) -> dict[str, list[int]]:
    """The sequence numbers of each key, in the order of `events`."""
    found: dict[str, list[int]] = {}
    for event in events:
        found.setdefault(event.key, []).append(json.loads(event.payload)["sequence"])
    return found


async def chain_of(sandbox: Sandbox, settings: DatabaseSettings) -> list[str]:
    """The ids of the audit's documents in the chain's order; fails where a link does not fit."""

    def look() -> list[dict[str, Any]]:
        with sandbox.mongo() as client:
            collection = client[settings.mongo_db][f"{settings.schema_name}_audit"]
            return list(collection.find({}).sort(f"{CHAIN}.position", 1))

    previous, found = genesis(settings.schema_name), await asyncio.to_thread(look)
    for position, document in enumerate(found, 1):
        previous = link(previous, position, document)
        assert document[CHAIN] == {"position": position, "hash": previous.hex()}
    connection = await sandbox.connect()
    try:
        head = await connection.fetchrow(f"select position, hash from {settings.schema_name}.audit_chain")  # noqa: S608
    finally:
        await connection.close()
    assert head is not None
    assert tuple(head) == (len(found), previous)
    return [document["_id"] for document in found]
