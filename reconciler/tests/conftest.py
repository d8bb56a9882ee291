"""Books in databases of their own: one is written for the session, each test gets a copy of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from ledger_reconciler.domain import Finding, Pass
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.testing import write_books
from shared.audit import AuditReader
from shared.settings import ROOT
from shared.testing.migrations import alembic
from shared.testing.sandbox import Sandbox, drop_database, sandbox_on

SERVICES = ("user-service", "wallet-service", "transaction-service", "payment-gateway", "notification-service")


class Ledger:
    """A copy of the books, the reconciler that looks at it, and a way to falsify it."""

    def __init__(self, sandbox: Sandbox, owner: asyncpg.Connection[asyncpg.Record]) -> None:
        self.sandbox = sandbox
        self.owner = owner
        self.settings = sandbox.settings(ReconcilerSettings)
        self.audit = AuditReader(self.settings)
        self.reconciler = Reconciler(self.settings, self.audit)

    async def falsify(self, sql: str) -> None:
        """Run SQL past the triggers that would not have it."""
        guarded = ("wallets.entries", "wallets.postings", "wallets.holds", "transactions.transactions")
        for table in guarded:
            await self.owner.execute(f"alter table {table} disable trigger user")
        await self.owner.execute(sql)
        for table in guarded:
            await self.owner.execute(f"alter table {table} enable trigger user")

    async def full(self) -> list[tuple[str, str]]:
        """What a full pass finds: invariants and rows."""
        return _found(await self.reconciler.full())

    async def recent(self, since: str = "3 hours") -> list[tuple[str, str]]:
        """What a pass over the last hours finds."""
        return _found(await self.reconciler.recent(await self.owner.fetchval(f"select now() - interval '{since}'")))


def _found(done: Pass) -> list[tuple[str, str]]:
    findings: list[Finding] = [finding for result in done.results for finding in result.findings]
    assert sum(result.total for result in done.results) == len(findings)
    return sorted((finding.invariant, finding.subject) for finding in findings)


@pytest.fixture(scope="session")
async def books(engines: dict[str, str]) -> AsyncIterator[Sandbox]:
    async with sandbox_on(engines) as sandbox:
        for service in SERVICES:
            await alembic(sandbox, ROOT / "services" / service, "upgrade", "head")
        connection = await sandbox.connect()
        await connection.execute("set search_path = wallets")  # where the trigger looks for accounts
        await write_books(connection)
        await connection.close()
        yield sandbox


@pytest.fixture
async def ledger(engines: dict[str, str], books: Sandbox) -> AsyncIterator[Ledger]:
    sandbox = Sandbox(engines)
    name = sandbox.environment["POSTGRES_DB"]
    maintenance = await sandbox.connect(engines["POSTGRES_DB"])
    await maintenance.execute(f"create database {name} template {books.environment['POSTGRES_DB']}")
    owner = await sandbox.connect()
    ledger = Ledger(sandbox, owner)
    yield ledger
    ledger.audit.close()
    await owner.close()
    await drop_database(maintenance, name)
    await maintenance.close()
    with sandbox.mongo() as mongo:
        mongo.drop_database(sandbox.environment["MONGO_DB"])
