"""Members of a consumer group come, go and are killed."""

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from shared.events import Envelope
from shared.inbox import inbox_table
from shared.settings import ROOT, DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.topics import LIMIT_SECONDS, Topic, registered, running, topic_of
from shared.testing.waiting import eventually


@pytest.fixture
async def topic(sandbox: Sandbox, probe: type[DatabaseSettings]) -> AsyncIterator[Topic]:
    async with topic_of(sandbox, probe) as topic:
        yield topic


class Members:
    """Processes of one group, on tables of a service that exists nowhere else."""

    def __init__(self, topic: Topic, environment: dict[str, str], kind: type[DatabaseSettings], owner: Any) -> None:
        self._topic = topic
        self._owner = owner
        self._schema = kind.schema_name
        self._environment = {
            **os.environ,
            **environment,
            "PYTHONPATH": str(ROOT),
            "MEMBER_SERVICE": kind.service,
            "MEMBER_SCHEMA": kind.schema_name,
            "MEMBER_GROUP": topic.settings.service,
        }

    @asynccontextmanager
    async def one(self, **environment: str) -> AsyncIterator[Process]:
        """A member, killed with the block at the latest."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("member.py")),
            self._topic.name,
            env=self._environment | environment,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def noted(self) -> dict[int, int]:
        """Who has noted what: process ids by number."""
        rows = await self._owner.fetch(f"select id, text from {self._schema}.notes")
        return {row["id"]: int(row["text"]) for row in rows}


@pytest.fixture
async def members(
    topic: Topic,
    sandbox: Sandbox,
    service_kind: Callable[[], AbstractAsyncContextManager[type[DatabaseSettings]]],
    owner: Any,
) -> AsyncIterator[Members]:
    async with service_kind() as kind:
        schema = kind.schema_name
        inbox = str(CreateTable(inbox_table(sa.MetaData(schema=schema))).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
        role = kind.service.replace("-", "_")
        await owner.execute(f"{inbox}; grant select, insert on {schema}.inbox to {role}")
        yield Members(topic, sandbox.environment, kind, owner)


async def test_a_crash_before_the_commit_repeats_a_dead_letter_and_loses_none(topic: Topic, members: Members) -> None:
    await topic.send(registered("1"), b"{", registered("2"))
    async with members.one(MEMBER_DIES="1") as process:
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await process.wait() == 9
    assert (len(await topic.letters()), await topic.committed()) == (1, 0)
    await topic.send(registered("3"))

    async with members.one():
        await topic.handled(4)

    assert [(letter.offset, letter.value) for letter in await topic.letters()] == [(1, b"{")] * 2
    assert sorted(await members.noted()) == [1, 2, 3]


async def test_a_member_that_is_killed_leaves_its_share_to_the_other(topic: Topic, members: Members) -> None:
    total = 600
    for number in range(total // 2):
        await topic.send(registered(str(number)), key=str(number).encode())

    async def both_at_work() -> bool:
        return {first.pid, second.pid} <= set((await members.noted()).values())

    async def complete() -> bool:
        return len(await members.noted()) == total

    async with members.one() as first, members.one() as second:
        sending = asyncio.create_task(_send_slowly(topic, range(total // 2, total)))
        await eventually(both_at_work, LIMIT_SECONDS)
        first.kill()
        await sending
        await eventually(complete, LIMIT_SECONDS)
        await topic.handled(total)

    assert sorted(await members.noted()) == list(range(total))
    assert await topic.letters() == []


async def _send_slowly(topic: Topic, numbers: range) -> None:
    for number in numbers:
        await topic.send(registered(str(number)), key=str(number).encode())
        await asyncio.sleep(0.02)


async def test_no_event_is_handled_twice_when_members_come_and_go(topic: Topic) -> None:
    """Each batch is slow, so that it is in hand when the other member comes, and when it goes."""
    handled: list[str] = []

    async def handle(events: Sequence[Envelope]) -> None:
        await asyncio.sleep(0.5)
        handled.extend(str(event.data["first_name"]) for event in events)

    def many(count: int) -> Callable[[], Awaitable[bool]]:
        async def look() -> bool:
            return len(handled) >= count

        return look

    async with running(topic.consumer(handle)):
        sending = asyncio.create_task(_send_slowly(topic, range(500)))
        await eventually(many(20), LIMIT_SECONDS)
        async with running(topic.consumer(handle)):
            await eventually(many(250), LIMIT_SECONDS)
        await sending
        await eventually(many(500), LIMIT_SECONDS)
        await topic.handled(500)

    assert sorted(map(int, handled)) == list(range(500))


async def test_a_consumer_that_is_stopped_commits_what_is_done_and_reads_the_rest_again(topic: Topic) -> None:
    calls: list[set[str]] = []

    async def hang_at_the_second(events: Sequence[Envelope]) -> None:
        calls.append({str(event.data["first_name"]) for event in events})
        if len(calls) == 2:
            await asyncio.Event().wait()

    async def handle(events: Sequence[Envelope]) -> None:
        calls.append({str(event.data["first_name"]) for event in events})

    async def hangs() -> bool:
        return len(calls) == 2

    names = {str(number) for number in range(20)}
    for name in names:
        await topic.send(registered(name), key=name.encode())

    async with running(topic.consumer(hang_at_the_second)):
        await eventually(hangs, LIMIT_SECONDS)

    assert await topic.committed() == len(calls[0]) > 0
    async with running(topic.consumer(handle)):
        await topic.handled(20)
    assert set().union(*calls[2:]) == names - calls[0]
