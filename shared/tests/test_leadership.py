"""Processes of one service, of which one relays: whoever dies or freezes, nothing is lost or out of order."""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from shared.audit import AuditLog
from shared.background import running
from shared.chain import ChainBrokenError
from shared.chain_head import Chain, LeadershipLostError
from shared.database import Database
from shared.events import OutgoingEvent
from shared.outbox import LEADERS_SILENCE_SECONDS, Relay
from shared.settings import ROOT, DatabaseSettings
from shared.testing.relayed import by_key, chain_of, commit, documents, events_of, in_audit, in_kafka
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LEADER_LOCK: Final = 0x6F757462
PROGRAM: Final = Path(__file__).parent / "relay_process.py"


@pytest.fixture
async def settings(sandbox: Sandbox, service_kind: Any) -> AsyncIterator[DatabaseSettings]:
    async with service_kind() as kind:
        yield sandbox.settings(kind)


@pytest.fixture
async def database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(settings)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def empty(owner: Owner, settings: DatabaseSettings) -> Callable[[], Awaitable[bool]]:
    async def is_empty() -> bool:
        return not await owner.fetchval(f"select count(*) from {settings.schema_name}.outbox")

    return is_empty


@pytest.fixture
async def start(sandbox: Sandbox, settings: DatabaseSettings) -> AsyncIterator[Callable[[], Awaitable[Process]]]:
    """Starts one more process that relays."""
    started: list[Process] = []

    async def start_one() -> Process:
        started.append(
            await asyncio.create_subprocess_exec(
                *(sys.executable, str(PROGRAM), settings.service, settings.schema_name),
                env=os.environ | sandbox.environment | {"PYTHONPATH": str(ROOT)},
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def term(owner: Owner, settings: DatabaseSettings) -> int:
    """How often somebody has begun to lead."""
    found: int | None = await owner.fetchval(f"select term from {settings.schema_name}.audit_chain")
    return found or 0


async def leads_since(owner: Owner, settings: DatabaseSettings, before: int) -> None:
    async def another() -> bool:
        return await term(owner, settings) > before

    await eventually(another, LEADERS_SILENCE_SECONDS + 20.0)


@asynccontextmanager
async def load(database: Database, events: Sequence[OutgoingEvent]) -> AsyncIterator[None]:
    """Commits `events`, a few at a time, while the block runs; all of them when it has ended."""

    async def write() -> None:
        for first in range(0, len(events), 20):
            await commit(database, events[first : first + 20])
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311 - no secret

    writing = asyncio.create_task(write())
    try:
        yield
    finally:
        await writing


async def assert_all_told(sandbox: Sandbox, settings: DatabaseSettings, events: Sequence[OutgoingEvent]) -> None:
    published = list(dict.fromkeys(await in_kafka(settings, events)))  # a repeat comes after the first
    assert by_key(published) == by_key(events)
    assert len(published) == len(events)
    assert await in_audit(sandbox, settings, events) == documents(events)
    assert sorted(await chain_of(sandbox, settings)) == sorted(str(event.id) for event in events)


async def test_when_the_leader_is_killed_under_load_another_goes_on(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, start: Any, empty: Any
) -> None:
    events = events_of(settings, keys=10, each=300)
    leader = await start()
    await leads_since(owner, settings, 0)
    async with load(database, events):
        for _ in range(4):
            follower = await start()
            await asyncio.sleep(random.uniform(0.3, 0.6))  # noqa: S311 - somewhere in the middle of its work
            before = await term(owner, settings)
            leader.kill()
            await leads_since(owner, settings, before)
            leader = follower
    await eventually(empty, 30.0)

    await assert_all_told(sandbox, settings, events)


async def test_a_leader_that_wakes_after_another_has_taken_over_changes_nothing(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, start: Any, empty: Any
) -> None:
    events = events_of(settings, keys=10, each=200)
    early, meanwhile, late = events[:800], events[800:1400], events[1400:]
    frozen = await start()
    await leads_since(owner, settings, 0)
    async with load(database, early):
        await start()
        await asyncio.sleep(0.3)
        before = await term(owner, settings)
        frozen.send_signal(signal.SIGSTOP)
        await leads_since(owner, settings, before)
    async with load(database, meanwhile):
        await asyncio.sleep(0.1)
    await eventually(empty, 30.0)

    async with load(database, late):
        frozen.send_signal(signal.SIGCONT)
    await eventually(empty, 30.0)

    assert await term(owner, settings) == before + 1
    await assert_all_told(sandbox, settings, events)


@pytest.fixture
async def audit(settings: DatabaseSettings) -> AsyncIterator[AuditLog]:
    audit = AuditLog(settings)
    yield audit
    audit.close()


async def rows_of(owner: Owner, settings: DatabaseSettings) -> list[asyncpg.Record]:
    return await owner.fetch(f"select * from {settings.schema_name}.outbox order by position")


async def leading(database: Database, settings: DatabaseSettings) -> Chain:
    chain = Chain(database, settings.schema_name)
    connection = await database.connect()
    await chain.lead(connection)
    await connection.close()
    chain.settle((await chain.claimed()).claimed)
    return chain


async def test_who_led_before_can_claim_nothing(database: Database, owner: Owner, settings: DatabaseSettings) -> None:
    await commit(database, events_of(settings, keys=1, each=3))
    rows = await rows_of(owner, settings)
    first = await leading(database, settings)
    second = await leading(database, settings)

    with pytest.raises(LeadershipLostError):
        await first.claim(rows)
    with pytest.raises(LeadershipLostError):
        await first.claimed()
    assert [document["chain"]["position"] for document in await second.claim(rows)] == [1, 2, 3]


async def test_what_was_claimed_and_not_written_is_written_by_the_next_leader_at_the_same_positions(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, empty: Any
) -> None:
    """Also when older rows have been committed since: their transactions took longer."""
    events = events_of(settings, keys=2, each=5)
    await commit(database, events)
    rows = await rows_of(owner, settings)
    claimed = await (await leading(database, settings)).claim(rows[4:])

    await run_until(empty, database, settings)

    assert await chain_of(sandbox, settings) == [
        *(document["_id"] for document in claimed),
        *(str(row["event_id"]) for row in rows[:4]),
    ]


async def test_what_was_written_and_not_deleted_is_the_same_when_it_is_repeated(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, empty: Any, audit: AuditLog
) -> None:
    events = events_of(settings, keys=2, each=5)
    await commit(database, events)
    written = await (await leading(database, settings)).claim(await rows_of(owner, settings))
    await audit.write(written[3:6])  # a part of them

    await run_until(empty, database, settings)

    assert await chain_of(sandbox, settings) == [document["_id"] for document in written]


async def test_what_a_release_without_addresses_has_claimed_is_written_as_it_claimed_it(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, empty: Any, audit: AuditLog
) -> None:
    """As while this release is rolled out: rows of new processes, carried by an old one until it ends."""
    events = [event._replace(ip="203.0.113.7") for event in events_of(settings, keys=1, each=4)]
    await commit(database, events)
    rows: Any = [dict(row) | {"ip": None} for row in await rows_of(owner, settings)]  # as the old one read them
    claimed = await (await leading(database, settings)).claim(rows)
    await audit.write(claimed[:2])
    later = [event._replace(ip="203.0.113.8") for event in events_of(settings, keys=1, each=1)]
    await commit(database, later)

    await run_until(empty, database, settings)

    assert await chain_of(sandbox, settings) == [str(event.id) for event in events + later]
    with sandbox.mongo() as client:
        found = client[settings.mongo_db][f"{settings.schema_name}_audit"].find().sort("chain.position")
        assert [document.get("ip") for document in found] == [None] * 4 + ["203.0.113.8"]


async def test_a_document_that_an_older_release_wrote_gets_its_place(
    sandbox: Sandbox, database: Database, settings: DatabaseSettings, empty: Any
) -> None:
    """It had written the document, and had not come to delete the row."""
    events = events_of(settings, keys=1, each=4)
    with sandbox.mongo() as client:
        client[settings.mongo_db][f"{settings.schema_name}_audit"].insert_many(documents(events[:2]))
    await commit(database, events)

    await run_until(empty, database, settings)

    assert await chain_of(sandbox, settings) == [str(event.id) for event in events]


async def test_a_place_that_another_document_has_is_not_taken(
    database: Database, owner: Owner, settings: DatabaseSettings, audit: AuditLog
) -> None:
    """As when Postgres was restored to an earlier moment."""
    await commit(database, events_of(settings, keys=1, each=2))
    documents = await (await leading(database, settings)).claim(await rows_of(owner, settings))
    await audit.write([{"_id": "another", "chain": {"position": 2, "hash": "00"}}])

    with pytest.raises(ChainBrokenError, match=f"event {documents[1]['_id']} cannot take position 2"):
        await audit.write(documents)


async def test_a_claim_whose_rows_have_changed_is_told_and_not_written(
    database: Database, owner: Owner, settings: DatabaseSettings
) -> None:
    await commit(database, events_of(settings, keys=1, each=3))
    rows = await rows_of(owner, settings)
    await (await leading(database, settings)).claim(rows)
    changed = json.loads(rows[0]["payload"]) | {"text": "another"}
    await owner.execute(
        f"update {settings.schema_name}.outbox set payload = $1 where position = $2",
        json.dumps(changed),
        rows[0]["position"],
    )
    registry = CollectorRegistry()
    relay = Relay(database, settings, registry)

    async def refused() -> bool:
        return (registry.get_sample_value("outbox_failures_total", {"sink": "audited"}) or 0) >= 2

    async with running(relay.run):
        await eventually(refused)
    await relay.close()
    assert len(await rows_of(owner, settings)) == 3


async def run_until(done: Callable[[], Awaitable[bool]], database: Database, settings: DatabaseSettings) -> None:
    relay = Relay(database, settings, CollectorRegistry())
    async with running(relay.run):
        await eventually(done)
    await relay.close()
