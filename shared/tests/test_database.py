"""The unit of work on a real PostgreSQL: all or nothing, one's own schema only, and a server that goes away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import DBAPIError

from shared.database import (
    MAX_ATTEMPTS,
    POOL_SIZE,
    CommitUnknownError,
    Database,
    LockTimeoutError,
    with_retries,
)
from shared.http.app import create_api, health_router, strict_router
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Line = tuple[int, Callable[[], None], Callable[[], None]]
Lines = Callable[[str, int], AbstractAsyncContextManager[Line]]
Write = Callable[[Database, int, str], Coroutine[Any, Any, None]]


@asynccontextmanager
async def opened(settings: DatabaseSettings) -> AsyncIterator[Database]:
    database = Database(settings)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture(scope="module")
async def database(sandbox: Sandbox, probe: type[DatabaseSettings]) -> AsyncIterator[Database]:
    async with opened(sandbox.settings(probe)) as database:
        yield database


@pytest.fixture
async def kept(owner: Owner, probe: type[DatabaseSettings]) -> Callable[[], Awaitable[list[tuple[int, str]]]]:
    """The rows there are, beginning with none."""
    await owner.execute(f"truncate {probe.schema_name}.notes")

    async def rows() -> list[tuple[int, str]]:
        found = await owner.fetch(f"select id, text from {probe.schema_name}.notes order by id")
        return [(row["id"], row["text"]) for row in found]

    return rows


async def write_by_session(database: Database, number: int, text: str) -> None:
    async with database.transaction() as session:
        await session.execute(sa.text("insert into notes values (:number, :text)"), {"number": number, "text": text})
        if text == "oops":
            raise LookupError(text)


async def write_by_batch(database: Database, number: int, text: str) -> None:
    async with database.batch() as connection:
        await connection.execute("insert into notes values ($1, $2)", number, text)
        if text == "oops":
            raise LookupError(text)


BOTH_WAYS = pytest.mark.parametrize("write", [write_by_session, write_by_batch], ids=["session", "batch"])


@BOTH_WAYS
async def test_what_was_done_is_kept_when_the_block_ends(
    database: Database, kept: Callable[[], Awaitable[object]], write: Write
) -> None:
    await write(database, 1, "fine")

    assert await kept() == [(1, "fine")]


@BOTH_WAYS
async def test_an_exception_undoes_the_whole_block_and_comes_out_as_it_was(
    database: Database, kept: Callable[[], Awaitable[object]], write: Write
) -> None:
    with pytest.raises(LookupError, match="oops"):
        await write(database, 1, "oops")

    assert await kept() == []


async def test_a_cancelled_block_is_undone_and_its_connection_is_of_use_again(
    database: Database, kept: Callable[[], Awaitable[object]]
) -> None:
    reached = asyncio.Event()

    async def never_ending() -> None:
        async with database.transaction() as session:
            await session.execute(sa.text("insert into notes values (1, 'cancelled')"))
            reached.set()
            await asyncio.Event().wait()

    for _ in range(POOL_SIZE + 1):
        reached.clear()
        task = asyncio.create_task(never_ending())
        await reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await write_by_session(database, 2, "after")
    assert await kept() == [(2, "after")]


# -------------------------------------------------------------------------------------------------------- own role


@pytest.mark.parametrize(
    "statement",
    [
        "select * from {other}.notes",
        "insert into {other}.notes values (1, 'mine')",
        "delete from {other}.notes",
        "drop table {other}.notes",
        "truncate {own}.notes",
        "delete from {own}.notes",
        "drop table {own}.notes",
        "create table {own}.more (id int)",
        "alter table {own}.notes disable trigger all",
        "create schema more",
        "create role more",
    ],
)
async def test_a_service_sees_nothing_of_anothers_schema_and_changes_nothing_of_its_own(
    owner: Owner,
    database: Database,
    probe: type[DatabaseSettings],
    service_kind: Callable[[], AbstractAsyncContextManager[type[DatabaseSettings]]],
    statement: str,
) -> None:
    async with service_kind() as other:
        await owner.execute(f"insert into {other.schema_name}.notes values (7, 'theirs')")
        sql = statement.format(own=probe.schema_name, other=other.schema_name)

        async with database.batch() as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                async with connection.transaction():
                    await connection.execute(sql)
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
            async with database.transaction() as session:
                await session.execute(sa.text(sql))

        assert await owner.fetchval(f"select text from {other.schema_name}.notes") == "theirs"


async def test_every_connection_takes_the_services_role(database: Database, probe: type[DatabaseSettings]) -> None:
    role = probe.service.replace("-", "_")
    async with database.transaction() as session:
        assert await session.scalar(sa.text("select current_user")) == role
    async with database.batch() as connection:
        assert await connection.fetchval("select current_user") == role
    connection = await database.connect()
    assert await connection.fetchval("select current_user") == role
    await connection.close()


async def test_a_pooled_connection_keeps_role_and_schema_after_it_was_used(
    database: Database, probe: type[DatabaseSettings]
) -> None:
    for _ in range(POOL_SIZE * 2):
        async with database.batch() as connection:
            found = await connection.fetchrow("select current_user as role, current_schema() as schema")
            assert found is not None
            assert (found["role"], found["schema"]) == (probe.service.replace("-", "_"), probe.schema_name)


# --------------------------------------------------------------------------------------------------- what is said


async def test_an_error_of_the_database_does_not_repeat_the_parameters(
    database: Database, kept: Callable[[], Awaitable[object]]
) -> None:
    with pytest.raises(DBAPIError) as failed:
        async with database.transaction() as session:
            await session.execute(sa.text("insert into nowhere values (:secret)"), {"secret": "SecurePass123"})

    assert "SecurePass123" not in str(failed.value)
    assert await kept() == []


async def test_a_value_that_does_not_fit_is_a_mistake_and_no_outage(
    database: Database, kept: Callable[[], Awaitable[object]]
) -> None:
    with pytest.raises(DBAPIError):
        await write_by_session(database, 2**63, "too large")
    with pytest.raises(asyncpg.DataError):
        await write_by_batch(database, 2**63, "too large")

    assert await kept() == []


# --------------------------------------------------------------------------------------------------------- outages


@BOTH_WAYS
async def test_a_server_that_is_not_there_is_a_connection_error(
    sandbox: Sandbox, probe: type[DatabaseSettings], write: Write
) -> None:
    async with opened(sandbox.settings(probe, postgres_port=1)) as nowhere:
        with pytest.raises(ConnectionError):
            await write(nowhere, 1, "lost")
        with pytest.raises(ConnectionError):
            await nowhere.connect()
        with pytest.raises(ConnectionError):
            await nowhere.check()


@BOTH_WAYS
async def test_a_server_that_goes_away_is_a_connection_error_until_it_is_back(
    sandbox: Sandbox,
    probe: type[DatabaseSettings],
    kept: Callable[[], Awaitable[object]],
    line: Lines,
    write: Write,
) -> None:
    host, port = sandbox.environment["POSTGRES_HOST"], int(sandbox.environment["POSTGRES_PORT"])
    async with (
        line(host, port) as (through, cut, mend),
        opened(sandbox.settings(probe, postgres_host="127.0.0.1", postgres_port=through)) as database,
    ):
        await write(database, 1, "before")

        cut()
        for number in range(2, 5):
            with pytest.raises(ConnectionError):
                await write(database, number, "lost")

        mend()
        await write(database, 5, "after")

    assert await kept() == [(1, "before"), (5, "after")]


@BOTH_WAYS
async def test_a_server_that_goes_away_within_a_transaction_is_a_connection_error_and_nothing_is_kept(
    sandbox: Sandbox,
    owner: Owner,
    probe: type[DatabaseSettings],
    kept: Callable[[], Awaitable[object]],
    write: Write,
) -> None:
    name = probe.service

    async def waiting() -> list[asyncpg.Record]:
        return await owner.fetch(
            "select pid from pg_stat_activity where application_name = $1 and wait_event_type = 'Lock'", name
        )

    async with opened(sandbox.settings(probe)) as database:
        blocker = await sandbox.connect()
        async with blocker.transaction():
            await blocker.execute(f"lock table {probe.schema_name}.notes")
            writing = asyncio.create_task(write(database, 1, "lost"))
            [row] = await eventually(waiting)
            await owner.fetchval("select pg_terminate_backend($1)", row["pid"])
            with pytest.raises(ConnectionError):
                await writing
        await blocker.close()

        await write(database, 2, "after")

    assert await kept() == [(2, "after")]


async def test_a_pool_that_is_used_up_is_an_outage_and_not_a_mistake(
    sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    enough = asyncio.Event()
    async with opened(sandbox.settings(probe)) as database:

        async def hold_session() -> None:
            async with database.transaction() as session:
                await session.execute(sa.text("select 1"))
                await enough.wait()

        async def hold_batch() -> None:
            async with database.batch():
                await enough.wait()

        holders = [asyncio.create_task(hold()) for hold in [hold_session, hold_batch] * POOL_SIZE]
        late = [asyncio.create_task(write(database, 9, "late")) for write in (write_by_session, write_by_batch)]
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        enough.set()
        await asyncio.gather(*holders)

    assert [isinstance(outcome, OSError | TimeoutError) for outcome in outcomes] == [True, True]


async def test_a_request_to_a_service_without_its_database_is_a_503(
    sandbox: Sandbox, probe: type[DatabaseSettings]
) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    async with opened(sandbox.settings(probe, postgres_port=1)) as nowhere:
        router = strict_router("notes")

        @router.get("/session")
        async def by_session() -> None:
            await write_by_session(nowhere, 1, "lost")

        @router.get("/batch")
        async def by_batch() -> None:
            await write_by_batch(nowhere, 1, "lost")

        app = create_api(
            title="Notes",
            description="",
            version="1",
            registry=CollectorRegistry(),
            health=health_router({"postgres": nowhere.check}, essential=frozenset({"postgres"})),
            lifespan=lifespan,
        )
        app.include_router(router)
        async with in_process(app) as client:
            for path in ("/session", "/batch"):
                response = await client.get(path)
                assert (response.status_code, response.json()["code"]) == (503, "unavailable")
                assert response.headers["retry-after"] == "1"
            health = await client.get("/health")

    assert (health.status_code, health.json()) == (503, {"status": "down", "dependencies": {"postgres": "down"}})


# --------------------------------------------------------------------------------------------------------- retries


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
async def test_a_deadlock_is_tried_again_three_times_at_most(error: type[Exception]) -> None:
    attempts = 0

    async def deadlocked() -> None:
        nonlocal attempts
        attempts += 1
        raise error("again")

    with pytest.raises(error):
        await with_retries(deadlocked)

    assert attempts == MAX_ATTEMPTS == 3


async def test_any_other_error_is_not_tried_again() -> None:
    attempts = 0

    async def wrong() -> None:
        nonlocal attempts
        attempts += 1
        raise LookupError

    with pytest.raises(LookupError):
        await with_retries(wrong)

    assert attempts == 1


@pytest.mark.parametrize("later", [LockTimeoutError(), asyncpg.DeadlockDetectedError("")], ids=["lock", "deadlock"])
async def test_what_may_have_been_committed_stays_unknown_whatever_goes_wrong_later(later: Exception) -> None:
    errors = [CommitUnknownError("?"), later, later]

    async def work() -> None:
        raise errors.pop(0)

    with pytest.raises(CommitUnknownError):
        await with_retries(work)


async def test_two_that_lock_the_same_rows_the_other_way_round_both_end(
    database: Database, owner: Owner, probe: type[DatabaseSettings], kept: Callable[[], Awaitable[object]]
) -> None:
    await owner.execute(f"grant update on {probe.schema_name}.notes to {probe.service.replace('-', '_')}")
    await owner.execute(f"insert into {probe.schema_name}.notes values (1, ''), (2, '')")
    holding = {1: asyncio.Event(), 2: asyncio.Event()}

    async def append(letter: str, first: int, second: int) -> None:
        async def work() -> None:
            async with database.batch() as connection:
                await connection.execute("set local lock_timeout = '3s'")  # or it ends before the deadlock is noticed
                await connection.execute("update notes set text = text || $1 where id = $2", letter, first)
                holding[first].set()
                await holding[second].wait()
                await connection.execute("update notes set text = text || $1 where id = $2", letter, second)

        await with_retries(work)

    await asyncio.gather(append("a", 1, 2), append("b", 2, 1))

    assert await kept() in ([(1, "ab"), (2, "ab")], [(1, "ba"), (2, "ba")])
