"""The reconciler sees what it compares and nothing else, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from ledger_reconciler.domain import Scope
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.snapshot import connected
from shared.database import READER_ROLE
from shared.testing.sandbox import Sandbox

TABLES = (
    "wallets.accounts",
    "wallets.postings",
    "wallets.entries",
    "wallets.holds",
    "wallets.outbox",
    "transactions.transactions",
    "transactions.idempotency_keys",
    "transactions.outbox",
    "payments.payments",
    "payments.outbox",
)


@pytest.fixture
async def reader(books: Sandbox) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection under the reconciler's role that has its guard against writing taken away."""
    connection = await books.connect()
    await connection.execute(f"set role {READER_ROLE}")
    yield connection
    await connection.close()


def test_its_role_is_the_one_that_the_migrations_know(books: Sandbox) -> None:
    assert books.settings(ReconcilerSettings).role == READER_ROLE


@pytest.mark.parametrize(
    "forbidden",
    [
        "select password_hash from users.users",
        "select * from users.users",
        "select response_body from transactions.idempotency_keys",
        "select * from transactions.inbox",
    ],
)
async def test_it_does_not_see_what_it_does_not_compare(
    reader: asyncpg.Connection[asyncpg.Record], forbidden: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.fetch(forbidden)


@pytest.mark.parametrize("table", TABLES)
async def test_it_has_no_right_to_write(reader: asyncpg.Connection[asyncpg.Record], table: str) -> None:
    for statement in ("delete from {}", "truncate {}", "insert into {} default values"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await reader.execute(statement.format(table))
    assert not await reader.fetchval("select has_any_column_privilege($1, 'update')", table)


async def test_its_own_connections_are_read_only_besides(books: Sandbox) -> None:
    async with connected(books.settings(ReconcilerSettings), Scope.FULL) as connection:
        assert await connection.fetchval("select current_user") == READER_ROLE
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await connection.execute("create table wallets.notes (line text)")
