"""The relay over real sinks: everything that was committed arrives, in order, whatever goes out meanwhile."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from shared import outbox
from shared.audit import AuditLog
from shared.background import running
from shared.database import Database
from shared.outbox import Relay
from shared.settings import DatabaseSettings
from shared.testing.relayed import TABLE, by_key, commit, documents, events_of, in_audit, in_kafka
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Line = tuple[int, Callable[[], None], Callable[[], None]]
Lines = Callable[[str, int], AbstractAsyncContextManager[Line]]
Empty = Callable[[], Awaitable[bool]]


@pytest.fixture(scope="module")
def settings(sandbox: Sandbox, probe: type[DatabaseSettings]) -> DatabaseSettings:
    return sandbox.settings(probe)


@pytest.fixture(scope="module")
async def database(settings: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(settings)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
async def rows(
    owner: Owner, settings: DatabaseSettings
) -> AsyncIterator[Callable[[], Awaitable[list[asyncpg.Record]]]]:
    """What waits in the outbox, nothing at first."""
    await owner.execute(f"truncate {settings.schema_name}.outbox")

    async def waiting() -> list[asyncpg.Record]:
        return await owner.fetch(f"select * from {settings.schema_name}.outbox order by position")

    yield waiting
    await owner.execute(f"truncate {settings.schema_name}.outbox")


@pytest.fixture
def empty(rows: Callable[[], Awaitable[list[asyncpg.Record]]]) -> Empty:
    async def is_empty() -> bool:
        return not await rows()

    return is_empty


@asynccontextmanager
async def relaying(database: Database, settings: DatabaseSettings) -> AsyncIterator[Relay]:
    """A relay at work; like a process that is killed, it ends wherever it is."""
    relay = Relay(database, settings, CollectorRegistry())
    try:
        async with running(relay.run):
            yield relay
    finally:
        await relay.close()


async def test_what_was_committed_reaches_both_sinks_once_and_each_key_in_order(
    sandbox: Sandbox, database: Database, settings: DatabaseSettings, empty: Empty
) -> None:
    events = events_of(settings, keys=7, each=90)  # more than one batch of the relay
    assert len(events) > outbox.BATCH_SIZE
    await commit(database, events)

    async with relaying(database, settings):
        await eventually(empty)

    published = await in_kafka(settings, events)
    assert len(published) == len(events)
    assert by_key(published) == by_key(events) == {event.key: list(range(1, 91)) for event in events[:7]}
    assert await in_audit(sandbox, settings, events) == documents(events)


async def test_a_relay_at_work_finds_what_is_committed_later(
    sandbox: Sandbox, database: Database, settings: DatabaseSettings, empty: Empty
) -> None:
    async with relaying(database, settings) as relay:
        events = events_of(settings, keys=2, each=3)
        for event in events:
            await commit(database, [event])
            relay.wake()
        await eventually(empty)

    assert by_key(await in_kafka(settings, events)) == {event.key: [1, 2, 3] for event in events[:2]}
    assert await in_audit(sandbox, settings, events) == documents(events)


async def test_what_was_not_committed_is_never_told(
    sandbox: Sandbox, database: Database, settings: DatabaseSettings, empty: Empty
) -> None:
    undone, done = events_of(settings, keys=1, each=2), events_of(settings, keys=1, each=1)

    async def fail_by_session() -> None:
        async with database.transaction() as session:
            await outbox.append(session, TABLE, undone)
            raise LookupError

    async def fail_by_batch() -> None:
        async with database.batch() as connection:
            await outbox.append_batch(connection, undone)
            raise LookupError

    async with relaying(database, settings):
        for fail in (fail_by_session, fail_by_batch):
            with pytest.raises(LookupError):
                await fail()
        await commit(database, done)
        await eventually(empty)

    assert await in_kafka(settings, undone + done) == done
    assert await in_audit(sandbox, settings, undone + done) == documents(done)


async def test_both_ways_of_storing_an_event_store_the_same_and_none_is_no_row(
    database: Database, rows: Callable[[], Awaitable[list[asyncpg.Record]]], settings: DatabaseSettings
) -> None:
    [event] = events_of(settings, keys=1, each=1)
    event = event._replace(ip="203.0.113.7")
    await commit(database, [event])
    await commit(database, [])
    async with database.batch() as connection:
        await outbox.append_batch(connection, [event])
        await outbox.append_batch(connection, [])

    first, second = [{name: value for name, value in row.items() if name != "position"} for row in await rows()]
    assert first == second
    assert first == {
        "event_id": event.id,
        "topic": event.topic,
        "key": event.key,
        "payload": event.payload,
        "published": False,
        "audited": False,
        "ip": "203.0.113.7",
    }


async def test_where_a_request_came_from_is_for_the_audit_alone(
    sandbox: Sandbox, database: Database, settings: DatabaseSettings, empty: Empty
) -> None:
    mine, nobodys = events_of(settings, keys=1, each=2)
    asked = mine._replace(ip="203.0.113.7")
    await commit(database, [asked, nobodys])

    async with relaying(database, settings):
        await eventually(empty)

    assert await in_kafka(settings, [mine, nobodys]) == [mine, nobodys]  # to the byte
    first, second = documents([mine, nobodys])
    assert await in_audit(sandbox, settings, [mine, nobodys]) == [first | {"ip": "203.0.113.7"}, second]


async def test_a_crash_between_the_sinks_and_the_end_repeats_the_message_and_not_the_audit(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, empty: Empty
) -> None:
    events = events_of(settings, keys=2, each=5)
    await owner.execute(
        f"""
        create function {settings.schema_name}.crash() returns trigger language plpgsql
            as $$ begin raise exception 'crash'; end $$;
        create trigger crash before update or delete on {settings.schema_name}.outbox
            for each statement execute function {settings.schema_name}.crash()
        """
    )
    await commit(database, events)

    async def told() -> bool:
        return len(await in_audit(sandbox, settings, events)) == 10 and len(await in_kafka(settings, events)) >= 10

    async with relaying(database, settings):
        await eventually(told)
    assert not await empty()

    await owner.execute(f"drop function {settings.schema_name}.crash() cascade")
    async with relaying(database, settings):
        await eventually(empty)

    published = await in_kafka(settings, events)
    assert len(published) >= 20
    for repeat in range(0, len(published), len(events)):
        assert set(published[repeat : repeat + 5]) <= set(events)
    for key, sequence in by_key(published).items():
        assert sequence == [1, 2, 3, 4, 5] * (len(sequence) // 5), key
    assert await in_audit(sandbox, settings, events) == documents(events)


async def test_without_mongodb_kafka_gets_the_events_and_the_audit_catches_up(
    sandbox: Sandbox,
    database: Database,
    settings: DatabaseSettings,
    rows: Callable[[], Awaitable[list[asyncpg.Record]]],
    empty: Empty,
    line: Lines,
) -> None:
    events = events_of(settings, keys=3, each=4)
    async with line(settings.mongo_host, settings.mongo_port) as (port, cut, mend):
        through = settings.model_copy(update={"mongo_host": "127.0.0.1", "mongo_port": port})
        cut()
        await commit(database, events)

        async def marked() -> bool:
            return all((row["published"], row["audited"]) == (True, False) for row in await rows())

        async with relaying(database, through):
            await eventually(marked)
            assert by_key(await in_kafka(settings, events)) == by_key(events)
            assert await in_audit(sandbox, settings, events) == []
            assert len(await rows()) == 12

            mend()
            await eventually(empty)

    assert await in_audit(sandbox, settings, events) == documents(events)
    assert by_key(await in_kafka(settings, events)) == by_key(events)  # none of them a second time


async def test_without_kafka_the_audit_gets_the_events_and_kafka_catches_up_in_order(
    sandbox: Sandbox,
    database: Database,
    settings: DatabaseSettings,
    rows: Callable[[], Awaitable[list[asyncpg.Record]]],
    empty: Empty,
    line: Lines,
) -> None:
    events = events_of(settings, keys=3, each=4)
    host, _, kafka_port = settings.kafka_bootstrap_servers.rpartition(":")
    async with line(host, int(kafka_port)) as (port, cut, mend):
        through = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{port}"})
        cut()
        await commit(database, events)

        async def marked() -> bool:
            return all((row["published"], row["audited"]) == (False, True) for row in await rows())

        async with relaying(database, through):
            await eventually(marked)
            assert await in_audit(sandbox, settings, events) == documents(events)
            assert await in_kafka(settings, events) == []
            assert len(await rows()) == 12

            mend()
            await eventually(empty)

    assert by_key(await in_kafka(settings, events)) == by_key(events)
    assert await in_audit(sandbox, settings, events) == documents(events)


async def test_of_two_relays_one_leads_and_the_other_takes_over(
    sandbox: Sandbox, database: Database, owner: Owner, settings: DatabaseSettings, empty: Empty
) -> None:
    early, late = events_of(settings, keys=3, each=20), events_of(settings, keys=3, each=20)

    async def leaders() -> list[asyncpg.Record]:
        return await owner.fetch(
            "select pid from pg_locks join pg_database on pg_database.oid = database "
            "where locktype = 'advisory' and granted and datname = current_database() "
            "and classid = $1",
            0x6F757462,
        )

    async with relaying(database, settings):
        await eventually(leaders)
        async with relaying(database, settings):
            for event in early:
                await commit(database, [event])
            await eventually(empty)
            [leader] = await leaders()

            await owner.fetchval("select pg_terminate_backend($1, 5000)", leader["pid"])
            await commit(database, late)
            await eventually(empty)
            [successor] = await eventually(leaders)  # who led may still have written the last of it
            assert successor["pid"] != leader["pid"]

    published = await in_kafka(settings, early + late)
    assert by_key(published) == by_key(early + late)
    assert len(published) == 120
    assert await in_audit(sandbox, settings, early + late) == documents(early + late)


async def test_the_metrics_tell_what_waits_and_what_has_left(
    database: Database, settings: DatabaseSettings, empty: Empty
) -> None:
    registry = CollectorRegistry()
    relay = Relay(database, settings, registry)
    await commit(database, events_of(settings, keys=1, each=4))

    async def counted() -> bool:
        names = ("outbox_depth", "outbox_published_total", "outbox_audited_total")
        return [registry.get_sample_value(name) for name in names] == [0, 4, 4]

    async with running(relay.run):
        await eventually(empty)
        await eventually(counted)
    await relay.close()


async def test_a_login_that_mongodb_does_not_take_is_said_to_be_that(
    sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    audit = AuditLog(sandbox.settings(probe, mongo_user="nobody", mongo_password="wrong"))
    try:
        with pytest.raises(ConnectionError, match="MONGO_USER"):
            await audit.write([{"_id": "1", "chain": {"position": 1, "hash": ""}}])
    finally:
        audit.close()
