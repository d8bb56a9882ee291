"""The step of a deployment that brings a schema up to date, and the login that services have meanwhile."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import pytest

from shared.database import require_current_schema
from shared.settings import ROOT
from shared.testing.sandbox import Sandbox, sandbox_on
from wallet_service.settings import WalletSettings

FOLDER = ROOT / "services" / "wallet-service"


@pytest.fixture
async def fresh(engines: dict[str, str]) -> AsyncIterator[Sandbox]:
    """A database that nothing was done to."""
    async with sandbox_on(engines) as sandbox:
        yield sandbox


async def migrate(sandbox: Sandbox, **change: str) -> tuple[int | None, str]:
    """Run the step in wallet-service's folder; the exit status and everything it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shared.migrate",
        cwd=FOLDER,
        env=os.environ | sandbox.environment | {"ENV_FILE": "", "PYTHONPATH": str(ROOT)} | change,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        written, _ = await process.communicate()
    return process.returncode, written.decode()


async def test_it_migrates_once_and_finds_nothing_to_do_then(fresh: Sandbox) -> None:
    done = (0, "The schema of wallet-service is up to date.\n")

    assert await migrate(fresh) == done
    assert await migrate(fresh) == done


async def test_a_login_that_is_not_the_owner_sees_how_far_the_schema_is(fresh: Sandbox) -> None:
    assert (await migrate(fresh))[0] == 0
    login = await fresh.another_login()
    settings = fresh.settings(WalletSettings, **{name.lower(): value for name, value in login.items()})
    owner = await fresh.connect()
    try:
        await owner.execute(f"grant wallet_service to {settings.postgres_user}")
        await require_current_schema(settings, FOLDER)
        may_change = f"select has_table_privilege('{settings.postgres_user}', 'wallets.alembic_version', 'update')"
        assert await owner.fetchval(may_change) is False
    finally:
        await owner.close()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"POSTGRES_PORT": "1"}, "PostgreSQL at 127.0.0.1:1 cannot be used as paymentuser"),
        ({"POSTGRES_PORT": "many"}, "POSTGRES_PORT: Input should be a valid integer"),
        ({"ENVIRONMENT": "production"}, "JWT_SECRET_KEY must be set to a secret of at least 32 bytes"),
    ],
    ids=["server", "setting", "secret"],
)
async def test_what_stops_it_is_said_in_a_sentence(fresh: Sandbox, change: dict[str, str], sentence: str) -> None:
    status, written = await migrate(fresh, **change)

    assert status == 1
    assert written.startswith(sentence)
    assert written.count("\n") == 1


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(fresh: Sandbox) -> None:
    assert (await migrate(fresh))[0] == 0
    connection = await fresh.connect()
    try:
        await connection.execute("update wallets.alembic_version set version_num = '0002'")
        await connection.execute("drop table wallets.people, wallets.inbox")
        await connection.execute("drop trigger accounts_revision on wallets.accounts")
        tables = "select tablename from pg_tables where schemaname = 'wallets' order by 1"
        before = await connection.fetch(tables)

        status, written = await migrate(fresh)

        assert status == 1
        assert written == (
            "A migration in wallet-service failed and was rolled back: "
            'column "revision" of relation "accounts" already exists\n'
        )
        assert await connection.fetch(tables) == before
        assert await connection.fetchval("select version_num from wallets.alembic_version") == "0002"
    finally:
        await connection.close()


async def test_a_schema_ahead_of_the_code_is_left_alone(fresh: Sandbox) -> None:
    assert (await migrate(fresh))[0] == 0
    connection = await fresh.connect()
    try:
        await connection.execute("update wallets.alembic_version set version_num = '9999'")
        assert await migrate(fresh) == (
            1,
            "The migrations in wallet-service cannot be run: Can't locate revision identified by '9999'\n",
        )
        assert await connection.fetchval("select version_num from wallets.alembic_version") == "9999"
    finally:
        await connection.close()
