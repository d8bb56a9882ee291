"""What a consumer does with messages that make no sense, and with failures."""

import json
from collections.abc import AsyncIterator, Sequence

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from shared import consumer as consuming
from shared.consumer import each
from shared.database import Database
from shared.dead_letters import MAX_LETTER_BYTES
from shared.events import Envelope, OutgoingEvent, UserRegistered, WalletCreated
from shared.ids import new_id
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.topics import LIMIT_SECONDS, Topic, records_of, registered, running, topic_of
from shared.testing.waiting import eventually


@pytest.fixture
async def topic(sandbox: Sandbox, probe: type[DatabaseSettings]) -> AsyncIterator[Topic]:
    async with topic_of(sandbox, probe) as topic:
        yield topic


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "ATTEMPT_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(consuming, "MIN_BACKOFF_SECONDS", 0.05)


class Hearer:
    """Remembers what it was handed, each first name once, and fails where it is told to."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.calls: list[str] = []
        self.failures: dict[str, list[Exception]] = {}

    async def hear(self, envelope: Envelope) -> None:
        name = str(envelope.data["first_name"])
        self.calls.append(name)
        if failures := self.failures.get(name):
            raise failures.pop(0) if len(failures) > 1 else failures[0]
        if name not in self.heard:
            self.heard.append(name)

    async def until(self, *names: str) -> None:
        async def look() -> bool:
            return self.heard[-len(names) :] == list(names)

        await eventually(look, LIMIT_SECONDS)


def changed(name: str, **changes: object) -> bytes:
    return json.dumps(json.loads(registered(name)) | changes).encode()


def without(name: str, field: str) -> bytes:
    envelope = json.loads(registered(name))
    del envelope[field]
    return json.dumps(envelope).encode()


BAD = {
    "malformed JSON": (b'{"type": "users.registered.v1", ', "malformed", "DecodeError"),
    "no value": (None, "malformed", "DecodeError"),
    "not UTF-8": (b'{"type": "users.registered.v1\xff"}', "malformed", "UnicodeDecodeError"),
    "deep JSON": (b'{"type": "users.registered.v1", "x": ' + b"[" * 200_000, "malformed", "RecursionError"),
    "no type": (without("x", "type"), "invalid", "ValidationError"),
    "a missing field": (without("x", "subject"), "invalid", "ValidationError"),
    "2 MB": (changed("x", padding="x" * 2_000_000), "too_large", "TooLargeError"),
    "an unknown version": (changed("x", type="users.registered.v2"), "unknown_version", "UnknownVersionError"),
}


async def test_messages_without_sense_are_dead_letters_and_those_between_them_are_handled(topic: Topic) -> None:
    hearer = Hearer()
    for number, (value, *_) in enumerate(BAD.values()):
        await topic.send(value, registered(str(number)))

    async with running(topic.consumer(each(hearer.hear))):
        await hearer.until(*(str(number) for number in range(len(BAD))))
        await topic.handled(2 * len(BAD))

    letters = await topic.letters()
    assert [(letter.offset // 2, letter.value, letter.reason, letter.error) for letter in letters] == [
        (number, *expected) for number, expected in enumerate(BAD.values())
    ]
    group = topic.settings.kafka_topic_prefix + topic.settings.service
    assert {(letter.topic, letter.key, letter.group, letter.cut_from) for letter in letters} == {
        (topic.full_name, b"key", group, None)
    }
    assert topic.figure("consumer_dead_letters_total", reason="malformed") == 4
    assert topic.figure("consumer_handled_total") == len(BAD)


async def test_what_the_broker_would_not_take_is_cut_and_says_so(topic: Topic) -> None:
    size = MAX_LETTER_BYTES + 1
    await topic.send(b"x" * size)

    async with running(topic.consumer(each(Hearer().hear))):
        await topic.handled(1)

    [letter] = await topic.letters()
    assert (letter.reason, letter.cut_from, letter.value) == ("too_large", size, b"x" * 256 * 1024)


async def test_types_of_others_are_nobodys_dead_letters(topic: Topic) -> None:
    hearer = Hearer()
    created = WalletCreated(wallet_id=new_id(), user_id=new_id(), currency="USD")
    event = OutgoingEvent.of(created, subject=created.wallet_id, sequence=1, actor="test")
    await topic.send(event.payload.encode(), changed("x", type="weather.changed.v1"), changed("x", type="odd"))
    await topic.send(registered("last"))

    async with running(topic.consumer(each(hearer.hear))):
        await hearer.until("last")

    assert (hearer.calls, await topic.letters()) == (["last"], [])


async def test_what_the_handler_finds_senseless_says_which_field_and_never_what_it_holds(topic: Topic) -> None:
    async def handle(envelope: Envelope) -> None:
        UserRegistered.model_validate(envelope.data)
        await hearer.hear(envelope)

    hearer = Hearer()
    data = json.loads(registered("bad"))["data"] | {"user_id": "4111111111111111"}
    await topic.send(registered("before"), changed("bad", data=data), registered("after"))

    async with running(topic.consumer(each(handle))):
        await hearer.until("before", "after")
        await topic.handled(3)

    [letter] = await topic.letters()
    assert (letter.reason, letter.error, letter.detail) == ("invalid", "ValidationError", "user_id: uuid_parsing")


async def test_an_outage_is_waited_out_and_nothing_is_given_up(topic: Topic) -> None:
    hearer = Hearer()
    hearer.failures["second"] = [ConnectionError("the database is not available")]
    await topic.send(registered("first"), registered("second"), registered("third"))

    async with running(topic.consumer(each(hearer.hear))):

        async def tried() -> bool:
            return hearer.calls.count("second") >= 5

        await eventually(tried, LIMIT_SECONDS)
        assert (await topic.committed(), topic.figure("consumer_lag", partition=await _partition(topic))) == (0, 3)
        hearer.failures.clear()
        await hearer.until("first", "second", "third")
        await topic.handled(3)

        async def caught_up() -> bool:
            return topic.figure("consumer_lag", partition=partition) == 0

        partition = await _partition(topic)
        await eventually(caught_up)

    assert await topic.letters() == []
    assert (topic.figure("consumer_retries_total", cause="outage") or 0) >= 4


async def _partition(topic: Topic) -> str:
    [record, *_] = await records_of(topic.settings, topic.full_name)
    return str(record.partition)


async def test_one_partition_that_waits_does_not_hold_up_the_others(topic: Topic) -> None:
    hearer = Hearer()
    hearer.failures["stuck"] = [OSError("locked")]
    await topic.send(registered("stuck"))
    stuck = await _partition(topic)
    keys = [str(number).encode() for number in range(20)]

    async with running(topic.consumer(each(hearer.hear))):
        for key in keys:
            await topic.send(registered(key.decode()), key=key)
        elsewhere = {
            r.key.decode() for r in await records_of(topic.settings, topic.full_name) if str(r.partition) != stuck
        }

        async def handled() -> bool:
            return elsewhere <= set(hearer.heard)

        await eventually(handled, LIMIT_SECONDS)

    assert len(elsewhere) > 3
    assert "stuck" not in hearer.heard


async def test_who_lingers_does_not_while_more_is_waiting(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "MAX_RECORDS", 2)
    hearer = Hearer()
    names = [str(number) for number in range(40)]
    await topic.send(*map(registered, names))

    # A pause after each two would take twice as long as `until` has patience for.
    async with running(topic.consumer(each(hearer.hear), linger_seconds=LIMIT_SECONDS / 10)):
        await hearer.until(*names)


async def test_a_bug_is_tried_again_a_few_times_then_its_event_alone_is_given_up(
    topic: Topic, sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    database = Database(sandbox.settings(probe))
    hearer = Hearer()

    async def handle(envelope: Envelope) -> None:
        await hearer.hear(envelope)
        async with database.transaction() as session:
            number = 1 if envelope.data["first_name"] == "double" else new_id().int % 2**60 + 2
            await session.execute(sa.text("insert into notes values (:id, 'x')"), {"id": number})

    async with database.transaction() as session:
        await session.execute(sa.text("insert into notes values (1, 'x')"))
    await topic.send(registered("before"), registered("double"), registered("after"))

    async with running(topic.consumer(each(handle))):
        await hearer.until("before", "double", "after")
        await topic.handled(3)
    await database.close()

    [letter] = await topic.letters()
    assert (letter.offset, letter.reason, letter.error) == (1, "failed", IntegrityError.__name__)
    assert hearer.calls.count("double") == 4 + 2
    assert topic.figure("consumer_retries_total", cause="event") == 3 + 1


async def test_a_bug_that_passes_is_no_dead_letter(topic: Topic) -> None:
    hearer = Hearer()

    async def handle(events: Sequence[Envelope]) -> None:
        hearer.calls.append("call")
        if len(hearer.calls) < 3:
            raise RuntimeError("not yet")
        hearer.heard += [str(event.data["first_name"]) for event in events]

    await topic.send(registered("one"))
    async with running(topic.consumer(handle)):
        await hearer.until("one")
        await topic.handled(1)

    assert (len(hearer.calls), await topic.letters()) == (3, [])
