"""Looking at the ledger as it is at one moment, without a way to change it."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import asyncpg

from ledger_reconciler.checks import COUNTS, RECENT_COUNTS, Check, bounded
from ledger_reconciler.domain import CannotCheckError, Finding, Result, Scope
from ledger_reconciler.settings import ReconcilerSettings

CONNECT_TIMEOUT_SECONDS: Final = 3.0
STATEMENT_TIMEOUTS_SECONDS: Final = {Scope.FULL: 600, Scope.RECENT: 60}
CANCEL_MARGIN_SECONDS: Final = 10  # the server gives up first
LISTED_AT_MOST: Final = 1000  # rows of an invariant that are told apart

_SETTINGS: Final = {
    "default_transaction_read_only": "on",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "600000",
    "search_path": "",
    "work_mem": "64MB",  # more is sorted and hashed on disk
    "jit": "off",
}

if TYPE_CHECKING:  # generic in the stubs only
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The database as it was at `taken_at`, by its own clock."""

    connection: Connection
    scope: Scope
    taken_at: datetime

    async def counts(self, since: datetime | None) -> dict[str, int]:
        """How many rows of each kind there are, or have come since."""
        statements = COUNTS if self.scope is Scope.FULL else RECENT_COUNTS
        return {name: await self._value(sql, since) for name, sql in statements.items()}

    async def run(self, check: Check, counts: Mapping[str, int], since: datetime | None) -> Result | None:
        """What the check finds; None where a recent pass does not have it."""
        sql = check.full if self.scope is Scope.FULL else check.recent
        if sql is None:
            return None
        rows = await self.connection.fetch(bounded(sql, LISTED_AT_MOST), *_arguments(sql, since))
        return Result(
            check.number,
            check.name,
            check.promise,
            check.looks_at,
            counts[check.looks_at],
            rows[0]["total"] if rows else 0,
            tuple(Finding(check.name, row["subject"], row["told"]) for row in rows),
        )

    async def rows(self, sql: str, batch: int) -> AsyncIterator[list[asyncpg.Record]]:
        """The rows of a statement, `batch` at a time."""
        cursor = await self.connection.cursor(sql)
        while rows := await cursor.fetch(batch):
            yield rows

    async def _value(self, sql: str, since: datetime | None) -> int:
        value: int = await self.connection.fetchval(sql, *_arguments(sql, since))
        return value


_NOT_MIGRATED: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.InsufficientPrivilegeError,
)


def _arguments(sql: str, since: datetime | None) -> list[datetime | None]:
    return [since] if "$1" in sql else []


@asynccontextmanager
async def connected(settings: ReconcilerSettings, scope: Scope) -> AsyncIterator[Connection]:
    """A connection that can only read, under the reconciler's role; raises CannotCheckError when there is none."""
    seconds = STATEMENT_TIMEOUTS_SECONDS[scope]
    options = _SETTINGS | {
        "role": settings.role,
        "application_name": settings.service,
        "statement_timeout": str(seconds * 1000),
        # Statistics that are out of date must not make a full pass look up millions of rows one by one.
        "enable_nestloop": "off" if scope is Scope.FULL else "on",
    }
    try:
        connection = await asyncpg.connect(
            host=settings.postgres_host,
            port=settings.postgres_port,
            user=settings.postgres_user,
            password=settings.postgres_password.get_secret_value(),
            database=settings.postgres_db,
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=seconds + CANCEL_MARGIN_SECONDS,
            server_settings=options,
        )
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        where = f"{settings.postgres_host}:{settings.postgres_port}"
        raise CannotCheckError(
            f"PostgreSQL at {where} cannot be read as {settings.postgres_user} under the role {settings.role} "
            f"({error or 'no answer'}): check the POSTGRES_* settings and that the services have migrated."
        ) from error
    try:
        yield connection
    except _NOT_MIGRATED as error:
        raise CannotCheckError(
            f"A schema is missing or is not at this code's revision ({error}): start the services, or migrate them."
        ) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise CannotCheckError(
            f"PostgreSQL has broken off ({error or type(error).__name__}): run it again."
        ) from error
    finally:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)  # which waits until what runs is cancelled


@asynccontextmanager
async def snapshot(settings: ReconcilerSettings, scope: Scope) -> AsyncIterator[Snapshot]:
    """One REPEATABLE READ snapshot of everything; raises CannotCheckError when it cannot be looked at."""
    async with (
        connected(settings, scope) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield Snapshot(connection, scope, await connection.fetchval("select now()"))
