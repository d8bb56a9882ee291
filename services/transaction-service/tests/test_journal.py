"""The journal alone on PostgreSQL, as two processes have it: nobody else opens, sweeps or closes here."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from shared.database import BATCH_LOCK_TIMEOUT_MS, POOL_SIZE, Asyncpg, Database, LockTimeoutError, migrate
from shared.ids import new_id
from shared.money import Money
from shared.outbox import Relay
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually
from transaction_service.answers import Answer
from transaction_service.app import FOLDER
from transaction_service.domain import (
    Command,
    Decision,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    RefundExceedsRemainingError,
    Reversal,
    Status,
    Transaction,
    Type,
)
from transaction_service.journal import LOOK_SECONDS, Journal, Opened
from transaction_service.settings import TransactionSettings

ALICE, BOB = new_id(), new_id()
# Three lock time-outs and the look at what is kept, twice: the machine may be busy.
BOUND_SECONDS = 2 * (3 * BATCH_LOCK_TIMEOUT_MS / 1000 + LOOK_SECONDS)


class Table:
    """A look at the tables."""

    def __init__(self, connection: Asyncpg) -> None:
        self._connection = connection

    async def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(statement, *arguments)]

    async def count(self, user_id: UUID) -> int:
        [(count,)] = await self.sql("select count(*) from transactions.transactions where user_id = $1", user_id)
        return int(count)

    async def refunded(self, transaction: Transaction) -> int:
        [(minor,)] = await self.sql(
            "select refunded_minor from transactions.transactions where id = $1", transaction.id
        )
        return int(minor)

    async def events(self, *transactions: Transaction) -> list[tuple[str, int]]:
        rows = await self.sql(
            "select payload from transactions.outbox where key = any($1) order by position",
            [str(transaction.id) for transaction in transactions],
        )
        events = [json.loads(payload) for (payload,) in rows]
        return [(event["type"].split(".")[1], event["sequence"]) for event in events]

    async def due(self, transaction_id: UUID) -> None:
        """Whoever was at work on it is dead."""
        await self.sql("update transactions.transactions set next_attempt_at = now() where id = $1", transaction_id)


@pytest.fixture(scope="module")
async def databases(sandbox: Sandbox) -> AsyncIterator[tuple[Database, Database]]:
    settings = sandbox.settings(TransactionSettings)
    await migrate(settings, FOLDER)
    made = Database(settings), Database(settings)
    for database in made:
        await database.open()
    yield made
    for database in made:
        await database.close()


@pytest.fixture(scope="module")
async def journals(sandbox: Sandbox, databases: tuple[Database, Database]) -> AsyncIterator[tuple[Journal, Journal]]:
    settings = sandbox.settings(TransactionSettings)
    made = []
    async with AsyncExitStack() as stack:
        for database in databases:
            relay = Relay(database, settings, CollectorRegistry())
            stack.push_async_callback(relay.close)
            made.append(Journal(database, relay))
            stack.push_async_callback(made[-1].finish)
        yield made[0], made[1]


@pytest.fixture(scope="module")
def journal(journals: tuple[Journal, Journal]) -> Journal:
    return journals[0]


@pytest.fixture(scope="module")
async def table(sandbox: Sandbox, journal: Journal) -> AsyncIterator[Table]:
    connection = await sandbox.connect()
    yield Table(connection)
    await connection.close()


def transfer(key: str | None = None, minor: int = 2_000, **more: Any) -> Command:
    wallets = {"from_wallet_id": new_id(), "to_wallet_id": new_id()}
    return Command(Type.TRANSFER, amount=Money(minor, "USD"), key=key, **({"user_id": new_id()} | wallets | more))


def refund(original: Transaction, minor: int | None, key: str | None = None, **more: Any) -> Command:
    return Command(
        Type.REFUND,
        amount=None if minor is None else Money(minor, "USD"),
        original_id=original.id,
        original_type=original.type,
        from_wallet_id=original.to_wallet_id,
        to_wallet_id=original.from_wallet_id,
        key=key,
        **({"user_id": BOB} | more),
    )


async def opened(journal: Journal, *commands: Command) -> list[Transaction]:
    found = await journal.open(commands)
    assert all(isinstance(item, Transaction) for item in found), found
    return [item for item in found if isinstance(item, Transaction)]


async def done(journal: Journal, *commands: Command) -> list[Transaction]:
    """Completed transactions, received by Bob."""
    closed = await journal.close([Decision(t, payee_user_id=BOB) for t in await opened(journal, *commands)])
    return list(closed.values())


def kinds(items: Sequence[object]) -> list[type]:
    return sorted((type(item) for item in items), key=lambda kind: kind.__name__)


# ------------------------------------------------------------------------------------------------ keys in a batch


async def test_equal_commands_in_one_batch_are_one_transaction(journal: Journal, table: Table) -> None:
    command = transfer("k")

    items = await journal.open([command, replace(command), replace(command)])

    assert kinds(items) == [IdempotencyKeyInUseError, IdempotencyKeyInUseError, Transaction]
    assert await table.count(command.user_id) == 1


async def test_different_commands_under_one_key_in_one_batch_are_one_transaction(
    journal: Journal, table: Table
) -> None:
    command = transfer("k")

    items = await journal.open([command, replace(command, amount=Money(1, "USD")), replace(command, description="x")])

    assert kinds(items) == [IdempotencyKeyReusedError, IdempotencyKeyReusedError, Transaction]
    assert await table.count(command.user_id) == 1


async def test_without_keys_equal_commands_are_as_many_transactions(journal: Journal, table: Table) -> None:
    command = transfer()

    assert len(await opened(journal, command, command, command)) == 3
    assert await table.count(command.user_id) == 3


async def test_a_key_stands_for_one_wish_for_each_person_and_operation(journal: Journal, table: Table) -> None:
    [original] = await done(journal, transfer())
    hers, his = transfer("k", user_id=new_id()), transfer("k", user_id=new_id())
    back = refund(original, 500, "k", user_id=hers.user_id)

    first = await opened(journal, hers, his, back)
    again = await journal.open([hers, his, back])

    assert len({item.id for item in first}) == 3
    assert kinds(again) == [IdempotencyKeyInUseError] * 3
    assert (await table.count(hers.user_id), await table.count(his.user_id)) == (2, 1)


async def test_two_processes_open_the_same_hundred_keys_in_opposite_order_without_a_deadlock(
    journals: tuple[Journal, Journal], table: Table
) -> None:
    for _ in range(3):
        user_id = new_id()
        commands = [transfer(f"k{number}", user_id=user_id) for number in range(100)]

        here, there = await asyncio.gather(journals[0].open(commands), journals[1].open(commands[::-1]))

        for one, other in zip(here, there[::-1], strict=True):
            assert kinds([one, other]) == [IdempotencyKeyInUseError, Transaction]
        assert await table.count(user_id) == 100


# ------------------------------------------------------------------------------------------------ what a crash left


async def test_a_key_without_an_answer_is_resumed_by_the_retry_once_its_first_process_must_be_dead(
    journal: Journal, table: Table
) -> None:
    command = transfer("k")
    [first] = await opened(journal, command)
    [early] = await journal.open([command])
    await table.due(first.id)

    [resumed] = await journal.open([command])
    [meanwhile] = await journal.open([command])

    assert isinstance(early, IdempotencyKeyInUseError)
    assert isinstance(resumed, Transaction)
    assert (resumed.id, resumed.status, resumed.attempts) == (first.id, Status.PENDING, 1)
    assert isinstance(meanwhile, IdempotencyKeyInUseError)
    assert await table.count(command.user_id) == 1


async def test_another_wish_under_the_key_keeps_nobody_from_resuming_what_a_crash_left(
    journal: Journal, table: Table
) -> None:
    command = transfer("k")
    [first] = await opened(journal, command)
    await table.due(first.id)

    others = await journal.open([replace(command, description=str(number)) for number in range(3)])
    [resumed] = await journal.open([command])

    assert kinds(others) == [IdempotencyKeyReusedError] * 3
    assert isinstance(resumed, Transaction)
    assert (resumed.id, resumed.attempts) == (first.id, 1)


async def test_a_wish_is_resumed_beside_another_one_under_its_key(journal: Journal, table: Table) -> None:
    command = transfer("k")
    [first] = await opened(journal, command)
    await table.due(first.id)

    other, resumed = await journal.open([replace(command, description="x"), command])

    assert isinstance(other, IdempotencyKeyReusedError)
    assert isinstance(resumed, Transaction)
    assert (resumed.id, resumed.attempts) == (first.id, 1)


async def test_two_retries_and_two_sweepers_at_once_resume_it_once(
    journals: tuple[Journal, Journal], table: Table
) -> None:
    command = transfer("k")
    [first] = await opened(journals[0], command)
    await table.due(first.id)

    retries = asyncio.gather(*(journal.open([command]) for journal in journals))
    sweeps = asyncio.gather(*(journal.claim_due(frozenset(Type)) for journal in journals))
    resumed: list[Opened] = [item for items in await retries for item in items]
    swept = [item for items in await sweeps for item in items]

    assert [item.id for item in [*resumed, *swept] if isinstance(item, Transaction)] == [first.id]


async def test_a_dead_process_leaves_nothing_for_longer_than_25_seconds(journal: Journal, table: Table) -> None:
    [original] = await done(journal, transfer())
    [first, second] = await opened(journal, transfer("k"), refund(original, 5))
    await table.due(first.id)
    [claimed] = await journal.claim_due(frozenset(Type))
    cancelled = await journal.request_cancel(second.id)

    leases = await table.sql(
        "select id, round(extract(epoch from next_attempt_at - now())) between 24 and 25 "
        "from transactions.transactions where id = any($1)",
        [claimed.id, cancelled.id if cancelled else None],
    )

    assert sorted(leases) == sorted([(first.id, True), (second.id, True)])


# ---------------------------------------------------------------------------------------------------------- closing


async def test_two_processes_close_a_transaction_once(journals: tuple[Journal, Journal], table: Table) -> None:
    command = transfer("k")
    [transaction] = await opened(journals[0], command)
    ways = [Decision(transaction, payee_user_id=BOB), Decision(transaction, "insufficient_funds", 5)]

    closed = await asyncio.gather(*(journal.close([way]) for journal in journals for way in ways))

    [status] = {ended.status for found in closed for ended in found.values()}
    assert await table.events(transaction) == [(status.value, 1)]
    [answer] = await journals[1].open([command])
    assert isinstance(answer, Answer)
    assert (answer.status, answer.replayed) == (201 if status is Status.COMPLETED else 402, True)


async def test_what_is_ended_neither_waits_nor_is_cancelled_nor_swept(journal: Journal, table: Table) -> None:
    [ended] = await done(journal, transfer())

    waited = await journal.wait([replace(ended, status=Status.PENDING)])

    assert waited[ended.id].status is Status.COMPLETED
    assert await journal.request_cancel(ended.id) is None
    await journal.note(new_id(), ended.id)
    assert ended.id not in {item.id for item in await journal.claim_due(frozenset(Type))}
    assert await table.events(ended) == [("completed", 1)]


async def test_waiting_is_told_once_and_its_answer_stands(journals: tuple[Journal, Journal], table: Table) -> None:
    command = transfer("k")
    [transaction] = await opened(journals[0], command)

    await asyncio.gather(*(journal.wait([transaction]) for journal in journals for _ in range(3)))
    [first] = await journals[0].open([command])
    await journals[1].close([Decision(transaction, payee_user_id=BOB)])
    [again] = await journals[0].open([command])

    assert isinstance(first, Answer)
    assert (first.status, first.replayed) == (202, True)
    assert again == first
    assert await table.events(transaction) == [("pending", 1), ("completed", 2)]


@pytest.mark.parametrize("code", ["wallet_not_found", "currency_mismatch", "not_a_merchant"])
async def test_a_wrong_request_frees_its_key_but_not_once_somebody_may_have_heard_of_it(
    journal: Journal, table: Table, code: str
) -> None:
    command, waiting, swept = transfer("k"), transfer("k"), transfer("k")
    first, second, third = await opened(journal, command, waiting, swept)
    await journal.wait([second])
    await table.due(third.id)
    [claimed] = await journal.claim_due(frozenset(Type))

    await journal.close([Decision(first, code), Decision(second, code), Decision(claimed, code)])
    items = await journal.open([command, waiting, swept])

    assert isinstance(items[0], Transaction)
    assert items[0].id != first.id
    assert [item.status for item in items if isinstance(item, Answer)] == [202, 404 if "found" in code else 422]


async def test_who_has_been_promised_202_keeps_the_key_of_a_wrong_request(journal: Journal, table: Table) -> None:
    """Its end and its late waiting come into one commit."""
    command = transfer("k")
    [first] = await opened(journal, command)

    refused = journal.promise([first])
    closed, waited = await asyncio.gather(journal.close([Decision(first, "wallet_not_found")]), journal.wait([first]))
    [again] = await journal.open([command])

    assert refused == {}
    assert {closed[first.id].status, waited[first.id].status} == {Status.FAILED}
    assert isinstance(again, Answer)
    assert (again.status, str(first.id) in again.body, again.replayed) == (404, True, True)
    assert await table.count(command.user_id) == 1


async def test_who_has_lost_the_key_to_a_refusal_hears_the_refusal(journal: Journal, table: Table) -> None:
    command = transfer("k")
    [first] = await opened(journal, command)
    await journal.close([Decision(first, "wallet_not_found")])

    refused = journal.promise([first])
    journal.answered([first])

    assert refused[first.id].failure_code == "wallet_not_found"
    assert journal.promise([first]) == {}
    journal.answered([first])
    [again] = await opened(journal, command)
    assert again.id != first.id


# ------------------------------------------------------------------------------------------ what somebody else keeps


@asynccontextmanager
async def kept(sandbox: Sandbox, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Somebody has run the statement in a transaction and does not go on, for the length of the block."""
    connection = await sandbox.connect()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(statement, *arguments)
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


TAKE_KEYS = (
    "insert into transactions.idempotency_keys (user_id, operation, key, fingerprint, transaction_id) "
    "select $1, 'transactions.create', key, '', $1 from unnest($2::text[]) as key"
)
LOCK = "select from transactions.transactions where id = any($1::uuid[]) for update"


@pytest.mark.parametrize("stuck", [2, 24, 200])
async def test_keys_that_somebody_keeps_delay_nobody_else_for_long_however_many_they_are(
    sandbox: Sandbox, journal: Journal, table: Table, stuck: int
) -> None:
    user_id = new_id()
    commands = [transfer(f"k{number}", user_id=user_id) for number in range(stuck)]
    innocents = [transfer(), transfer("another's"), transfer("hers", user_id=user_id)]

    async with kept(sandbox, TAKE_KEYS, user_id, [command.key for command in commands]):
        began = time.monotonic()
        items = await journal.open([*innocents, *commands])
        seconds = time.monotonic() - began

    assert [type(item) for item in items] == [Transaction] * 3 + [LockTimeoutError] * stuck
    assert seconds < BOUND_SECONDS
    assert await table.count(user_id) == 1
    assert kinds(await journal.open(commands)) == [Transaction] * stuck


async def test_transactions_that_somebody_keeps_delay_nobody_else_for_long_however_many_they_are(
    sandbox: Sandbox, journal: Journal, table: Table
) -> None:
    stuck = await opened(journal, *(transfer() for _ in range(24)))
    [free, waiting] = await opened(journal, transfer(), transfer())
    [original] = await done(journal, transfer(minor=1_000))
    decisions = [Decision(item, payee_user_id=BOB) for item in [*stuck, free]]

    async with kept(sandbox, LOCK, [item.id for item in [*stuck, original]]):
        began = time.monotonic()
        closed, waited, [refunded], [innocent] = await asyncio.gather(
            journal.close(decisions),
            journal.wait([waiting]),
            journal.open([refund(original, 5)]),
            journal.open([transfer("k")]),
        )
        seconds = time.monotonic() - began

    assert (set(closed), set(waited)) == ({free.id}, {waiting.id})
    assert (type(refunded), type(innocent)) == (LockTimeoutError, Transaction)
    assert seconds < BOUND_SECONDS
    assert await table.refunded(original) == 0
    assert (await journal.close(decisions)).keys() == {item.id for item in stuck}


async def test_a_key_that_comes_free_meanwhile_is_taken(sandbox: Sandbox, journal: Journal, table: Table) -> None:
    user_id = new_id()
    opening = []
    async with kept(sandbox, TAKE_KEYS, user_id, ["k"]):
        opening.append(asyncio.ensure_future(journal.open([transfer("k", user_id=user_id), transfer()])))

        async def runs_into_it() -> bool:
            return bool(await table.sql("select 1 from pg_stat_activity where wait_event_type = 'Lock'"))

        await eventually(runs_into_it)

    assert kinds(await opening[0]) == [Transaction] * 2


# ---------------------------------------------------------------------------------------------------------- refunds


async def test_refunds_in_one_batch_take_what_is_left_in_their_order(journal: Journal, table: Table) -> None:
    [original] = await done(journal, transfer(minor=2_000))

    items = await journal.open(
        [refund(original, 700), refund(original, 1_301, "k"), refund(original, 700), refund(original, None)]
    )
    [more] = await journal.open([refund(original, None)])

    amounts = [item.amount.minor if isinstance(item, Transaction) else item for item in items]
    assert [amounts[0], amounts[2], amounts[3]] == [700, 700, 600]
    assert isinstance(amounts[1], RefundExceedsRemainingError)
    assert amounts[1].details["remaining"] == "13.00"
    assert isinstance(more, RefundExceedsRemainingError)
    assert await table.refunded(original) == 2_000
    assert await table.sql("select 1 from transactions.idempotency_keys where key = 'k' and user_id = $1", BOB) == []


async def test_refunds_by_two_processes_in_opposite_order_give_back_no_more_than_there_is(
    journals: tuple[Journal, Journal], table: Table
) -> None:
    originals = await done(journals[0], *(transfer(minor=1_000) for _ in range(40)))
    refunds = [refund(original, 600) for original in originals]

    here, there = await asyncio.gather(journals[0].open(refunds), journals[1].open(refunds[::-1]))

    for one, other in zip(here, there[::-1], strict=True):
        assert kinds([one, other]) == [RefundExceedsRemainingError, Transaction]
    assert [await table.refunded(original) for original in originals] == [600] * 40


async def test_a_refund_that_fails_gives_its_part_back_once_whoever_closes_it(
    journals: tuple[Journal, Journal], table: Table
) -> None:
    [original] = await done(journals[0], transfer(minor=1_000))
    first, second = await opened(journals[0], refund(original, 400), refund(original, 600))
    failure = Decision(first, "insufficient_funds", 0)

    closed = await asyncio.gather(*(journal.close([failure]) for journal in journals for _ in range(3)))
    late = await journals[1].close([Decision(first, payee_user_id=ALICE)])

    assert {ended.failure_code for found in closed for ended in found.values()} == {"insufficient_funds"}
    assert late == {}
    assert await table.refunded(original) == 600
    assert await table.events(first) == [("failed", 1)]
    await journals[0].close([Decision(second, payee_user_id=ALICE)])
    assert await table.refunded(original) == 600


async def test_two_refunds_that_fail_in_one_batch_both_give_their_part_back(journal: Journal, table: Table) -> None:
    [original] = await done(journal, transfer(minor=1_000))
    refunds = await opened(journal, refund(original, 400), refund(original, 300), refund(original, 200))

    await journal.close([Decision(item, "insufficient_funds", 0) for item in refunds[:2]])

    assert await table.refunded(original) == 200


async def test_a_dispute_takes_what_is_left_once_and_a_failed_refund_does_not_bring_it_back(
    journal: Journal, table: Table
) -> None:
    [original] = await done(journal, transfer(minor=1_000))
    [pending] = await opened(journal, refund(original, 300))
    dispute = Reversal(Type.DISPUTE, original.id, 1_000, "stripe")
    event = new_id()

    await asyncio.gather(*(journal.note(id_, dispute) for id_ in (event, event, new_id())))
    disputed = await table.refunded(original)
    await journal.close([Decision(pending, "charge_disputed", declined=True)])

    assert (disputed, await table.refunded(original)) == (1_000, 1_000)
    assert await table.sql(
        "select type, amount_minor from transactions.transactions where original_id = $1 and type <> 'refund'",
        original.id,
    ) == [("dispute", 1_000)]


# ------------------------------------------------------------------------------------------------------------ news


async def test_news_about_what_its_request_is_still_at_work_on_wakes_nobody(journal: Journal, table: Table) -> None:
    fresh, waiting = await opened(journal, transfer(), transfer())
    await journal.wait([waiting])

    for transaction in (fresh, waiting):
        await journal.note(new_id(), transaction.id)

    claimed = {item.id for item in await journal.claim_due(frozenset(Type))}
    assert claimed & {fresh.id, waiting.id} == {waiting.id}


async def test_news_that_come_while_it_is_being_asked_for_are_not_slept_through(
    journal: Journal, table: Table
) -> None:
    [transaction] = await opened(journal, transfer())
    await journal.wait([transaction])
    await journal.note(new_id(), transaction.id)
    assert transaction.id in {item.id for item in await journal.claim_due(frozenset(Type))}

    await journal.note(new_id(), transaction.id)
    await journal.wait([transaction])

    assert transaction.id in {item.id for item in await journal.claim_due(frozenset(Type))}


# --------------------------------------------------------------------------------------------------------- old keys


async def test_keys_are_kept_for_30_days_and_no_longer(journal: Journal, table: Table) -> None:
    command = transfer("old")
    user_id = command.user_id
    young = transfer("young", user_id=user_id)
    await journal.close([Decision(item, payee_user_id=BOB) for item in await opened(journal, command, young)])
    for key, age in (("old", "30 days 1 second"), ("young", "29 days 23 hours 59 minutes")):
        await table.sql(
            "update transactions.idempotency_keys set created_at = now() - $1::text::interval "
            "where user_id = $2 and key = $3",
            age,
            user_id,
            key,
        )

    await journal.forget_old_keys()

    assert await table.sql("select key from transactions.idempotency_keys where user_id = $1", user_id) == [
        ("young",)
    ]
    again, replayed = await journal.open([command, young])
    assert isinstance(again, Transaction)
    assert isinstance(replayed, Answer)
    assert await table.count(user_id) == 3


async def test_wishes_to_cancel_are_patient_and_in_nobodys_way(
    sandbox: Sandbox, databases: tuple[Database, Database], journal: Journal
) -> None:
    [wanted] = await opened(journal, transfer())

    async with kept(sandbox, LOCK, [wanted.id]):
        wishes = [asyncio.create_task(journal.request_cancel(wanted.id)) for _ in range(POOL_SIZE)]
        given_up, _ = await asyncio.wait(wishes, timeout=2 * BATCH_LOCK_TIMEOUT_MS / 1000)
        await asyncio.gather(opened(journal, transfer("k")), databases[0].check())

    assert not given_up
    assert [noted.id for noted in await asyncio.gather(*wishes) if noted] == [wanted.id] * POOL_SIZE
