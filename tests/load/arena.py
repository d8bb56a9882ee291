"""A PostgreSQL of the benchmark's own, as careful with the data as in production, with funded wallets."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from prometheus_client import CollectorRegistry

from infrastructure.embedded.environment import ENGINES
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.stack import Stack
from shared.background import running
from shared.database import Database, migrate
from shared.ids import new_id
from shared.money import Money
from shared.outbox import Relay
from shared.testing.sandbox import settings_of
from tests.load.premises import pid_of
from wallet_service.app import FOLDER
from wallet_service.domain import AccountRef, Action, Posting, account_ref
from wallet_service.service import Ledger
from wallet_service.settings import WalletSettings
from wallet_service.testing import assert_sound

CURRENCY = "USD"
FUNDS_MINOR = 10**10
FUNDED_AT_ONCE = 1000
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

WITHOUT_EVENT = (
    "select id from postings p where refusal is null and not exists (select from outbox o where o.key = p.id::text)"
)


@dataclass(frozen=True, slots=True)
class Wallet:
    """A wallet and whose it is."""

    id: UUID
    user_id: UUID


@dataclass(frozen=True, slots=True)
class Arena:
    """Where the contenders meet; `directory` is the engines' folder, `pids` are those of the engines by name."""

    directory: Path
    variables: Mapping[str, str]
    pids: Mapping[str, int]
    wallets: Sequence[Wallet]
    merchant: Wallet

    @property
    def postgres_pid(self) -> int:
        """The server's first process; the others are its children."""
        return self.pids["postgres"]

    @property
    def settings(self) -> WalletSettings:
        """What wallet-service is told; no `.env` is read."""
        return settings_of(WalletSettings, self.variables)


@contextmanager
def arena(wallets: int, *, everything: bool) -> Iterator[Arena]:
    """Engines on free ports in a folder of their own, PostgreSQL alone or `everything`; nothing of them is left."""
    with tempfile.TemporaryDirectory(prefix="payment-system-load-") as folder:
        stack = Stack(Path(folder), ports="free", detached=False, durable=True, environ={})
        try:
            engines = ENGINES if everything else ["postgres"]
            variables = stack.start(engines)
            people = [Wallet(new_id(), new_id()) for _ in range(wallets + 1)]
            asyncio.run(_prepare(settings_of(WalletSettings, variables), people))
            pids = {name: pid_of(stack, name) for name in engines}
            yield Arena(stack.directory, variables, pids, people[1:], people[0])
        finally:
            stack.stop()


async def connect(settings: WalletSettings) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection as the owner of the schema."""
    connection = await asyncpg.connect(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password.get_secret_value(),
        database=settings.postgres_db,
    )
    await connection.execute("set search_path = wallets")
    return connection


async def violations(settings: WalletSettings, *, relayed: bool) -> str:
    """What the ledger's invariants find, empty when they hold; events that were `relayed` are not looked for."""
    connection = await connect(settings)

    async def rows(sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]

    try:
        await assert_sound(rows)
        missing = [] if relayed else await rows(WITHOUT_EVENT)
    except AssertionError as error:
        return str(error)
    finally:
        await connection.close()
    return f"{len(missing)} postings have no event" if missing else ""


@asynccontextmanager
async def ledger_of(settings: WalletSettings, *, relayed: bool) -> AsyncIterator[Ledger]:
    """wallet-service's ledger, as its own process has it; its events stay in the outbox where not `relayed`."""
    database = Database(settings)
    relay = Relay(database, settings, CollectorRegistry())
    await database.open()
    ledger = Ledger(database, relay)
    try:
        async with running(*([relay.run] if relayed else [])):
            yield ledger
            await ledger.close()
    finally:
        await relay.close()
        await database.close()


async def _prepare(settings: WalletSettings, people: Sequence[Wallet]) -> None:
    """The schema, and wallets with money from outside."""
    await migrate(settings, FOLDER)
    connection = await connect(settings)
    try:
        for setting in DURABLE:
            if await connection.fetchval(f"show {setting}") != "on":
                raise EmbeddedError(f"{setting} is not on: a figure would mean nothing.")
        rows = [(each.id, each.user_id, CURRENCY) for each in people]
        await connection.copy_records_to_table("accounts", records=rows, columns=["id", "user_id", "currency"])
        async with ledger_of(settings, relayed=False) as ledger:
            for begin in range(0, len(people), FUNDED_AT_ONCE):
                await ledger.apply([[_funding(each)] for each in people[begin : begin + FUNDED_AT_ONCE]])
        await connection.execute("vacuum analyze")
    finally:
        await connection.close()


def _funding(wallet: Wallet) -> Posting:
    source, target = account_ref(f"external:stripe:{CURRENCY}"), AccountRef(wallet.id)
    return Posting(new_id(), Action.MOVE, wallet.user_id, source, target, Money(FUNDS_MINOR, CURRENCY))
