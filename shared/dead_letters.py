"""Dead letters: messages that a consumer gave up, kept as they came, with the reason, in `<topic>.dlq`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, NamedTuple, Self

import msgspec
import pydantic
from aiokafka.errors import MessageSizeTooLargeError

from shared.kafka import EventProducer, Message
from shared.settings import DatabaseSettings

SUFFIX: Final = ".dlq"
HEADER: Final = "dlq-"
REPLAY_FOR: Final = "replay-for"  # a replayed message is for this consumer group alone
MAX_LETTER_BYTES: Final = 4 * 1_048_576
CUT_BYTES: Final = 256 * 1024
MAX_DETAIL_CHARACTERS: Final = 500


class TooLargeError(ValueError):
    """The value is larger than any event."""


class UnknownVersionError(ValueError):
    """The type is one that is handled here, in a version that is not."""


class FailedError(Exception):
    """The handler failed on this event alone, as often as it was tried; `__cause__` says how."""


def reason_of(error: BaseException) -> str:
    """Why a message is given up, in a word that is stable enough for a metric."""
    match error:
        case TooLargeError():
            return "too_large"
        case UnknownVersionError():
            return "unknown_version"
        case FailedError():
            return "failed"
        case msgspec.ValidationError() | pydantic.ValidationError():
            return "invalid"
        case msgspec.DecodeError() | RecursionError() | UnicodeDecodeError():
            return "malformed"
    return "senseless"


class DeadLetter(NamedTuple):
    """A message that `group` gave up, where it was and why. `headers` are those that it came with."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    group: str
    reason: str
    error: str
    detail: str
    at: datetime
    cut_from: int | None = None  # how many bytes the value had, where it is not whole

    @classmethod
    def of(cls, record: Any, group: str, error: BaseException) -> Self:
        """The record of aiokafka's that `group` cannot handle because of `error`."""
        cause = error.__cause__ if isinstance(error, FailedError) and error.__cause__ else error
        return cls(
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value,
            _foreign(record.headers),
            group,
            reason_of(error),
            type(cause).__name__,
            _detail(cause),
            datetime.now(UTC),
        )

    @classmethod
    def read(cls, record: Any) -> Self:
        """The dead letter in a record of a `.dlq` topic; raises ValueError or KeyError if it is none."""
        said = {name: value.decode() for name, value in record.headers if name.startswith(HEADER)}
        return cls(
            said["dlq-topic"],
            int(said["dlq-partition"]),
            int(said["dlq-offset"]),
            record.key,
            record.value,
            _foreign(record.headers),
            said["dlq-group"],
            said["dlq-reason"],
            said["dlq-error"],
            said.get("dlq-detail", ""),
            datetime.fromisoformat(said["dlq-time"]),
            int(said["dlq-cut-from"]) if "dlq-cut-from" in said else None,
        )

    def message(self) -> Message:
        """What goes to the topic of dead letters."""
        said = {
            "dlq-reason": self.reason,
            "dlq-error": self.error,
            "dlq-detail": self.detail,
            "dlq-group": self.group,
            "dlq-topic": self.topic,
            "dlq-partition": str(self.partition),
            "dlq-offset": str(self.offset),
            "dlq-time": self.at.isoformat(timespec="milliseconds"),
        }
        if self.cut_from is not None:
            said["dlq-cut-from"] = str(self.cut_from)
        headers = [(name, value.encode()) for name, value in said.items() if value]
        return Message(self.topic + SUFFIX, self.key, self.value, [*self.headers, *headers])

    def replay(self) -> Message:
        """What goes back to the topic it came from, for the group that gave it up."""
        return Message(self.topic, self.key, self.value, [*self.headers, (REPLAY_FOR, self.group.encode())])

    def cut(self) -> Self:
        """With the beginning of the value and of the key only."""
        value, key = self.value or b"", self.key
        return self._replace(value=value[:CUT_BYTES], key=key and key[:CUT_BYTES], headers=(), cut_from=len(value))


class DeadLetters:
    """One consumer's way to the topics of dead letters, `topics` with their suffix."""

    def __init__(self, settings: DatabaseSettings, topics: Sequence[str]) -> None:
        self._producer = EventProducer(settings, topics, MAX_LETTER_BYTES)

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Store the letters; returns when the broker has each. Raises KafkaError or TimeoutError when it has not.

        What is too large for the broker is cut, and says so.
        """
        for large, run in groupby(letters, key=lambda letter: len(letter.value or b"") > CUT_BYTES):
            if large:
                for letter in run:
                    await self._send_alone(letter)
            else:
                await self._producer.send_messages([letter.message() for letter in run])

    async def _send_alone(self, letter: DeadLetter) -> None:
        try:
            await self._producer.send_messages([letter.message()])
        except MessageSizeTooLargeError:
            await self._producer.send_messages([letter.cut().message()])

    async def close(self) -> None:
        """Let go of the broker."""
        await self._producer.close()


def is_for(record: Any, group: str) -> bool:
    """Whether a message concerns the group: all do, but those that are replayed for another one."""
    return all(value == group.encode() for name, value in record.headers if name == REPLAY_FOR)


def _foreign(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers that are not of dead letters and replays."""
    return [(name, value) for name, value in headers if not name.startswith(HEADER) and name != REPLAY_FOR]


def _detail(error: BaseException) -> str:
    """Which fields are wrong and how; never what they hold, and nothing of other errors' texts, which may say it."""
    if not isinstance(error, pydantic.ValidationError):
        return ""
    wrong = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['type']}" for each in wrong)[:MAX_DETAIL_CHARACTERS]
