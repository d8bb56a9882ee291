"""The ledger over a real PostgreSQL."""

import asyncio
import json
from typing import Any

import asyncpg
import httpx
import pytest

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person, service_headers
from wallet_service.domain import account_ref
from wallet_service.testing import LedgerClient, OpenWallet, Rows, posting

EVERYTHING = """
select 'account', id::text, balance_minor, held_minor, version, status from accounts
union all select 'entry', account_id::text || posting_id::text, amount_minor, balance_minor, version, '' from entries
order by 1, 2
"""


async def balance(rows: Rows, wallet_id: str) -> int:
    [(minor,)] = await rows("select balance_minor from accounts where id = $1::uuid", wallet_id)
    return int(minor)


async def assert_invariants(rows: Rows) -> None:
    """Sums are zero, balances are what the entries say, versions have no gaps, no wallet is overdrawn."""
    assert (
        await rows(
            "select a.currency, sum(e.amount_minor) from entries e join accounts a on a.id = e.account_id "
            "group by a.currency having sum(e.amount_minor) <> 0"
        )
        == []
    )
    assert (
        await rows(
            "select a.id from accounts a left join entries e on e.account_id = a.id group by a.id "
            "having a.balance_minor <> coalesce(sum(e.amount_minor), 0) or a.version <> count(e.version) "
            "  or a.version <> coalesce(max(e.version), 0) or (a.user_id is not null and a.balance_minor < 0)"
        )
        == []
    )
    assert (
        await rows(
            "select posting_id from (select *, sum(amount_minor) over (partition by account_id order by version) "
            "as running, lag(created_at) over (partition by account_id order by version) as previous from entries) e "
            "where running <> balance_minor or created_at < previous"
        )
        == []
    )


async def test_a_transfer_moves_money_and_a_repeat_does_not(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 10_000)
    transfer = posting(alice, source, target, 2_500)

    [first] = await ledger.send(transfer)
    [again] = await ledger.send(transfer)

    assert first == again
    assert first == {
        "id": transfer["id"],
        "status": "applied",
        "code": None,
        "available_minor": None,
        "target_user_id": str(bob.id),
    }
    assert (await balance(rows, source), await balance(rows, target)) == (7_500, 2_500)
    await assert_invariants(rows)


async def test_a_refusal_is_as_final_as_a_success(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    transfer = posting(alice, source, target, 500)

    [refused] = await ledger.send(transfer)
    await ledger.fund(alice, source, 10_000)
    [again] = await ledger.send(transfer)

    assert (refused["status"], refused["code"], refused["available_minor"]) == ("refused", "insufficient_funds", 0)
    assert again == refused
    assert await balance(rows, target) == 0


async def test_each_refusal_leaves_the_ledger_as_it_was(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    usd, eur = await open_wallet(alice), await open_wallet(alice, "EUR")
    theirs, frozen, closed = await open_wallet(bob), await open_wallet(Person()), await open_wallet(Person())
    ice = Person()
    iced = await open_wallet(ice)
    await ledger.fund(alice, usd, 1_000)
    await ledger.fund(bob, theirs, 1_000)
    await ledger.fund(ice, iced, 1_000)
    await rows("update accounts set status = 'frozen' where id = any($1::uuid[])", [frozen, iced])
    await rows("update accounts set status = 'closed' where id = $1::uuid", closed)
    before = await rows(EVERYTHING)

    outcomes = await ledger.send(
        posting(alice, usd, theirs, 1_001),
        posting(alice, theirs, usd, 1),
        posting(alice, usd, eur, 1),
        posting(alice, usd, theirs, 1, "EUR"),
        posting(alice, usd, closed, 1),
        posting(ice, iced, usd, 1),
        posting(alice, usd, str(new_id()), 1),
        posting(alice, str(new_id()), usd, 1),
        posting(alice, "external:stripe:USD", theirs, 1),
    )

    assert [outcome["code"] for outcome in outcomes] == [
        "insufficient_funds",
        "not_owner",
        "currency_mismatch",
        "currency_mismatch",
        "closed",
        "frozen",
        "wallet_not_found",
        "wallet_not_found",
        "not_owner",
    ]
    assert await rows(EVERYTHING) == before


async def test_a_system_account_cannot_be_named_by_its_id(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """Its id follows from its name, so anybody can work it out."""
    alice = Person()
    wallet_id = await open_wallet(alice)
    await ledger.fund(alice, wallet_id, 1_000)
    external = str(account_ref("external:stripe:USD").id)
    before = await rows(EVERYTHING)

    outcomes = await ledger.send(
        posting(alice, external, wallet_id, 100_000_000), posting(alice, wallet_id, external, 100)
    )

    assert [outcome["code"] for outcome in outcomes] == ["wallet_not_found", "wallet_not_found"]
    assert await rows(EVERYTHING) == before


async def test_no_entry_is_older_than_the_one_before_it(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """Whatever the server's clock does meanwhile."""
    alice = Person()
    wallet_id = await open_wallet(alice)
    await ledger.fund(alice, wallet_id, 1_000)
    await rows("update accounts set last_entry_at = now() + interval '2 hours' where id = $1::uuid", wallet_id)

    await ledger.fund(alice, wallet_id, 1_000)

    [(not_before,)] = await rows(
        "select e.created_at >= now() + interval '1 hour 59 minutes' from entries e "
        "where account_id = $1::uuid and version = 2",
        wallet_id,
    )
    assert not_before is True


async def test_one_bad_item_is_not_its_neighbours_problem(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 300)

    outcomes = await ledger.send(
        posting(alice, source, target, 100),
        posting(alice, source, str(new_id()), 100),
        posting(alice, source, target, 201),
        posting(alice, source, target, 200),
    )

    assert [outcome["status"] for outcome in outcomes] == ["applied", "refused", "refused", "applied"]
    assert (await balance(rows, source), await balance(rows, target)) == (0, 300)


async def test_fifty_concurrent_retries_of_one_posting_move_money_once(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 1_000)
    transfer = posting(alice, source, target, 100)

    outcomes = await asyncio.gather(*(ledger.send(transfer) for _ in range(50)))

    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert (await balance(rows, source), await balance(rows, target)) == (900, 100)


async def test_fifty_concurrent_retries_for_a_wallet_that_is_not_there_are_one_refusal(
    ledger: LedgerClient, rows: Rows
) -> None:
    alice = Person()
    transfer = posting(alice, str(new_id()), str(new_id()), 100)

    outcomes = await asyncio.gather(*(ledger.send(transfer) for _ in range(50)))

    assert {outcome["code"] for [outcome] in outcomes} == {"wallet_not_found"}
    assert await rows("select count(*) from postings where id = $1::uuid", transfer["id"]) == [(1,)]


async def test_a_wallet_cannot_be_overdrawn_by_many_at_once(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 1_000)

    outcomes = await asyncio.gather(*(ledger.send(posting(alice, source, target, 90)) for _ in range(40)))

    assert sum(outcome["status"] == "applied" for [outcome] in outcomes) == 11
    assert (await balance(rows, source), await balance(rows, target)) == (10, 990)
    await assert_invariants(rows)


async def test_batches_that_cross_each_other_neither_deadlock_nor_lose_money(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    people = [Person() for _ in range(6)]
    wallets = [await open_wallet(person) for person in people]
    for person, wallet_id in zip(people, wallets, strict=True):
        await ledger.fund(person, wallet_id, 10_000)
    batches = [
        [posting(people[i], wallets[i], wallets[(i + step) % 6], 10 + step) for i in order]
        for step in range(1, 6)
        for order in (range(6), range(5, -1, -1))
    ]

    await asyncio.gather(*(ledger.send(*batch) for batch in batches * 2))

    assert sum([await balance(rows, wallet_id) for wallet_id in wallets]) == 60_000
    await assert_invariants(rows)


async def test_a_check_refuses_as_the_ledger_would_and_moves_nothing(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    mine, theirs = await open_wallet(alice, "CHF"), await open_wallet(bob, "CHF")
    before = await rows(EVERYTHING)
    good, foreign, mixed = (
        posting(alice, "external:any:CHF", mine, 100, "CHF"),
        posting(alice, "external:any:CHF", theirs, 100, "CHF"),
        posting(alice, "external:any:USD", mine, 100, "USD"),
    )

    outcomes = await ledger.send(*(item | {"action": "check"} for item in (good, foreign, mixed)))

    assert [outcome["code"] for outcome in outcomes] == [None, "not_owner", "currency_mismatch"]
    assert await rows(EVERYTHING) == before
    assert await rows("select id from accounts where name = 'external:any:CHF'") == []
    assert await rows("select id::text from postings where id = any($1::uuid[])", [good["id"], foreign["id"]]) == [
        (foreign["id"],)
    ]


async def test_what_a_check_refused_can_never_be_posted(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    deposit = posting(alice, "external:stripe:USD", wallet_id, 100)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)
    [checked] = await ledger.send(deposit | {"action": "check"})
    await rows("update accounts set status = 'active' where id = $1::uuid", wallet_id)

    [posted] = await ledger.send(deposit)

    assert (checked["code"], posted["code"]) == ("closed", "closed")
    assert await balance(rows, wallet_id) == 0


async def test_a_check_knows_what_was_posted(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    deposit = posting(alice, "external:stripe:USD", wallet_id, 100)
    await ledger.send(deposit)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)

    [checked] = await ledger.send(deposit | {"action": "check"})

    assert (checked["status"], checked["code"]) == ("applied", None)


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
    ],
)
async def test_what_is_written_stays_even_for_the_owner_of_the_schema(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, sql: str
) -> None:
    alice = Person()
    await ledger.fund(alice, await open_wallet(alice), 100)
    before = await rows(EVERYTHING)

    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is append-only"):
        await rows(sql)

    assert await rows(EVERYTHING) == before


@pytest.mark.parametrize(
    ("entries", "constraint"),
    [
        ("({a}, 99, {p}, 5, 5)", "must name accounts and sum to zero"),
        ("({a}, 99, {p}, -5, 5), ({b}, 99, {p}, 4, 5)", "must name accounts and sum to zero"),
        ("({a}, 99, {p}, -5, 5), ({e}, 99, {p}, 5, 5)", "must name accounts and sum to zero"),
        ("({a}, 99, {p}, -5, 5), ({u}, 99, {p}, 5, 5)", "must name accounts and sum to zero"),
        ("({a}, 99, {p}, 0, 5), ({b}, 99, {p}, 0, 5)", "entries_amount"),
    ],
    ids=["one-sided", "unequal", "two-currencies", "unknown-account", "zero"],
)
async def test_the_database_refuses_entries_that_do_not_balance(
    open_wallet: OpenWallet, rows: Rows, entries: str, constraint: str
) -> None:
    alice, bob = Person(), Person()
    names = {
        "a": await open_wallet(alice),
        "b": await open_wallet(bob),
        "e": await open_wallet(bob, "EUR"),
        "u": new_id(),
        "p": new_id(),
    }
    values = entries.format(**{name: f"'{value}'::uuid" for name, value in names.items()})
    before = await rows(EVERYTHING)

    with pytest.raises(asyncpg.CheckViolationError, match=constraint):
        await rows(
            "insert into entries (account_id, version, posting_id, amount_minor, balance_minor, created_at) "
            f"select v.*, now() from (values {values}) as v"
        )

    assert await rows(EVERYTHING) == before


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("balance_minor = -1", "accounts_not_overdrawn"),
        ("held_minor = 1", "accounts_not_overdrawn"),
        ("held_minor = -1", "accounts_held"),
        ("status = 'gone'", "accounts_status"),
        ("name = 'fees:USD'", "accounts_owner"),
    ],
)
async def test_the_database_refuses_a_wallet_that_cannot_be(
    open_wallet: OpenWallet, rows: Rows, change: str, constraint: str
) -> None:
    wallet_id = await open_wallet(Person())

    with pytest.raises(asyncpg.CheckViolationError, match=constraint):
        await rows(f"update accounts set {change} where id = $1::uuid", wallet_id)


async def test_the_service_itself_may_not_rewrite_history(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    connection = await sandbox.connect()
    try:
        await connection.execute("set role wallet_service")
        for sql in (
            "delete from wallets.entries",
            "update wallets.entries set version = 1",
            "truncate wallets.entries",
            "alter table wallets.entries disable trigger all",
            "delete from wallets.accounts",
            "drop table wallets.outbox",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(sql)
    finally:
        await connection.close()


async def test_each_applied_posting_tells_of_itself_once(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """The relay may carry an event away at any time, so it is looked for in the same transaction as its posting."""
    await rows("create table if not exists seen (payload text)")
    await rows(
        "create or replace function note() returns trigger language plpgsql security definer as "
        "$$ begin insert into wallets.seen values (new.payload); return new; end $$"
    )
    await rows("create or replace trigger note after insert on outbox for each row execute function note()")
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 100)
    transfer = posting(alice, source, target, 60)

    await ledger.send(transfer, posting(alice, source, target, 60))
    await ledger.send(transfer)

    events = await rows(
        "select payload::jsonb -> 'data' -> 'entries' from seen where payload::jsonb ->> 'subject' = $1",
        transfer["id"],
    )
    assert [sorted(_sides(entries), key=str) for (entries,) in events] == [
        [
            {"amount_minor": -60, "balance_minor": 40, "version": 2},
            {"amount_minor": 60, "balance_minor": 60, "version": 1},
        ]
    ]


def _sides(entries: str) -> list[dict[str, Any]]:
    return [
        {name: entry[name] for name in ("amount_minor", "balance_minor", "version")} for entry in json.loads(entries)
    ]


async def test_the_internal_operations_want_a_service_token(
    client: httpx.AsyncClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    body = {"units": [[posting(alice, "external:stripe:USD", wallet_id, 100)]]}

    for headers in (
        {},
        alice.headers,
        Person("admin").headers,
        {"X-User-Id": str(alice.id)},
        service_headers("transaction-service", "payment-gateway"),
    ):
        assert (await client.post("/internal/postings", json=body, headers=headers)).status_code == 401

    assert await balance(rows, wallet_id) == 0
