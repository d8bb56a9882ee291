"""What the two sinks of an outbox have in the end: no event may be lost, and none there twice."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Self

import msgspec

from shared.audit import AuditReader
from shared.settings import DatabaseSettings
from shared.testing.topics import batches_of


class _Event(msgspec.Struct):
    id: str
    subject: str


read = msgspec.json.Decoder(_Event).decode
"""Reads the id and the subject of an event, and nothing else of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is not as it must be, and of how many events; `foreign` are those that are where they do not belong."""

    committed: int = 0
    lost: int = 0
    duplicated: int = 0
    unaudited: int = 0
    foreign: int = 0

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
    published, duplicated = await _published(settings, schema)
    audited = await _audited(settings, schema)
    return Found(
        committed=len(committed),
        lost=len(committed - published.keys()),
        duplicated=duplicated,
        unaudited=len(committed - unaudited - audited.keys()),
        foreign=len((published.keys() | audited.keys()) - committed) + len(unaudited & audited.keys()),
    )


async def compare_subjects(settings: DatabaseSettings, schema: str, subjects: set[str]) -> Found:
    """What a schema's topic and audit have of events about `subjects`; those of one have to be those of the other."""
    published, duplicated = await _published(settings, schema)
    audited = await _audited(settings, schema)
    return Found(
        committed=len(published),
        lost=len(subjects.difference(published.values())),
        duplicated=duplicated,
        unaudited=len(subjects.difference(audited.values())),
        foreign=len(published.keys() ^ audited.keys()),
    )


async def _published(settings: DatabaseSettings, schema: str) -> tuple[dict[str, str], int]:
    """The subjects of the events in a schema's topic, by id, and how many are there once more."""
    found, records_read = dict[str, str](), 0
    async for records in batches_of(settings, f"{settings.kafka_topic_prefix}{schema}.events"):
        found |= {event.id: event.subject for event in (read(record.value) for record in records)}
        records_read += len(records)
    return found, records_read - len(found)


async def _audited(settings: DatabaseSettings, schema: str) -> dict[str, str]:
    """The subjects of the events in a schema's audit, by id; each can be there only once."""
    reader = AuditReader(settings)
    try:
        return {event.id: str(event.subject) async for events in reader.events(schema) for event in events}
    finally:
        reader.close()
