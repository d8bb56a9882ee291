"""What the two sinks of an outbox have in the end: no event may be lost, and none there twice."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Self

import msgspec

from shared.audit import AuditReader
from shared.settings import DatabaseSettings
from shared.testing.topics import batches_of


class _Id(msgspec.Struct):
    id: str


id_in = msgspec.json.Decoder(_Id).decode
"""Reads the id of an event, and nothing else of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is not as it must be, and of how many events; `foreign` are those that nobody committed."""

    committed: int
    lost: int
    duplicated: int
    unaudited: int
    foreign: int

    @property
    def is_good(self) -> bool:
        """Each event once in Kafka and once in the audit, and nothing else."""
        return not (self.lost or self.duplicated or self.unaudited or self.foreign)

    def __add__(self, other: Self) -> "Found":
        return Found(
            self.committed + other.committed,
            self.lost + other.lost,
            self.duplicated + other.duplicated,
            self.unaudited + other.unaudited,
            self.foreign + other.foreign,
        )


async def compare(
    settings: DatabaseSettings, schema: str, committed: AbstractSet[str], unaudited: AbstractSet[str] = frozenset()
) -> Found:
    """What a schema's topic and audit have of the `committed` ids, of which the `unaudited` may not be in it."""
    published, duplicated = await published_by(settings, schema)
    audited = await audited_by(settings, schema)
    return Found(
        committed=len(committed),
        lost=len(committed - published),
        duplicated=duplicated,
        unaudited=len(committed - unaudited - audited),
        foreign=len((published | audited) - committed) + len(unaudited & audited),
    )


async def published_by(settings: DatabaseSettings, schema: str) -> tuple[set[str], int]:
    """The ids of the events in a schema's topic, and how many are there once more."""
    found, again = set[str](), 0
    async for records in batches_of(settings, f"{settings.kafka_topic_prefix}{schema}.events"):
        ids = [id_in(record.value).id for record in records]
        before = len(found)
        found.update(ids)
        again += len(ids) - (len(found) - before)
    return found, again


async def audited_by(settings: DatabaseSettings, schema: str) -> set[str]:
    """The ids of the events in a schema's audit, where each can be only once."""
    reader = AuditReader(settings)
    try:
        return {event.id async for events in reader.events(schema) for event in events}
    finally:
        reader.close()
