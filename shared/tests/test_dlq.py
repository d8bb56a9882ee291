"""Dead letters are listed, replayed for the group that gave them up, and not twice."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.structs import OffsetAndMetadata

from shared.consumer import Consumer, each
from shared.dead_letters import MAX_LETTER_BYTES
from shared.dlq import Replayed, main
from shared.events import Envelope, UserRegistered
from shared.settings import ROOT, DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.topics import LIMIT_SECONDS, Topic, records_of, registered, running, topic_of
from shared.testing.waiting import eventually


def dlq(sandbox: Sandbox, *arguments: str) -> str:
    """What the command prints, on standard error where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "shared.dlq", *arguments],
        env={**os.environ, **sandbox.environment, "ENV_FILE": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == bool(done.stderr)
    return done.stderr or done.stdout


@pytest.fixture
async def topic(sandbox: Sandbox, probe: type[DatabaseSettings]) -> AsyncIterator[Topic]:
    async with topic_of(sandbox, probe) as topic:
        yield topic


async def test_a_replayed_letter_is_handled_by_the_group_that_gave_it_up_and_by_no_other(
    topic: Topic, sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    """The first group cannot handle the event at first; the other one could at once."""
    heard: dict[str, list[str]] = {"first": [], "other": []}
    broken = True

    async def first(envelope: Envelope) -> None:
        if broken and envelope.data["first_name"] != "good":
            raise RuntimeError("a bug")
        heard["first"].append(str(envelope.data["first_name"]))

    async def other(envelope: Envelope) -> None:
        heard["other"].append(str(envelope.data["first_name"]))

    class OtherSettings(probe):  # type: ignore[valid-type, misc]
        service = "other-group"

    one, two = registered("one"), registered("two")
    await topic.send(one, two, registered("good"))
    second = Consumer(sandbox.settings(OtherSettings), [topic.name], each(other), [UserRegistered.type])
    async with running(topic.consumer(each(first))), running(second):
        await topic.handled(3)
        listed = dlq(sandbox, "list", "--topic", topic.name)
        [_, line, *_, total] = listed.splitlines()
        place, event_id = line.split()[1], json.loads(one)["id"]
        assert line.split()[3:] == [
            topic.settings.service,
            "failed",
            "RuntimeError",
            "waiting",
            UserRegistered.type,
            event_id,
        ]
        assert total == "2 dead letters, 2 of them waiting for a replay."
        broken = False

        assert dlq(sandbox, "replay", "--topic", topic.name, "--at", place) == "1 dead letters replayed.\n"
        await topic.handled(4)
        assert heard["first"] == ["good", "one"]
        assert dlq(sandbox, "replay", "--topic", topic.name) == "1 dead letters replayed.\n"
        await topic.handled(5)
        assert dlq(sandbox, "replay", "--topic", topic.name) == "0 dead letters replayed.\n"
        await topic.send(registered("good"))
        await topic.handled(6)

        async def all_heard() -> bool:
            return len(heard["other"]) >= 4

        await eventually(all_heard, LIMIT_SECONDS)

    assert heard == {"first": ["good", "one", "two", "good"], "other": ["one", "two", "good", "good"]}
    values = [record.value for record in await records_of(topic.settings, topic.full_name)]
    assert values[3:5] == [one, two]
    assert dlq(sandbox, "list", "--topic", topic.name).count(" replayed ") == 2


async def test_what_was_cut_or_is_no_dead_letter_is_listed_and_never_replayed(topic: Topic, sandbox: Sandbox) -> None:
    async def hear(_: Envelope) -> None:
        raise AssertionError

    await topic.send(b"x" * (MAX_LETTER_BYTES + 1))
    async with running(topic.consumer(each(hear))):
        await topic.handled(1)
    await topic.send(b"{}", suffix=".dlq")

    listed = dlq(sandbox, "list", "--topic", topic.name)
    replayed = dlq(sandbox, "replay", "--topic", topic.name)

    assert (listed.count(" cut"), listed.count(" unreadable")) == (1, 1)
    assert replayed == "0 dead letters replayed, 2 cut or unreadable ones left.\n"
    assert len(await records_of(topic.settings, topic.full_name)) == 1


async def test_a_topic_without_dead_letters_is_named(sandbox: Sandbox) -> None:
    prefix = sandbox.environment["KAFKA_TOPIC_PREFIX"]

    said = dlq(sandbox, "list", "--topic", "nobodys.events")

    assert said == f"error: There are no dead letters of {prefix}nobodys.events.dlq.\n"


def test_a_place_alone_does_not_choose(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["replay", "--at", "0:1"])

    assert "--at needs one --topic" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("offsets", "expected"),
    [
        ([], Replayed()),
        ([0, 1, 2], Replayed(3)),
        ([2, 0], Replayed(1, ((2, 3),))),
        ([5, 3, 4, 9], Replayed(0, ((3, 6), (9, 10)))),
        ([1, 2, 0], Replayed(3)),
        ([1, 1], Replayed(0, ((1, 2),))),
    ],
)
def test_what_was_replayed_is_remembered_in_an_offset_and_ranges(offsets: list[int], expected: Replayed) -> None:
    replayed = Replayed()
    for offset in offsets:
        replayed = replayed.and_also(offset)

    assert replayed == expected
    assert Replayed.read(replayed.commit()) == expected
    assert {offset for offset in range(12) if offset in replayed} == set(offsets)


@pytest.mark.parametrize("committed", [None, OffsetAndMetadata(-1, "")])
def test_nothing_was_replayed_where_nothing_was_committed(committed: Any) -> None:
    assert Replayed.read(committed) == Replayed()
