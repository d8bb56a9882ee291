"""A made-up service on the real engines, and a way to cut its lines."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from shared.outbox import outbox_table
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Line = tuple[int, Callable[[], None], Callable[[], None]]


@pytest.fixture(scope="module")
async def owner(sandbox: Sandbox) -> AsyncIterator[Owner]:
    """A connection as the owner of everything in the sandbox."""
    connection = await sandbox.connect()
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def service_kind(owner: Owner) -> Callable[[], AbstractAsyncContextManager[type[DatabaseSettings]]]:
    """Makes the settings' class of a service that has a role, a schema and an outbox, and exists nowhere else."""

    @asynccontextmanager
    async def make() -> AsyncIterator[type[DatabaseSettings]]:
        suffix = secrets.token_hex(4)

        class ProbeSettings(DatabaseSettings):
            service = f"probe-{suffix}"
            schema_name = f"probe_{suffix}_events"

        role, schema = f"probe_{suffix}", ProbeSettings.schema_name
        metadata = sa.MetaData()
        outbox_table(metadata)
        tables = "; ".join(
            str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
            for table in metadata.sorted_tables
        )
        await owner.execute(
            f"create role {role} nologin; grant {role} to current_user; create schema {schema};"
            f"grant usage on schema {schema} to {role}; set search_path = {schema}; {tables};"
            f"grant select, insert, update, delete on outbox to {role};"
            f"grant select, insert, update on audit_chain to {role};"
            f"create table notes (id bigint primary key, text text not null);"
            f"grant select, insert on notes to {role}; reset search_path"
        )
        yield ProbeSettings
        await owner.execute(f"drop schema {schema} cascade; drop owned by {role}; drop role {role}")

    return make


@pytest.fixture(scope="module")
async def probe(
    service_kind: Callable[[], AbstractAsyncContextManager[type[DatabaseSettings]]],
) -> AsyncIterator[type[DatabaseSettings]]:
    async with service_kind() as kind:
        yield kind


@pytest.fixture
def line() -> Callable[[str, int], AbstractAsyncContextManager[Line]]:
    """A TCP line to a server: its port, how to cut it, how to mend it."""

    @asynccontextmanager
    async def lay(host: str, port: int) -> AsyncIterator[Line]:
        mended = True
        open_ends: set[asyncio.StreamWriter] = set()
        pumps: set[asyncio.Task[None]] = set()

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await reader.read(65_536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if not mended:
                writer.transport.abort()
                return
            far_reader, far_writer = await asyncio.open_connection(host, port)
            open_ends.update({writer, far_writer})
            for pair in ((reader, far_writer), (far_reader, writer)):
                task = asyncio.create_task(pump(*pair))
                pumps.add(task)
                task.add_done_callback(pumps.discard)

        def cut() -> None:
            nonlocal mended
            mended = False
            for end in open_ends:
                end.transport.abort()
            open_ends.clear()

        def mend() -> None:
            nonlocal mended
            mended = True

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1], cut, mend
        finally:
            cut()
            server.close()
            await server.wait_closed()
            await asyncio.gather(*pumps, return_exceptions=True)

    return lay
