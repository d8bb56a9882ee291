"""What comes together into one commit of the journal: one thing's trouble is its own, and everything is done once."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.database import Asyncpg, CommitUnknownError, LockTimeoutError, migrate
from shared.errors import AppError, OutcomeUnknownError
from shared.ids import new_id
from shared.money import Money
from shared.outbox import Relay
from shared.testing.counting import CountingDatabase
from shared.testing.lines import losing_a_commit
from shared.testing.sandbox import Sandbox
from transaction_service.answers import Answer
from transaction_service.app import FOLDER
from transaction_service.domain import Command, Decision, Transaction, Type
from transaction_service.journal import Journal, Opened
from transaction_service.settings import TransactionSettings

SHOP = new_id()
OPEN = b"insert into transactions as t"


@asynccontextmanager
async def journal_on(settings: TransactionSettings) -> AsyncIterator[tuple[Journal, CountingDatabase]]:
    database = CountingDatabase(settings)
    relay = Relay(database, settings, CollectorRegistry())
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(relay.close)
        await database.open()
        journal = Journal(database, relay)
        stack.push_async_callback(journal.finish)
        yield journal, database


@pytest.fixture(scope="module")
async def settings(sandbox: Sandbox) -> TransactionSettings:
    settings = sandbox.settings(TransactionSettings)
    await migrate(settings, FOLDER)
    return settings


@pytest.fixture(scope="module")
async def journal(settings: TransactionSettings) -> AsyncIterator[Journal]:
    async with journal_on(settings) as (journal, _):
        yield journal


@pytest.fixture(scope="module")
async def owner(sandbox: Sandbox, journal: Journal) -> AsyncIterator[Asyncpg]:
    connection = await sandbox.connect()
    await connection.execute("set search_path = transactions")
    yield connection
    await connection.close()


def transfer(key: str | None = None, minor: int = 1_000, **more: Any) -> Command:
    wallets = {"from_wallet_id": new_id(), "to_wallet_id": new_id()}
    return Command(Type.TRANSFER, amount=Money(minor, "USD"), key=key, **({"user_id": new_id()} | wallets | more))


def refund(original: Transaction, minor: int, key: str | None = None) -> Command:
    wallets = {"from_wallet_id": original.to_wallet_id, "to_wallet_id": original.from_wallet_id}
    about = {"original_id": original.id, "original_type": original.type}
    return Command(Type.REFUND, SHOP, Money(minor, "USD"), key=key, **wallets, **about)  # type: ignore[arg-type]


async def opened(journal: Journal, *commands: Command) -> list[Transaction]:
    found = await journal.open(commands)
    assert all(isinstance(item, Transaction) for item in found), found
    return [item for item in found if isinstance(item, Transaction)]


async def pending(journal: Journal, count: int) -> list[Transaction]:
    """Transfers of ten dollars that are open."""
    return await opened(journal, *(transfer() for _ in range(count)))


async def done(journal: Journal, count: int) -> list[Transaction]:
    """Completed transfers of ten dollars, received by the shop."""
    closed = await journal.close([paid(item) for item in await pending(journal, count)])
    return list(closed.values())


def paid(transaction: Transaction) -> Decision:
    return Decision(transaction, payee_user_id=SHOP)


async def events(owner: Asyncpg, *transactions: Transaction) -> Counter[str]:
    """How many events each transaction has had; no relay carries any away here."""
    rows = await owner.fetch(
        "select key from outbox where key = any($1)", [str(transaction.id) for transaction in transactions]
    )
    return Counter(row["key"] for row in rows)


async def statuses(owner: Asyncpg, *transactions: Transaction) -> list[str]:
    rows = await owner.fetch("select id, status from transactions where id = any($1)", [t.id for t in transactions])
    found = {row["id"]: row["status"] for row in rows}
    return [found[transaction.id] for transaction in transactions]


# ------------------------------------------------------------------------------------------------------ one commit


async def test_what_is_closed_and_what_is_opened_meanwhile_is_one_commit(journal: Journal, owner: Asyncpg) -> None:
    old, waiting = await opened(journal, transfer(), transfer())

    _, _, [new] = await asyncio.gather(
        journal.close([paid(old)]), journal.wait([waiting]), journal.open([transfer("k")])
    )

    assert isinstance(new, Transaction)
    written = await owner.fetch(
        "select xmin::text from transactions where id = any($1) "
        "union all select xmin::text from outbox where key = any($2) "
        "union all select xmin::text from idempotency_keys where transaction_id = $3",
        [old.id, waiting.id, new.id],
        [str(old.id), str(waiting.id)],
        new.id,
    )
    assert len(written) == 3 + 2 + 1
    assert len({row["xmin"] for row in written}) == 1


async def statements_of(settings: TransactionSettings, what: str, size: int) -> int:
    """How many a batch of so many things needs."""
    async with journal_on(settings) as (journal, database):
        share = size // 5 or 1 if what == "everything" else size
        to_close, to_wait = await pending(journal, share), await pending(journal, share)
        originals = await done(journal, share)
        to_fail = await opened(journal, *(refund(original, 1) for original in originals))
        user_id = new_id()
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "open": lambda: journal.open([transfer(f"k{number}", user_id=user_id) for number in range(share)]),
            "close": lambda: journal.close([paid(item) for item in to_close]),
            "wait": lambda: journal.wait(to_wait),
            "refund": lambda: journal.open([refund(original, 2) for original in originals]),
            "fail": lambda: journal.close([Decision(item, "insufficient_funds", 0) for item in to_fail]),
        }
        database.statements.clear()
        await asyncio.gather(*(act() for name, act in work.items() if what in {name, "everything"}))
        return len(database.statements)


@pytest.mark.parametrize("what", ["open", "close", "wait", "refund", "fail", "everything"])
async def test_a_batch_of_two_hundred_needs_as_many_statements_as_a_small_one(
    settings: TransactionSettings, what: str
) -> None:
    few, many = [await statements_of(settings, what, size) for size in (1, 200)]

    assert few == many
    assert 0 < many <= 18


# -------------------------------------------------------------------------------------------- trouble of one's own


async def test_a_row_that_the_database_refuses_is_not_its_neighbours_problem(
    journal: Journal, owner: Asyncpg
) -> None:
    user_id = new_id()
    to_close, to_wait = await opened(journal, transfer(), transfer())
    [original] = await done(journal, 1)
    good = [transfer(f"k{number}", user_id=user_id) for number in range(9)]
    bad = transfer("bad", fee_minor=1_000, user_id=user_id)  # as much as the amount, which no row may have

    closed, waited, items, [refunded] = await asyncio.gather(
        journal.close([paid(to_close)]),
        journal.wait([to_wait]),
        journal.open([*good[:4], bad, *good[4:]]),
        journal.open([refund(original, 5)]),
    )

    assert (set(closed), set(waited)) == ({to_close.id}, {to_wait.id})
    assert isinstance(refunded, Transaction)
    trouble = items.pop(4)
    assert isinstance(trouble, AppError)
    assert (trouble.code, trouble.status) == ("internal_error", 500)
    assert [type(item) for item in items] == [Transaction] * 9
    assert await owner.fetchval("select count(*) from transactions where user_id = $1", user_id) == 9
    assert await owner.fetchval("select count(*) from idempotency_keys where user_id = $1", user_id) == 9
    assert await owner.fetchval("select refunded_minor from transactions where id = $1", original.id) == 5
    assert await events(owner, to_close, to_wait) == {str(to_close.id): 1, str(to_wait.id): 1}


async def test_a_close_that_the_database_refuses_is_not_its_neighbours_problem(
    journal: Journal, owner: Asyncpg
) -> None:
    items = await pending(journal, 9)
    decisions = [paid(item) for item in items]
    decisions[4] = Decision(items[4], "poison")
    await owner.execute("alter table transactions add constraint poison check (failure_code <> 'poison') not valid")
    try:
        closed, [new] = await asyncio.gather(journal.close(decisions), journal.open([transfer()]))
    finally:
        await owner.execute("alter table transactions drop constraint poison")

    assert isinstance(new, Transaction)
    assert closed.keys() == {item.id for item in items} - {items[4].id}
    assert await statuses(owner, *items) == ["completed"] * 4 + ["pending"] + ["completed"] * 4
    assert set((await events(owner, *items)).values()) == {1}
    assert (await journal.close([paid(items[4])])).keys() == {items[4].id}


async def test_a_lock_time_out_is_not_its_neighbours_problem(
    journal: Journal, owner: Asyncpg, sandbox: Sandbox
) -> None:
    stuck, free, waiting = await opened(journal, transfer("k"), transfer(), transfer())
    keeper = await sandbox.connect()
    keeping = keeper.transaction()
    await keeping.start()
    # The key of what is to be closed: the transaction itself is free.
    await keeper.execute("select from transactions.idempotency_keys where transaction_id = $1 for update", stuck.id)
    try:
        results = await asyncio.gather(
            journal.close([paid(stuck)]),
            journal.close([paid(free)]),
            journal.wait([waiting]),
            journal.open([transfer("other")]),
            return_exceptions=True,
        )
    finally:
        await keeping.rollback()
        await keeper.close()

    refused, closed, waited, items = results
    assert isinstance(refused, LockTimeoutError)
    assert isinstance(closed, dict)
    assert isinstance(waited, dict)
    assert isinstance(items, list)
    assert (set(closed), set(waited), [type(item) for item in items]) == (
        {free.id},
        {waiting.id},
        [Transaction],
    )
    assert await statuses(owner, stuck, free, waiting) == ["pending", "completed", "pending"]
    assert (await journal.close([paid(stuck)])).keys() == {stuck.id}


# ------------------------------------------------------------------------------------------------- unknown commits


@pytest.mark.parametrize("for_good", [False, True], ids=["asked-again", "for-good"])
async def test_an_unknown_commit_of_many_things_is_done_once(
    journal: Journal, owner: Asyncpg, sandbox: Sandbox, settings: TransactionSettings, *, for_good: bool
) -> None:
    to_close, to_wait, [original] = await pending(journal, 3), await pending(journal, 2), await done(journal, 1)
    back = refund(original, 300, str(new_id()))
    commands = [transfer("a"), transfer("b"), transfer(), back, refund(original, 400)]
    host, port = sandbox.environment["POSTGRES_HOST"], int(sandbox.environment["POSTGRES_PORT"])

    async with losing_a_commit(host, port, OPEN, for_good=for_good) as line:
        far = settings.model_copy(update={"postgres_host": "127.0.0.1", "postgres_port": line.port})
        async with journal_on(far) as (distant, _):
            closed, waited, items = await asyncio.gather(
                distant.close([paid(item) for item in to_close]),
                distant.wait(to_wait),
                distant.open(commands),
                return_exceptions=True,
            )
        assert line.cuts == 1

    assert await statuses(owner, *to_close, *to_wait) == ["completed"] * 3 + ["pending"] * 2
    assert await events(owner, *to_close, *to_wait) == {str(item.id): 1 for item in [*to_close, *to_wait]}
    assert await owner.fetchval("select refunded_minor from transactions where id = $1", original.id) == 700
    users = [command.user_id for command in commands if command.user_id != SHOP]
    assert await owner.fetchval("select count(*) from transactions where user_id = any($1)", users) == 3
    assert isinstance(items, list)
    if for_good:
        assert isinstance(closed, CommitUnknownError)
        assert isinstance(waited, CommitUnknownError)
        assert [type(item) for item in items] == [OutcomeUnknownError] * 5
    else:
        # What was closed by the commit that nobody heard of is not closed again, and is found as it is.
        assert closed == {}
        assert isinstance(waited, dict)
        assert waited.keys() == {item.id for item in to_wait}
        assert [type(item) for item in items] == [Transaction] * 5


# --------------------------------------------------------------------------------------------------- two processes


async def test_two_processes_write_the_same_in_opposite_order_without_a_deadlock(
    settings: TransactionSettings, owner: Asyncpg
) -> None:
    before = await owner.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    async with journal_on(settings) as (here, _), journal_on(settings) as (there, _):
        for round_ in range(4):
            user_id = new_id()
            to_close, to_fail, to_wait = [await pending(here, count) for count in (30, 30, 20)]
            originals = await done(here, 30)
            failing = await opened(here, *(refund(original, 100) for original in originals))
            commands = [transfer(f"k{number}", user_id=user_id) for number in range(30)]
            refunds = [refund(original, 950) for original in originals]
            decisions = [
                *map(paid, to_close),
                *(Decision(item, "insufficient_funds", 0) for item in [*to_fail, *failing]),
            ]
            draw = random.Random(round_)  # noqa: S311 - a mixture
            draw.shuffle(decisions)

            async def write(journal: Journal, order: int, work: tuple[Any, ...]) -> tuple[Any, ...]:
                commands, refunds, decisions, waiting = (items[::order] for items in work)
                return await asyncio.gather(
                    journal.open(commands), journal.close(decisions), journal.open(refunds), journal.wait(waiting)
                )

            work = (commands, refunds, decisions, to_wait)
            one, other = await asyncio.gather(write(here, 1, work), write(there, -1, work))

            _assert_opened_once(one[0], other[0][::-1])
            closed = [*one[1], *other[1]]
            assert sorted(closed) == sorted(decision.transaction.id for decision in decisions)
            assert await statuses(owner, *to_wait) == ["pending"] * 20
            assert set((await events(owner, *to_close, *to_fail, *failing, *to_wait)).values()) == {1}
            taken = await owner.fetch(
                "select o.refunded_minor, coalesce(sum(r.amount_minor), 0)::bigint as refunds from transactions o "
                "left join transactions r on r.original_id = o.id and r.status <> 'failed' "
                "where o.id = any($1) group by o.id",
                [original.id for original in originals],
            )
            assert {row["refunded_minor"] == row["refunds"] <= 1_000 for row in taken} == {True}
    after = await owner.fetchval("select deadlocks from pg_stat_database where datname = current_database()")
    assert after == before


def _assert_opened_once(one: list[Opened], other: list[Opened]) -> None:
    """Of two who wanted to open the same, one has."""
    for pair in zip(one, other, strict=True):
        assert sum(isinstance(item, Transaction) for item in pair) == 1
        assert not any(isinstance(item, Answer) for item in pair)
