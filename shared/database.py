"""Postgres: the unit of work, the hot path's connections, migrations and roles."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
from alembic import command, context
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, MetaData, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from shared.errors import UnavailableError
from shared.settings import DatabaseSettings, SettingsError

POOL_SIZE: Final = 8
CONNECT_TIMEOUT_SECONDS: Final = 3.0
COMMAND_TIMEOUT_SECONDS: Final = 5.0
POOL_TIMEOUT_SECONDS: Final = 3.0
# A batch that runs into a row which somebody keeps is tried again in halves, and each half waits this long.
BATCH_LOCK_TIMEOUT_MS: Final = 250
MAX_ATTEMPTS: Final = 3
MIGRATION_WAIT_SECONDS: Final = 60

# The server's own bounds, so that a frozen client or a lost network never keeps a lock.
_SERVER_BOUNDS: Final = {
    "statement_timeout": "5000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "10000",
}
_MIGRATION_LOCK: Final = 0x7061796D  # "paym"
READER_ROLE: Final = "reconciler"  # sees what each service's migrations grant it, and changes nothing

if TYPE_CHECKING:  # generic in the stubs only
    Asyncpg = asyncpg.pool.PoolConnectionProxy[asyncpg.Record] | asyncpg.Connection[asyncpg.Record]
else:
    Asyncpg = asyncpg.Connection
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


class LockTimeoutError(UnavailableError):
    """503: somebody else has kept a row for too long; nothing was done."""


class CommitUnknownError(ConnectionError):
    """The connection was lost during COMMIT: the work may be done or not, and has to be tried under the same ids."""


class Database:
    """One service's way to its schema; every connection takes the service's own role.

    `transaction()` is the unit of work of ordinary code, `batch()` that of the set-based hot path, which talks to
    asyncpg itself.
    """

    def __init__(self, settings: DatabaseSettings) -> None:
        self._url = settings.postgres_url()
        self._server_settings = _SERVER_BOUNDS | {
            "role": settings.role,
            "search_path": settings.schema_name,
            "application_name": settings.service,
            # A plan cached while a table was empty scans it for ever.
            "plan_cache_mode": "force_custom_plan",
        }
        self._engine = create_async_engine(
            self._url,
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_recycle=1800,
            hide_parameters=True,  # an error ends in a log, a password hash must not
            connect_args={
                "timeout": CONNECT_TIMEOUT_SECONDS,
                "command_timeout": COMMAND_TIMEOUT_SECONDS,
                "server_settings": self._server_settings,
            },
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Make the hot path's pool; connections follow when they are needed."""
        arguments = self._asyncpg_arguments()
        arguments["server_settings"] |= {"lock_timeout": str(BATCH_LOCK_TIMEOUT_MS)}
        self._pool = await asyncpg.create_pool(
            **arguments,
            min_size=0,
            max_size=POOL_SIZE,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            reset=_leave_as_it_is,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._pool is not None:
            self._pool.terminate()
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session whose work is committed at the end of the block, or rolled back whole by an exception."""
        async with _translated(), self._sessions.begin() as session:
            yield session

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Asyncpg]:
        """An asyncpg connection in a transaction that ends with the block."""
        if self._pool is None:
            raise RuntimeError("open() comes first")
        async with _translated(), self._pool.acquire(timeout=POOL_TIMEOUT_SECONDS) as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(*_GONE, OSError):  # what is gone has rolled back by itself
                    await transaction.rollback()
                raise
            try:
                await transaction.commit()
            except (*_GONE, OSError) as error:
                raise CommitUnknownError("the database did not say whether it committed") from error

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of one's own, outside the pool, for what holds a session-level lock."""
        async with _translated():
            return await asyncpg.connect(**self._asyncpg_arguments(), command_timeout=COMMAND_TIMEOUT_SECONDS)

    async def check(self) -> None:
        """Raises when the database does not answer within a second."""
        async with asyncio.timeout(1.0), self.transaction() as session:
            await session.execute(text("select 1"))

    def _asyncpg_arguments(self) -> dict[str, Any]:
        return {
            "host": self._url.host,
            "port": self._url.port,
            "user": self._url.username,
            "password": self._url.password,
            "database": self._url.database,
            "timeout": CONNECT_TIMEOUT_SECONDS,
            "server_settings": dict(self._server_settings),
        }


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """A database that is gone, frozen or shutting down becomes ConnectionError, a lock that does not come
    LockTimeoutError, whichever layer noticed."""
    try:
        yield
    except PoolTimeoutError as error:
        raise ConnectionError("no connection to the database became free") from error
    except DBAPIError as error:
        if isinstance(error.orig and error.orig.__cause__, asyncpg.LockNotAvailableError):
            raise LockTimeoutError from error
        if error.connection_invalidated or isinstance(error.orig and error.orig.__cause__, _GONE):
            raise ConnectionError("the database is not available") from error
        raise
    except asyncpg.LockNotAvailableError as error:
        raise LockTimeoutError from error
    except _GONE as error:
        raise ConnectionError("the database is not available") from error


# asyncpg's InterfaceError says, among other things, that a connection is closed.
_GONE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InterfaceError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
)


def column(values: list[Any]) -> list[Any]:
    """An array for `unnest`, empty where it has nothing but nulls: unnest makes up for a short array with them, and
    asyncpg looks long at each value."""
    return values if any(value is not None for value in values) else []


async def _leave_as_it_is(_: Asyncpg) -> None:
    """Nothing of a batch outlives its transaction, and a reset would cost each a round trip more."""


async def with_retries(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run `work`, a whole transaction that may be repeated, again after a deadlock, a serialization failure or an
    unknown COMMIT; three times at most.

    Raises CommitUnknownError when it may have been done and the database is not there to ask.
    """
    unknown: CommitUnknownError | None = None
    for attempt in range(1, MAX_ATTEMPTS + 1):
        if attempt > 1:
            await asyncio.sleep(random.uniform(0.01, 0.05) * (attempt - 1))  # noqa: S311 - jitter, not a secret
        try:
            return await work()
        except CommitUnknownError as error:
            unknown = error
        except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError):
            if attempt == MAX_ATTEMPTS and unknown is None:
                raise
        except (OSError, LockTimeoutError) as error:
            if unknown is None:
                raise
            _log.warning("the outcome of a commit is still unknown: %s", error)
    raise unknown or AssertionError("unreachable")


# ---------------------------------------------------------------------------------------- migrations


# A service whose login does not own the schema compares its revision, too.
_SHOW_REVISION: Final = """
do $$
begin
    if to_regclass('{schema}.alembic_version') is not null then
        grant select on {schema}.alembic_version to {role};
    end if;
end $$
"""


async def migrate(settings: DatabaseSettings, folder: Path) -> None:
    """Bring the service's schema up to date; of several processes one migrates and the others wait."""
    await _on_migration_connection(settings, lambda connection: _upgrade(connection, folder))


async def require_current_schema(settings: DatabaseSettings, folder: Path) -> None:
    """Raises SettingsError when the schema is behind the code."""

    def compare(connection: Connection) -> None:
        options = {"version_table_schema": settings.schema_name}
        found = MigrationContext.configure(connection, opts=options).get_current_heads()
        scripts = ScriptDirectory.from_config(_alembic_config(folder))
        known = {script.revision for script in scripts.walk_revisions()}
        # A revision that is not known here is a later one: schemas grow before the code that needs it comes.
        if not found or (set(found) != set(scripts.get_heads()) and set(found) <= known):
            raise SettingsError(
                f"The schema {settings.schema_name} is not at this code's revision; "
                f"run `alembic upgrade head` in {folder.name} first."
            )

    await _on_migration_connection(settings, compare)


def run_migrations(settings: DatabaseSettings, metadata: MetaData) -> None:
    """What every service's `migrations/env.py` does; makes the service's schema and role when they are missing."""

    def migrate_on(connection: Connection) -> None:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table_schema=settings.schema_name,
            include_schemas=True,
            include_name=lambda name, kind, _: kind != "schema" or name == settings.schema_name,
            transaction_per_migration=True,
        )
        lock = f"{_MIGRATION_LOCK}, hashtext('{settings.schema_name}')"
        connection.execute(text(f"set lock_timeout = '{MIGRATION_WAIT_SECONDS}s'"))
        connection.execute(text(f"select pg_advisory_lock({lock})"))
        connection.execute(text("set lock_timeout = '5s'"))
        connection.execute(text(f"create schema if not exists {settings.schema_name}"))
        for statement in _role_statements(settings):
            connection.execute(text(statement))
        connection.commit()
        try:
            with context.begin_transaction():
                context.run_migrations()
            connection.execute(text(_SHOW_REVISION.format(schema=settings.schema_name, role=settings.role)))
        finally:
            connection.execute(text(f"select pg_advisory_unlock({lock})"))
            connection.commit()

    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        migrate_on(given)
    else:
        asyncio.run(_on_migration_connection(settings, migrate_on))


def upgrade(folder: Path) -> None:
    """What `alembic upgrade head` does in a service's folder; raises SettingsError when it cannot be done."""
    try:
        command.upgrade(_alembic_config(folder), "head")
    except CommandError as error:
        raise SettingsError(f"The migrations in {folder.name} cannot be run: {error}") from error
    except DBAPIError as error:
        raise SettingsError(
            f"A migration in {folder.name} failed and was rolled back: {error.orig and error.orig.__cause__}"
        ) from error


def _upgrade(connection: Connection, folder: Path) -> None:
    config = _alembic_config(folder)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _alembic_config(folder: Path) -> Config:
    config = Config(folder / "alembic.ini")
    config.set_main_option("script_location", str(folder / "migrations"))
    return config


async def _on_migration_connection(settings: DatabaseSettings, work: Callable[[Connection], None]) -> None:
    """Run `work` on a connection of the login user itself, who owns the schema."""
    engine = create_async_engine(
        settings.postgres_url(), poolclass=pool.NullPool, connect_args={"timeout": CONNECT_TIMEOUT_SECONDS}
    )
    try:
        try:
            connection = await engine.connect()
        except (OSError, DBAPIError) as error:
            raise SettingsError(_unreachable(settings.postgres_url(), error)) from error
        try:
            await connection.run_sync(work)
        finally:
            await connection.close()
    finally:
        await engine.dispose()


def _unreachable(url: URL, error: Exception) -> str:
    cause = (error.orig.__cause__ if error.orig else None) if isinstance(error, DBAPIError) else error
    return (
        f"PostgreSQL at {url.host}:{url.port} cannot be used as {url.username} ({cause or 'no answer'}): "
        "check the POSTGRES_* settings, or start one with `make infra`."
    )


def _role_statements(settings: DatabaseSettings) -> list[str]:
    """Roles are shared by all databases of a server, so another one may be making them at the same moment."""
    role, schema = settings.role, settings.schema_name
    return [
        *(
            f"""
            do $$
            begin
                if not exists (select from pg_roles where rolname = '{name}') then
                    create role {name} nologin;
                end if;
            exception when duplicate_object or unique_violation then null;
            end $$
            """
            for name in (role, READER_ROLE)
        ),
        *(
            f"""
            do $$
            begin
                set local role {name};
                reset role;
            exception when insufficient_privilege then
                begin
                    grant {name} to current_user;
                exception when unique_violation then null;
                end;
            end $$
            """
            for name in (role, READER_ROLE)
        ),
        f"grant usage on schema {schema} to {role}",
    ]


async def prepare_schema(settings: DatabaseSettings, folder: Path) -> None:
    """At a service's start: migrate in development; elsewhere that is a step of its own, and only checked.

    `MIGRATE_AT_START` decides otherwise.
    """
    at_start = settings.migrate_at_start
    if at_start if at_start is not None else settings.environment == "development":
        await migrate(settings, folder)
    else:
        await require_current_schema(settings, folder)
