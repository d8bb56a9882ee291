"""The schema: there and back, complete, and made once by many."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.database import migrate, prepare_schema, require_current_schema
from shared.settings import SettingsError
from shared.testing.migrations import alembic
from shared.testing.sandbox import Sandbox, sandbox_on
from user_service.app import FOLDER
from user_service.settings import UserSettings


@pytest.fixture
async def fresh(engines: dict[str, str]) -> AsyncIterator[Sandbox]:
    """A database that nothing was done to."""
    async with sandbox_on(engines) as sandbox:
        yield sandbox


async def tables(sandbox: Sandbox) -> set[str]:
    connection = await sandbox.connect()
    try:
        found = await connection.fetch("select tablename from pg_tables where schemaname = 'users'")
    finally:
        await connection.close()
    return {row["tablename"] for row in found}


async def outside_development(sandbox: Sandbox, environment: str) -> UserSettings:
    login = await sandbox.another_login()
    return sandbox.settings(
        UserSettings,
        environment=environment,
        jwt_secret_key="j" * 32,
        service_secret_key="s" * 32,
        **{name.lower(): value for name, value in login.items()},
    )


async def migrate_for(settings: UserSettings, sandbox: Sandbox) -> None:
    """Migrate as the owner, and let the login of these settings work as the service's role."""
    await migrate(sandbox.settings(UserSettings), FOLDER)
    connection = await sandbox.connect()
    try:
        await connection.execute(f"grant {settings.role} to {settings.postgres_user}")
    finally:
        await connection.close()


async def test_the_migrations_go_up_down_and_up_and_the_models_have_nothing_more(fresh: Sandbox) -> None:
    await alembic(fresh, FOLDER, "upgrade", "head")
    await alembic(fresh, FOLDER, "check")
    assert await tables(fresh) == {"users", "sessions", "outbox", "audit_chain", "alembic_version"}

    await alembic(fresh, FOLDER, "downgrade", "base")
    assert await tables(fresh) == {"alembic_version"}

    await alembic(fresh, FOLDER, "upgrade", "head")
    assert await tables(fresh) == {"users", "sessions", "outbox", "audit_chain", "alembic_version"}


async def test_of_three_that_migrate_at_once_one_does(fresh: Sandbox) -> None:
    await asyncio.gather(*(alembic(fresh, FOLDER, "upgrade", "head") for _ in range(3)))

    assert await tables(fresh) == {"users", "sessions", "outbox", "audit_chain", "alembic_version"}
    await require_current_schema(fresh.settings(UserSettings), FOLDER)


@pytest.mark.parametrize("environment", ["staging", "production"])
async def test_outside_development_a_schema_that_is_behind_stops_the_start_and_is_left_alone(
    fresh: Sandbox, environment: str
) -> None:
    settings = await outside_development(fresh, environment)

    with pytest.raises(SettingsError, match="run `alembic upgrade head` in user-service first"):
        await prepare_schema(settings, FOLDER)
    assert await tables(fresh) == set()

    await migrate_for(settings, fresh)
    await prepare_schema(settings, FOLDER)
    assert await tables(fresh) == {"users", "sessions", "outbox", "audit_chain", "alembic_version"}


async def test_in_development_too_a_start_can_be_told_not_to_migrate(fresh: Sandbox) -> None:
    settings = fresh.settings(UserSettings, migrate_at_start=False)

    with pytest.raises(SettingsError, match="run `alembic upgrade head` in user-service first"):
        await prepare_schema(settings, FOLDER)
    assert await tables(fresh) == set()


async def test_a_schema_that_is_ahead_of_the_code_stops_no_start(fresh: Sandbox) -> None:
    """While a release rolls out, the old code starts again on the new schema."""
    settings = await outside_development(fresh, "production")
    await migrate_for(settings, fresh)
    connection = await fresh.connect()
    try:
        await connection.execute("update users.alembic_version set version_num = '9999'")
    finally:
        await connection.close()

    await prepare_schema(settings, FOLDER)


async def test_a_server_that_is_not_there_is_said_in_one_sentence_without_the_password(fresh: Sandbox) -> None:
    settings = fresh.settings(UserSettings, postgres_port=1, postgres_password="hidden-7f3a")

    with pytest.raises(SettingsError) as refused:
        await prepare_schema(settings, FOLDER)

    assert ":1 cannot be used as" in str(refused.value)
    assert "hidden-7f3a" not in str(refused.value)
