"""What the database itself refuses, whoever asks: SQL around the code, as the owner of the schema."""

from typing import Any

import asyncpg
import httpx
import pytest

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person
from wallet_service.testing import EVERYTHING, LedgerClient, OpenWallet, Rows, posting

OUTSIDE = "external:stripe:USD"
Names = dict[str, Any]


@pytest.fixture(scope="module")
async def names(client: httpx.AsyncClient, ledger: LedgerClient) -> Names:
    """Wallets of Alice and Bob, some entries, and a hold of each kind, to be named in statements."""
    names: Names = {"unknown": new_id(), "posting": new_id()}
    alice, bob = Person(), Person()
    for name, owner, currency in (("alice", alice, "USD"), ("bob", bob, "USD"), ("euros", bob, "EUR")):
        body = {"user_id": str(owner.id), "currency": currency}
        names[name] = (await client.post("/wallets/create", json=body, headers=owner.headers)).json()["id"]
    await ledger.fund(alice, names["alice"], 1_000)
    for name, actions in (
        ("open", ["hold"]),
        ("captured", ["hold", "capture"]),
        ("released", ["hold", "release"]),
        ("tombstone", ["release"]),
    ):
        item = posting(alice, names["alice"], OUTSIDE, 100)
        await ledger.send(*(item | {"action": action} for action in actions))
        names[name] = item["id"]
    short = posting(alice, names["alice"], OUTSIDE, 5_000, action="hold")
    await ledger.send(short)
    return {name: f"'{value}'::uuid" for name, value in (names | {"refused": short["id"]}).items()}


async def assert_refused(rows: Rows, sql: str, error: type[Exception], match: str) -> None:
    """The statement fails in this way, and everything is as it was."""
    before = await rows(EVERYTHING), await rows("select * from holds order by id"), await rows("table postings")

    with pytest.raises(error, match=match):
        await rows(sql)

    assert (
        await rows(EVERYTHING),
        await rows("select * from holds order by id"),
        await rows("table postings"),
    ) == before


@pytest.mark.parametrize(
    "sql",
    [
        "update entries set amount_minor = amount_minor + 1",
        "delete from entries",
        "truncate entries",
        "truncate entries, postings",
        "update postings set refusal = null",
        "delete from postings",
        "truncate postings",
        "truncate holds",
        "truncate accounts, entries, postings, holds",
    ],
)
async def test_what_is_written_stays_even_for_the_owner_of_the_schema(names: Names, rows: Rows, sql: str) -> None:
    await assert_refused(rows, sql, asyncpg.InsufficientPrivilegeError, "is append-only")


@pytest.mark.parametrize("hold", ["open", "captured", "released", "tombstone", "refused"])
async def test_a_hold_is_never_removed(names: Names, rows: Rows, hold: str) -> None:
    sql = f"delete from holds where id = {names[hold]}"

    await assert_refused(rows, sql, asyncpg.InsufficientPrivilegeError, "holds are kept")


@pytest.mark.parametrize(
    ("hold", "change"),
    [
        ("open", "amount_minor = 99"),
        ("open", "amount_minor = 99, status = 'captured', ended_at = now()"),
        ("open", "account_id = {bob}"),
        ("open", "account_id = {bob}, status = 'released', ended_at = now()"),
        ("open", "id = {unknown}, status = 'released', ended_at = now()"),
        ("open", "account_id = null, amount_minor = null, status = 'released', ended_at = now()"),
        ("open", "status = 'refused', refusal = 'frozen', ended_at = now()"),
        ("open", "status = 'open'"),
        ("open", "status = 'gone'"),
        ("captured", "status = 'open', ended_at = null"),
        ("captured", "status = 'released'"),
        ("captured", "status = 'captured'"),
        ("captured", "amount_minor = 1"),
        ("released", "status = 'open', ended_at = null"),
        ("released", "status = 'captured'"),
        ("tombstone", "status = 'open', account_id = {alice}, amount_minor = 1, ended_at = null"),
        ("refused", "status = 'open', account_id = {alice}, amount_minor = 1, refusal = null, ended_at = null"),
        ("refused", "refusal = 'frozen'"),
    ],
)
async def test_a_hold_ends_once_and_changes_in_no_other_way(names: Names, rows: Rows, hold: str, change: str) -> None:
    sql = f"update holds set {change.format(**names)} where id = {names[hold]}"

    await assert_refused(rows, sql, asyncpg.CheckViolationError, "captured or released, once")


@pytest.mark.parametrize(
    ("values", "constraint"),
    [
        ("{alice}, 100, 'gone', null, now()", "holds_status"),
        ("{alice}, 0, 'open', null, null", "holds_amount"),
        ("{alice}, -1, 'open', null, null", "holds_amount"),
        ("{alice}, null, 'open', null, null", "holds_account"),
        ("null, 100, 'refused', 'frozen', now()", "holds_account"),
        ("null, null, 'open', null, null", "holds_of_an_account"),
        ("null, null, 'captured', null, now()", "holds_of_an_account"),
        ("null, null, 'refused', null, now()", "holds_refusal"),
        ("{alice}, 100, 'open', 'frozen', null", "holds_refusal"),
        ("{alice}, 100, 'open', null, now()", "holds_ended"),
        ("{alice}, 100, 'captured', null, null", "holds_ended"),
    ],
)
async def test_the_database_refuses_a_hold_that_cannot_be(
    names: Names, rows: Rows, values: str, constraint: str
) -> None:
    sql = (
        "insert into holds (id, account_id, amount_minor, status, refusal, ended_at) "
        f"values ({names['unknown']}, {values.format(**names)})"
    )

    await assert_refused(rows, sql, asyncpg.CheckViolationError, constraint)


async def test_a_transaction_has_one_hold_and_one_outcome(names: Names, rows: Rows) -> None:
    columns = "id, account_id, amount_minor, status"
    hold = f"insert into holds ({columns}) values ({names['open']}, {names['bob']}, 1, 'open')"
    outcome = f"insert into postings (id) values ({names['captured']})"

    await assert_refused(rows, hold, asyncpg.UniqueViolationError, "holds_pkey")
    await assert_refused(rows, outcome, asyncpg.UniqueViolationError, "postings_pkey")


@pytest.mark.parametrize(
    ("entries", "constraint"),
    [
        ("({alice}, 99, {posting}, 5, 5)", "must name accounts and sum to zero"),
        ("({alice}, 99, {posting}, -5, 5), ({bob}, 99, {posting}, 4, 5)", "must name accounts and sum to zero"),
        ("({alice}, 99, {posting}, -5, 5), ({euros}, 99, {posting}, 5, 5)", "must name accounts and sum to zero"),
        ("({alice}, 99, {posting}, -5, 5), ({unknown}, 99, {posting}, 5, 5)", "must name accounts and sum to zero"),
        ("({alice}, 99, {posting}, -5, 5), ({bob}, 99, {unknown}, 5, 5)", "must name accounts and sum to zero"),
        ("({alice}, 99, {posting}, 0, 5), ({bob}, 99, {posting}, 0, 5)", "entries_amount"),
        ("({alice}, 0, {posting}, -5, 5), ({bob}, 99, {posting}, 5, 5)", "entries_version"),
    ],
    ids=["one-sided", "unequal", "two-currencies", "unknown-account", "two-postings", "zero", "version"],
)
async def test_the_database_refuses_entries_that_do_not_balance(
    names: Names, rows: Rows, entries: str, constraint: str
) -> None:
    sql = (
        "insert into entries (account_id, version, posting_id, amount_minor, balance_minor, created_at) "
        f"select v.*, now() from (values {entries.format(**names)}) as v"
    )

    await assert_refused(rows, sql, asyncpg.CheckViolationError, constraint)


async def test_a_version_of_an_account_is_taken_once(names: Names, rows: Rows) -> None:
    sql = (
        "insert into entries (account_id, version, posting_id, amount_minor, balance_minor, created_at) "
        "select v.*, now() from (values ({alice}, 1, {posting}, -5, 5), ({bob}, 1, {posting}, 5, 5)) as v"
    ).format(**names)

    await assert_refused(rows, sql, asyncpg.UniqueViolationError, "entries_pkey")


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("balance_minor = -1, held_minor = 0", "accounts_not_overdrawn"),
        ("balance_minor = held_minor - 1", "accounts_not_overdrawn"),
        ("held_minor = balance_minor + 1", "accounts_not_overdrawn"),
        ("held_minor = -1", "accounts_held"),
        ("status = 'gone'", "accounts_status"),
        ("name = 'fees:USD'", "accounts_owner"),
        ("user_id = null", "accounts_owner"),
    ],
)
async def test_the_database_refuses_a_wallet_that_cannot_be(
    names: Names, rows: Rows, change: str, constraint: str
) -> None:
    sql = f"update accounts set {change} where id = {names['alice']}"

    await assert_refused(rows, sql, asyncpg.CheckViolationError, constraint)


async def test_a_person_has_one_wallet_a_currency_and_a_name_is_one_account(names: Names, rows: Rows) -> None:
    wallet = (
        f"insert into accounts (id, user_id, currency) select {names['unknown']}, user_id, 'USD' "
        f"from accounts where id = {names['alice']}"
    )
    account = f"insert into accounts (id, name, currency) values ({names['unknown']}, '{OUTSIDE}', 'USD')"

    await assert_refused(rows, wallet, asyncpg.UniqueViolationError, "accounts_user_currency")
    await assert_refused(rows, account, asyncpg.UniqueViolationError, "accounts_name_key")


@pytest.mark.parametrize(
    "sql",
    [
        "delete from entries",
        "update entries set version = 1",
        "truncate entries",
        "alter table entries disable trigger all",
        "delete from postings",
        "update postings set refusal = null",
        "delete from holds",
        "truncate holds",
        "alter table holds disable trigger holds_end_once",
        "drop trigger holds_end_once on holds",
        "delete from accounts",
        "alter table accounts drop constraint accounts_not_overdrawn",
        "drop table outbox",
        "create or replace function append_only() returns trigger language plpgsql as 'begin return new; end'",
        "set session_replication_role = replica",
    ],
)
async def test_the_service_itself_may_not_rewrite_history(
    sandbox: Sandbox, client: httpx.AsyncClient, sql: str
) -> None:
    connection = await sandbox.connect()
    try:
        await connection.execute("set search_path = wallets; set role wallet_service")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "sql", ["insert into postings (id) values ({unknown})", "update accounts set held_minor = 0"]
)
async def test_the_reconciler_reads_and_changes_nothing(sandbox: Sandbox, names: Names, rows: Rows, sql: str) -> None:
    connection = await sandbox.connect()
    try:
        await connection.execute("set search_path = wallets; set role reconciler")
        for table in ("accounts", "postings", "entries", "holds", "outbox"):
            await connection.fetch(f"select * from {table} limit 1")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql.format(**names))
    finally:
        await connection.close()


async def test_a_hold_that_is_open_may_be_ended(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    """The trigger refuses what it should, and nothing else."""
    alice = Person()
    item = posting(alice, await open_wallet(alice, minor=100), OUTSIDE, 100, action="hold")
    await ledger.send(item)

    await rows("update holds set status = 'released', ended_at = now() where id = $1::uuid", item["id"])

    assert await rows("select status from holds where id = $1::uuid", item["id"]) == [("released",)]
