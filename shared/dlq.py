"""`python -m shared.dlq list` and `replay`: look at the dead letters, and put them back where they came from.

What was replayed is remembered by the consumer group `dlq-replay`: everything before its committed offset, and what
the commit's metadata names beyond it, as ranges. A broker that keeps no metadata, as the embedded one, remembers the
first part: what was chosen out of order is put back once more then, which the inbox of its consumer makes harmless.
"""

import argparse
import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from shared.dead_letters import MAX_LETTER_BYTES, SUFFIX, DeadLetter
from shared.kafka import START_TIMEOUT_SECONDS, STOP_TIMEOUT_SECONDS, EventProducer, start, stop
from shared.settings import DatabaseSettings, SettingsError, load

GROUP: Final = "dlq-replay"
CHUNK: Final = 100
POLL_MS: Final = 1000
MAX_SILENT_POLLS: Final = 15
COORDINATOR_PAUSE_SECONDS: Final = 0.3
MAX_METADATA_BYTES: Final = 4000  # a broker takes 4,096 by default
MAX_SHOWN_CHARACTERS: Final = 60
INTERRUPTED: Final = 130
_COLUMNS: Final = "{:<26} {:>8}  {:<24}  {:<22}  {:<15}  {:<22}  {:<8}  {}"


class DlqError(Exception):
    """What stops a command; the text is a sentence for the person at the keyboard."""


class DlqSettings(DatabaseSettings):
    """Where the broker is."""

    service = "dlq"
    schema_name = "dlq"


class Replayed(NamedTuple):
    """Which offsets of a partition were replayed: all before `next`, and the half-open ranges `ahead`."""

    next: int = 0
    ahead: tuple[tuple[int, int], ...] = ()

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and (
            offset < self.next or any(first <= offset < end for first, end in self.ahead)
        )

    def and_also(self, offset: int) -> "Replayed":
        """With this offset, too."""
        merged: list[tuple[int, int]] = []
        for first, end in sorted({*self.ahead, (0, self.next), (offset, offset + 1)}):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((first, end))
        return Replayed(merged[0][1], tuple(merged[1:]))

    def commit(self) -> OffsetAndMetadata:
        """As the broker keeps it; raises DlqError when that is too much."""
        metadata = ",".join(f"{first}-{end}" for first, end in self.ahead)
        if len(metadata) > MAX_METADATA_BYTES:
            raise DlqError("Too many older letters were left out: replay those first.")
        return OffsetAndMetadata(self.next, metadata)

    @classmethod
    def read(cls, committed: OffsetAndMetadata | None) -> "Replayed":
        """What `commit` has stored, or nothing."""
        if committed is None or committed.offset < 0:
            return cls()
        pairs = re.findall(r"(\d+)-(\d+)", committed.metadata or "")
        return cls(committed.offset, tuple((int(first), int(end)) for first, end in pairs))


class Found(NamedTuple):
    """A record of a topic of dead letters, and what it says; None where that cannot be read."""

    partition: TopicPartition
    offset: int
    letter: DeadLetter | None
    replayed: bool

    @property
    def state(self) -> str:
        """Whether it can be replayed: waiting, replayed, cut or unreadable."""
        if self.letter is None:
            return "unreadable"
        if self.replayed:
            return "replayed"
        return "waiting" if self.letter.cut_from is None else "cut"


class Shelf:
    """The dead letters of one platform; `topics` are the source topics without prefix, all where none is named."""

    def __init__(self, settings: DatabaseSettings, client: Any, replayed: dict[TopicPartition, Replayed]) -> None:
        self._settings = settings
        self._client = client
        self._replayed = replayed

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: DatabaseSettings, topics: Collection[str] = ()) -> AsyncIterator["Shelf"]:
        """The shelf for the length of the block; raises DlqError for a topic that is not there."""
        prefix = settings.kafka_topic_prefix
        client = AIOKafkaConsumer(
            bootstrap_servers=settings.kafka_bootstrap_servers,
            group_id=prefix + GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            await start(client)
            there = {topic for topic in await client.topics() if topic.startswith(prefix) and topic.endswith(SUFFIX)}
            wanted = {f"{prefix}{topic.removesuffix(SUFFIX)}{SUFFIX}" for topic in topics} or there
            if wanted - there:
                raise DlqError(f"There are no dead letters of {', '.join(sorted(wanted - there))}.")
            partitions = [TopicPartition(t, p) for t in sorted(wanted) for p in await _partitions(client, t)]
            if partitions:
                client.assign(partitions)
            yield cls(settings, client, await _replayed(settings, partitions))
        finally:
            await stop(client)

    async def letters(self) -> AsyncIterator[Found]:
        """Everything that was there when this began, each partition in its order; raises DlqError on silence."""
        partitions = self._client.assignment()
        if not partitions:
            return
        ends = await self._client.end_offsets(partitions)
        begins = await self._client.beginning_offsets(partitions)
        await self._client.seek_to_beginning(*partitions)
        left = {partition for partition in partitions if begins[partition] < ends[partition]}
        silent = 0
        while left:
            batches = await self._client.getmany(*left, timeout_ms=POLL_MS)
            silent = 0 if batches else silent + 1
            if silent > MAX_SILENT_POLLS:
                raise DlqError("The broker does not send the dead letters it says it has.")
            for partition, records in batches.items():
                if records[0].offset == begins[partition]:
                    # Of the embedded broker's last batch the end was its first message; what comes with it is right.
                    ends[partition] = max(ends[partition], self._client.highwater(partition))
                for record in records:
                    if record.offset < ends[partition]:
                        yield self._found(partition, record)
            left = {each for each in left if await self._client.position(each) < ends[each]}

    async def replay(self, chosen: Sequence[Found]) -> None:
        """Put the letters back into the topics they came from, and remember that; raises KafkaError, DlqError."""
        letters = [found.letter for found in chosen if found.letter is not None]
        replayed = dict(self._replayed)
        for found in chosen:
            replayed[found.partition] = replayed[found.partition].and_also(found.offset)
        commits = {partition: replayed[partition].commit() for partition in {found.partition for found in chosen}}
        topics = sorted({letter.topic for letter in letters})
        producer = EventProducer(self._settings, topics, MAX_LETTER_BYTES)
        try:
            await producer.send_messages([letter.replay() for letter in letters])
        finally:
            await producer.close()
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            await self._client.commit(commits)
        self._replayed = replayed

    def _found(self, partition: TopicPartition, record: Any) -> Found:
        try:
            letter = DeadLetter.read(record)
        except (KeyError, ValueError, AttributeError):
            letter = None
        if letter is not None and letter.topic + SUFFIX != partition.topic:
            letter = None  # somebody else's headers; they name a topic to write to
        return Found(partition, record.offset, letter, record.offset in self._replayed[partition])


async def _partitions(client: Any, topic: str) -> list[int]:
    await client._client.add_topic(topic)  # noqa: SLF001 - the only way to wait for a topic's metadata
    return sorted(client.partitions_for_topic(topic) or ())


async def _replayed(
    settings: DatabaseSettings, partitions: Sequence[TopicPartition]
) -> dict[TopicPartition, Replayed]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    try:
        await start(admin)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            committed = await _committed(admin, settings.kafka_topic_prefix + GROUP, partitions)
        return {partition: Replayed.read(committed.get(partition)) for partition in partitions}
    finally:
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            await admin.close()


async def _committed(admin: Any, group: str, partitions: Sequence[TopicPartition]) -> Any:
    """The group's commits; a broker that had no group before takes a while to have one."""
    while True:
        try:
            return await admin.list_consumer_group_offsets(group, partitions=partitions)
        except KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(COORDINATOR_PAUSE_SECONDS)


class _Event(msgspec.Struct):
    type: str = ""
    id: str = ""


def _event(value: bytes | None) -> str:
    """The type and id of the event, as far as they can be read and shown."""
    try:
        event = msgspec.json.decode(value or b"", type=_Event)
    except (ValueError, RecursionError):
        return ""
    text = f"{event.type} {event.id}".strip()[: 2 * MAX_SHOWN_CHARACTERS]
    return "".join(character if character.isprintable() else "?" for character in text)


def _line(found: Found, prefix: str) -> str:
    place = f"{found.partition.partition}:{found.offset}"
    topic = found.partition.topic.removeprefix(prefix)
    letter = found.letter
    if letter is None:
        return _COLUMNS.format(topic, place, "", "", "", "", found.state, "").rstrip()
    when = letter.at.isoformat(timespec="seconds")
    group = letter.group.removeprefix(prefix)
    about = _event(letter.value) + (f" ({letter.detail})" if letter.detail else "")
    return _COLUMNS.format(topic, place, when, group, letter.reason, letter.error, found.state, about).rstrip()


async def show(settings: DatabaseSettings, chosen: argparse.Namespace) -> None:
    """Print the chosen dead letters, a line each."""
    count = waiting = 0
    header = ("TOPIC", "AT", "WHEN", "CONSUMER GROUP", "REASON", "ERROR", "STATE", "EVENT")
    async with Shelf.opened(settings, chosen.topic) as shelf:
        _say(_COLUMNS.format(*header))
        async for found in shelf.letters():
            if _is_chosen(found, chosen, settings.kafka_topic_prefix):
                _say(_line(found, settings.kafka_topic_prefix))
                count += 1
                waiting += found.state == "waiting"
    _say(f"{count} dead letters, {waiting} of them waiting for a replay.")


async def replay(settings: DatabaseSettings, chosen: argparse.Namespace) -> None:
    """Replay the chosen dead letters that wait; those that were replayed before are left alone."""
    done = left = 0
    async with Shelf.opened(settings, chosen.topic) as shelf:
        chunk: list[Found] = []
        async for found in shelf.letters():
            if not _is_chosen(found, chosen, settings.kafka_topic_prefix):
                continue
            if found.state != "waiting":
                left += found.state != "replayed"
                continue
            chunk.append(found)
            if len(chunk) == CHUNK:
                await shelf.replay(chunk)
                done, chunk = done + len(chunk), []
        if chunk:
            await shelf.replay(chunk)
            done += len(chunk)
    _say(f"{done} dead letters replayed" + (f", {left} cut or unreadable ones left." if left else "."))


def _is_chosen(found: Found, chosen: argparse.Namespace, prefix: str) -> bool:
    group = found.letter.group.removeprefix(prefix) if found.letter else None
    return (not chosen.at or (found.partition.partition, found.offset) in chosen.at) and (
        not chosen.group or group in chosen.group
    )


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not PARTITION:OFFSET")
    return int(match[1]), int(match[2])


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main(arguments: Sequence[str]) -> int:
    """Run one command: 0, or 1 with one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m shared.dlq", description=__doc__)
    parser.add_argument("command", choices=("list", "replay"))
    parser.add_argument("--topic", action="append", default=[], help="such as users.events; all where none is named")
    parser.add_argument(
        "--at", action="append", default=[], type=_place, metavar="PARTITION:OFFSET", help="as listed, of one topic"
    )
    parser.add_argument("--group", action="append", default=[], help="of these consumer groups only")
    chosen = parser.parse_args(arguments)
    if chosen.at and len(chosen.topic) != 1:
        parser.error("--at needs one --topic")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # what is wrong is said once, below
    try:
        settings = load(DlqSettings)
        asyncio.run((show if chosen.command == "list" else replay)(settings, chosen))
    except (DlqError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except (KafkaError, TimeoutError, OSError) as error:
        sys.stderr.write(f"error: The broker does not do what it is asked ({type(error).__name__}).\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
