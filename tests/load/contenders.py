"""Ways to move money from one wallet to another, each with the same tables, constraints, triggers and events."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

import asyncpg
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from shared import outbox
from shared.database import Asyncpg
from shared.events import OutgoingEvent, PostedEntry, WalletsPosted
from shared.http.context import Trace
from shared.ids import new_id
from shared.money import Money
from tests.load.arena import CURRENCY, Arena, Wallet, ledger_of
from wallet_service import models
from wallet_service.domain import AccountRef, Action, Posting

AMOUNT_MINOR = 1
TRACE = Trace("0193f0c0-0000-7000-8000-000000000000", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class Transfer(Protocol):
    """Moves `AMOUNT_MINOR` between two wallets, durably, before it returns."""

    async def __call__(self, payer: Wallet, payee: Wallet) -> None: ...


Contender = Callable[[Arena, int, bool], AbstractAsyncContextManager[Transfer]]


def pairs(arena: Arena, *, hot: bool) -> Callable[[], tuple[Wallet, Wallet]]:
    """Who pays whom next: anybody anybody else, or, where it is `hot`, anybody the one merchant."""
    chance = random.Random(1)  # noqa: S311 - a load, not a secret
    wallets, count = arena.wallets, len(arena.wallets)

    def spread() -> tuple[Wallet, Wallet]:
        payer = int(chance.random() * count)
        return wallets[payer], wallets[payer - 1 - int(chance.random() * (count - 1))]

    return (lambda: (wallets[int(chance.random() * count)], arena.merchant)) if hot else spread


@asynccontextmanager
async def set_based(arena: Arena, connections: int, relayed: bool) -> AsyncIterator[Transfer]:
    """wallet-service's ledger: calls of one transfer each, which its own batching puts together."""
    async with ledger_of(arena.settings, relayed=relayed) as ledger:

        async def transfer(payer: Wallet, payee: Wallet) -> None:
            source, target, amount = AccountRef(payer.id), AccountRef(payee.id), Money(AMOUNT_MINOR, CURRENCY)
            posting = Posting(new_id(), Action.MOVE, payer.user_id, source, target, amount, trace=TRACE)
            [outcome] = await ledger.apply([[posting]])
            if isinstance(outcome, Exception):
                raise outcome
            if outcome[0].refusal:
                raise AssertionError(outcome)

        yield transfer


@asynccontextmanager
async def naive(arena: Arena, connections: int, relayed: bool) -> AsyncIterator[Transfer]:
    """A transaction per transfer, by hand-written SQL: lock both rows, check, write, commit."""
    settings = arena.settings
    url = settings.postgres_url()
    async with asyncpg.create_pool(
        host=url.host,
        port=url.port,
        user=url.username,
        password=url.password,
        database=url.database,
        min_size=connections,
        max_size=connections,
        server_settings={"role": settings.role, "search_path": settings.schema_name},
    ) as pool:

        async def transfer(payer: Wallet, payee: Wallet) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await _transfer(connection, payer, payee)

        yield transfer


async def _transfer(connection: Asyncpg, payer: Wallet, payee: Wallet) -> None:
    rows = await connection.fetch(
        "select id, user_id, status, balance_minor, held_minor, version, last_entry_at from accounts "
        "where id = any($1) order by id for update",
        [payer.id, payee.id],
    )
    accounts = {row["id"]: row for row in rows}
    source, target = accounts[payer.id], accounts[payee.id]
    available_minor = source["balance_minor"] - source["held_minor"]
    _check(payer, source["user_id"], [source["status"], target["status"]], available_minor)
    now = max(datetime.now(UTC), *(row["last_entry_at"] for row in rows))
    posting_id = new_id()
    entries = [
        (payer, -AMOUNT_MINOR, source["balance_minor"] - AMOUNT_MINOR, source["version"] + 1),
        (payee, AMOUNT_MINOR, target["balance_minor"] + AMOUNT_MINOR, target["version"] + 1),
    ]
    for wallet, _, balance_minor, version in entries:
        await connection.execute(
            "update accounts set balance_minor = $2, version = $3, last_entry_at = $4 where id = $1",
            wallet.id,
            balance_minor,
            version,
            now,
        )
    await connection.execute("insert into postings (id) values ($1)", posting_id)
    await connection.execute(
        "insert into entries (account_id, amount_minor, balance_minor, version, posting_id, created_at) "
        "values ($1, $2, $3, $4, $9, $10), ($5, $6, $7, $8, $9, $10)",
        *(value for wallet, *rest in entries for value in (wallet.id, *rest)),
        posting_id,
        now,
    )
    event = event_of(posting_id, payer, entries)
    await connection.execute(
        "insert into outbox (event_id, topic, key, payload) values ($1, $2, $3, $4)",
        event.id,
        event.topic,
        event.key,
        event.payload,
    )


@asynccontextmanager
async def orm(arena: Arena, connections: int, relayed: bool) -> AsyncIterator[Transfer]:
    """A transaction per transfer, by SQLAlchemy's ORM."""
    settings = arena.settings
    engine = create_async_engine(
        settings.postgres_url(),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=60,
        connect_args={"server_settings": {"role": settings.role, "search_path": settings.schema_name}},
    )
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def transfer(payer: Wallet, payee: Wallet) -> None:
        async with sessions.begin() as session:
            await _transfer_by_orm(session, payer, payee)

    try:
        yield transfer
    finally:
        await engine.dispose()


async def _transfer_by_orm(session: AsyncSession, payer: Wallet, payee: Wallet) -> None:
    query = select(models.AccountRow).where(models.AccountRow.id.in_([payer.id, payee.id]))
    rows = (await session.scalars(query.order_by(models.AccountRow.id).with_for_update())).all()
    accounts = {row.id: row for row in rows}
    source, target = accounts[payer.id], accounts[payee.id]
    _check(payer, source.user_id, [source.status, target.status], source.balance_minor - source.held_minor)
    now = max(datetime.now(UTC), *(row.last_entry_at for row in rows if row.last_entry_at))
    posting = models.PostingRow(id=new_id())
    session.add(posting)
    entries = []
    for wallet, row, amount_minor in ((payer, source, -AMOUNT_MINOR), (payee, target, AMOUNT_MINOR)):
        row.balance_minor += amount_minor
        row.version += 1
        row.last_entry_at = now
        entries.append((wallet, amount_minor, row.balance_minor, row.version))
    values = [
        {
            "account_id": wallet.id,
            "version": version,
            "posting_id": posting.id,
            "amount_minor": amount_minor,
            "balance_minor": balance_minor,
            "created_at": now,
        }
        for wallet, amount_minor, balance_minor, version in entries
    ]
    await session.execute(insert(models.EntryRow).values(values))  # one statement, or they would not balance
    await outbox.append(session, models.outbox, [event_of(posting.id, payer, entries)])


def _check(payer: Wallet, owner: UUID | None, statuses: Sequence[str], available_minor: int) -> None:
    if owner != payer.user_id or set(statuses) != {"active"} or available_minor < AMOUNT_MINOR:
        raise AssertionError("a transfer of the benchmark is one that would be refused")


def event_of(posting_id: UUID, payer: Wallet, entries: Sequence[tuple[Wallet, int, int, int]]) -> OutgoingEvent:
    """What is told of a posting; its `entries` are wallet, amount, balance after it and version."""
    posted = [
        PostedEntry(
            wallet_id=wallet.id,
            user_id=wallet.user_id,
            amount_minor=amount_minor,
            balance_minor=balance_minor,
            version=version,
        )
        for wallet, amount_minor, balance_minor, version in entries
    ]
    data = WalletsPosted(posting_id=posting_id, currency=CURRENCY, entries=posted)
    return OutgoingEvent.of(data, subject=posting_id, sequence=1, actor=str(payer.user_id), trace=TRACE)
