"""What the database itself refuses, whoever asks: SQL around the code, as the owner of the schema."""

from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg
import pytest

from shared.database import Asyncpg, migrate
from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from transaction_service.app import FOLDER
from transaction_service.settings import TransactionSettings

ROW: Final = {
    "type": "'transfer'",
    "status": "'pending'",
    "amount_minor": "1000",
    "fee_minor": "0",
    "refunded_minor": "0",
    "original_id": "null",
    "failure_code": "null",
    "completed_at": "null",
}
COMPLETED: Final = {"status": "'completed'", "completed_at": "now()"}
FAILED: Final = {"status": "'failed'", "completed_at": "now()", "failure_code": "'declined'"}


@pytest.fixture(scope="module")
async def rows(sandbox: Sandbox) -> AsyncIterator[Asyncpg]:
    await migrate(sandbox.settings(TransactionSettings), FOLDER)
    connection = await sandbox.connect()
    await connection.execute("set search_path = transactions")
    yield connection
    await connection.close()


def insertion(id_: object = None, **change: str) -> str:
    """A transaction, with some of its columns in SQL."""
    values = ROW | change
    return (
        f"insert into transactions (id, user_id, currency, metadata, {', '.join(values)}) "
        f"values ('{id_ or new_id()}', '{new_id()}', 'USD', '{{}}', {', '.join(values.values())})"
    )


async def made(rows: Asyncpg, **change: str) -> str:
    id_ = str(new_id())
    await rows.execute(insertion(id_, **change))
    return id_


async def all_of(rows: Asyncpg) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await rows.fetch("select * from transactions order by id")]


async def assert_refused(rows: Asyncpg, sql: str, error: type[Exception], match: str) -> None:
    """The statement fails in this way, and everything is as it was."""
    before = await all_of(rows)

    with pytest.raises(error, match=match):
        await rows.execute(sql)

    assert await all_of(rows) == before


@pytest.mark.parametrize(
    ("constraint", "change"),
    [
        ("transactions_type", {"type": "'gift'"}),
        ("transactions_status", {"status": "'cancelled'", "completed_at": "now()"}),
        ("transactions_amount", {"amount_minor": "0"}),
        ("transactions_amount", {"amount_minor": "-1", "fee_minor": "-2"}),
        ("transactions_fee", {"fee_minor": "-1"}),
        ("transactions_fee", {"fee_minor": "1000"}),
        ("transactions_refunded", {"refunded_minor": "-1"}),
        ("transactions_refunded", {"refunded_minor": "1001"}),
        ("transactions_original", {"type": "'refund'"}),
        ("transactions_original", {"type": "'dispute'"}),
        ("transactions_original", {"type": "'payout_return'"}),
        ("transactions_original", {"original_id": "gen_random_uuid()"}),
        ("transactions_failure", {"failure_code": "'declined'"}),
        ("transactions_failure", {"status": "'failed'", "completed_at": "now()"}),
        ("transactions_failure", COMPLETED | {"failure_code": "'declined'"}),
        ("transactions_completed", {"completed_at": "now()"}),
        ("transactions_completed", {"status": "'completed'"}),
        ("transactions_completed", {"status": "'failed'", "failure_code": "'declined'"}),
    ],
)
async def test_a_transaction_that_cannot_be_is_refused(
    rows: Asyncpg, constraint: str, change: dict[str, str]
) -> None:
    sql = insertion(**change)

    # Of two that are broken the first by name is told.
    await assert_refused(rows, sql, asyncpg.CheckViolationError, constraint if len(change) == 1 else "transactions_")


async def test_a_transaction_is_undone_by_a_provider_once_and_refunded_as_often_as_one_likes(rows: Asyncpg) -> None:
    original = await made(rows, **COMPLETED)
    for kind in ("dispute", "payout_return", "refund", "refund"):
        await made(rows, type=f"'{kind}'", original_id=f"'{original}'", amount_minor="1")

    for kind in ("dispute", "payout_return"):
        again = insertion(type=f"'{kind}'", original_id=f"'{original}'", amount_minor="1")
        await assert_refused(rows, again, asyncpg.UniqueViolationError, "transactions_reversed_once")


@pytest.mark.parametrize("ended", [COMPLETED, FAILED], ids=["completed", "failed"])
@pytest.mark.parametrize(
    "change",
    [
        "status = 'pending', completed_at = null, failure_code = null",
        "status = 'failed', failure_code = 'closed', completed_at = now() + interval '1 s'",
        "status = 'completed', failure_code = null, completed_at = now() + interval '1 s'",
        "amount_minor = amount_minor + 1",
        "amount_minor = amount_minor + 1, refunded_minor = 1",
        "currency = 'EUR'",
        "fee_minor = 1",
        "type = 'payment'",
        "user_id = gen_random_uuid()",
        "payee_user_id = gen_random_uuid()",
        "from_wallet_id = gen_random_uuid()",
        "to_wallet_id = gen_random_uuid()",
        "id = gen_random_uuid()",
        "created_at = now() - interval '1 day'",
        "completed_at = now() - interval '1 day'",
        "next_attempt_at = now()",
        "event_sequence = event_sequence + 1",
        'metadata = \'{"a": "b"}\'',
    ],
)
async def test_what_has_ended_neither_goes_back_nor_changes(
    rows: Asyncpg, ended: dict[str, str], change: str
) -> None:
    id_ = await made(rows, **ended)

    sql = f"update transactions set {change} where id = '{id_}'"

    await assert_refused(rows, sql, asyncpg.CheckViolationError, "a transaction ends once")


async def test_what_has_ended_says_how_much_of_it_was_given_back(rows: Asyncpg) -> None:
    id_ = await made(rows, **COMPLETED)

    for minor in (300, 1_000, 0):
        await rows.execute("update transactions set refunded_minor = $1 where id = $2::uuid", minor, id_)
        assert await rows.fetchval("select refunded_minor from transactions where id = $1", id_) == minor
    await assert_refused(
        rows,
        f"update transactions set refunded_minor = 1001 where id = '{id_}'",
        asyncpg.CheckViolationError,
        "transactions_refunded",
    )


@pytest.mark.parametrize("ended", [COMPLETED, FAILED], ids=["completed", "failed"])
async def test_what_is_pending_may_end(rows: Asyncpg, ended: dict[str, str]) -> None:
    id_ = await made(rows, next_attempt_at="now()")
    change = ", ".join(f"{column} = {value}" for column, value in ended.items())

    await rows.execute(f"update transactions set {change}, next_attempt_at = null where id = '{id_}'")

    status = await rows.fetchval("select status from transactions where id = $1", id_)
    assert f"'{status}'" == ended["status"]


@pytest.mark.parametrize("sql", ["delete from transactions", "truncate transactions"])
async def test_transactions_are_kept(rows: Asyncpg, sql: str) -> None:
    await made(rows)

    await assert_refused(rows, sql, asyncpg.InsufficientPrivilegeError, "transactions are kept")


@pytest.mark.parametrize(
    "sql",
    [
        "delete from transactions",
        "truncate transactions",
        "alter table transactions disable trigger all",
        "drop trigger transactions_end_once on transactions",
        "alter table transactions drop constraint transactions_refunded",
        "create or replace function end_once() returns trigger language plpgsql as 'begin return new; end'",
        "set session_replication_role = replica",
    ],
)
async def test_the_service_itself_may_not_rewrite_history(rows: Asyncpg, sandbox: Sandbox, sql: str) -> None:
    connection = await sandbox.connect()
    try:
        await connection.execute("set search_path = transactions; set role transaction_service")
        await assert_refused(connection, sql, asyncpg.InsufficientPrivilegeError, "permission denied|must be owner")
    finally:
        await connection.close()
