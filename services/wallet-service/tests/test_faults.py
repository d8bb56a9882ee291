"""The ledger when something goes wrong: bad items, a stuck row, a lost COMMIT, deadlocks, a shutdown, two of it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest

from shared.database import MAX_ATTEMPTS
from shared.ids import new_id
from shared.testing.lines import CommitLine, losing_a_commit
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually
from wallet_service.app import create_app
from wallet_service.settings import WalletSettings
from wallet_service.testing import EVERYTHING, LedgerClient, OpenWallet, Rows, assert_sound, posting

OUTSIDE: Final = "external:stripe:USD"
NEIGHBOURS: Final = 20
STUCK_LIMIT_SECONDS: Final = 5.0  # halving a batch of 21 takes at most six waits of 250 ms for a lock

Wire = dict[str, Any]


async def balance(rows: Rows, wallet_id: str) -> int:
    [(minor,)] = await rows("select balance_minor from accounts where id = $1::uuid", wallet_id)
    return int(minor)


@pytest.fixture
async def neighbours(ledger: LedgerClient, rows: Rows) -> list[Wire]:
    """Good postings between wallets of their own."""
    payers = [Person() for _ in range(NEIGHBOURS)]
    wallets = [[str(new_id()), str(new_id())] for _ in payers]
    await rows(
        "insert into accounts (id, user_id, currency) select id, owner, 'USD' "
        "from unnest($1::uuid[], $2::uuid[]) as n (id, owner)",
        [wallet_id for pair in wallets for wallet_id in pair],
        [owner for payer in payers for owner in (payer.id, new_id())],
    )
    pairs = list(zip(payers, wallets, strict=True))
    await ledger.send(*(posting(payer, OUTSIDE, source, 100) for payer, (source, _) in pairs))
    return [posting(payer, source, target, minor) for minor, (payer, (source, target)) in enumerate(pairs, start=1)]


async def assert_moved(rows: Rows, items: Sequence[Wire]) -> None:
    """Each of the neighbours has had its one effect."""
    for item in items:
        found = (await balance(rows, item["source"]), await balance(rows, item["target"]))
        assert found == (100 - item["amount_minor"], item["amount_minor"])


def in_the_middle(items: Sequence[Wire], culprit: list[Wire]) -> list[list[Wire]]:
    """Units of one, and the culprit's unit among them."""
    half = len(items) // 2
    return [*([item] for item in items[:half]), culprit, *([item] for item in items[half:])]


def without_the_middle(outcomes: list[Any]) -> tuple[list[Any], Any]:
    half = len(outcomes) // 2
    return outcomes[:half] + outcomes[half + 1 :], outcomes[half]


# ------------------------------------------------------------------------------------------- what cannot be read

UNREADABLE: Final[dict[str, dict[str, Any]]] = {
    "zero": {"amount_minor": 0},
    "negative": {"amount_minor": -1},
    "fraction": {"amount_minor": 1.5},
    "whole-float": {"amount_minor": 5.0},
    "text": {"amount_minor": "5"},
    "null": {"amount_minor": None},
    "true": {"amount_minor": True},
    "above-the-largest": {"amount_minor": 10**15},
    "2^63": {"amount_minor": 2**63},
    "2^200": {"amount_minor": 2**200},
    "no-currency": {"currency": ""},
    "unknown-currency": {"currency": "ZZZ"},
    "metal": {"currency": "XAU"},
    "lower-case-currency": {"currency": "usd"},
    "list-of-currencies": {"currency": ["USD"]},
    "unknown-system-account": {"source": "treasury:USD"},
    "system-account-without-currency": {"source": "external:stripe"},
    "system-account-of-no-currency": {"source": "external:stripe:ZZZ"},
    "account-that-is-no-id": {"target": "bob"},
    "nul": {"target": "\x00"},
    "unknown-action": {"action": "steal"},
    "unknown-field": {"balance_minor": 5},
    "id-that-is-none": {"id": "1"},
    "fee-of-everything": {"fee_minor": 50},
    "negative-fee": {"fee_minor": -1},
    "fee-of-a-hold": {"fee_minor": 1, "action": "hold"},
    "half-a-trace": {"trace": ["one"]},
}


@pytest.mark.parametrize("change", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_posting_that_cannot_be_read_is_not_its_neighbours_problem(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, change: dict[str, Any]
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    bad = posting(alice, source, target, 50) | change
    good = [posting(alice, source, target, 1) for _ in range(NEIGHBOURS)]

    outcomes, trouble = without_the_middle(await ledger.send_units(*in_the_middle(good, [bad])))

    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble["status"] == "invalid"
    assert await balance(rows, source) == 100 - NEIGHBOURS
    assert await rows("select id from postings where id::text = $1", bad["id"]) == []
    assert await rows("select id from holds where id::text = $1", bad["id"]) == []


async def test_a_unit_that_cannot_be_is_not_its_neighbours_problem(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    part = posting(alice, source, target, 50)
    held = posting(alice, source, OUTSIDE, 10, action="hold")

    outcomes = await ledger.send_units(
        [posting(alice, source, target, 1)],
        [],
        [part, held],
        [part, part | {"amount_minor": -50}],
        part,  # type: ignore[arg-type] # not in a list
        [[part]],  # type: ignore[list-item]
        [None],  # type: ignore[list-item]
        [posting(alice, source, target, 2)],
    )

    assert [unit["status"] for unit in outcomes[1:-1]] == ["invalid"] * 6
    assert [unit[0]["status"] for unit in (outcomes[0], outcomes[-1])] == ["applied", "applied"]
    assert await balance(rows, source) == 97


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"units": []}',
        b'{"units": null}',
        b'{"units": [NaN]}}',
        b'{"units": [NaN]',
        b'{"units": [[NaN}]',
        b'{"units": ["NaN]}',
        b'{"units": [NaN], "more": 1}',
        b'{"units": [[]], "more": 1}',
        b'{"units": [' + b",".join([b"[]"] * 1001) + b"]}",
        b'{"units": [' + b",".join([b"NaN"] * 1001) + b"]}",
        pytest.param(b'{"units": ' + b"[" * 30_000, id="open"),
    ],
)
async def test_what_is_no_batch_is_refused_whole(client: httpx.AsyncClient, rows: Rows, body: bytes) -> None:
    before = await rows(EVERYTHING)

    response = await client.post(
        "/internal/postings", content=body, headers=service_headers("transaction-service", "wallet-service")
    )

    assert (response.status_code, response.json()["code"]) == (422, "batch_invalid")
    assert await rows(EVERYTHING) == before


NO_JSON: Final = {
    "NaN": b'[{"amount_minor": NaN}]',
    "a NaN alone": b"NaN",
    "Infinity": b'[{"amount_minor": -Infinity, "source": "]}, [{"}]',
    "half a surrogate": b'[{"source": "\\ud800"}]',
    "no UTF-8": b'[{"source": "\xff\xfe"}]',
    "a control character": b'[{"source": "\x00\n"}]',
    "a quotation mark inside": b'[{"source": "\\"], [NaN, \\\\"}]',
    "a number without end": b'[{"amount_minor": ' + b"9" * 50_000 + b"}]",
    "a word": b"[{amount_minor: five}]",
    "nothing": b"",
    "other brackets": b"[{]}",
    "deep": b"[" * 30_000 + b"]" * 30_000,
}


@pytest.mark.parametrize("unit", NO_JSON.values(), ids=NO_JSON)
async def test_a_unit_that_is_no_json_is_not_its_neighbours_problem(
    client: httpx.AsyncClient, open_wallet: OpenWallet, rows: Rows, unit: bytes
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    good = [posting(alice, source, target, 1) for _ in range(NEIGHBOURS)]
    units = [json.dumps([item]).encode() for item in good]
    units.insert(NEIGHBOURS // 2, unit)

    response = await client.post(
        "/internal/postings",
        content=b' { "units" : [' + b" , ".join(units) + b" ] } ",
        headers=service_headers("transaction-service", "wallet-service"),
    )

    assert response.status_code == 200, response.text
    outcomes, trouble = without_the_middle(response.json()["outcomes"])
    assert [(outcome["id"], outcome["status"]) for [outcome] in outcomes] == [(g["id"], "applied") for g in good]
    assert trouble["status"] == "invalid"
    assert await balance(rows, source) == 100 - NEIGHBOURS


async def test_a_name_that_the_database_cannot_store_is_not_its_neighbours_problem(
    ledger: LedgerClient, neighbours: list[Wire], open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    bad = posting(alice, "external:\x00:USD", await open_wallet(alice), 50)

    outcomes, trouble = without_the_middle(await ledger.send_units(*in_the_middle(neighbours, [bad])))

    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble["status"] == "invalid"
    await assert_moved(rows, neighbours)


# ------------------------------------------------------------------------------------ what the database will not have

POISON: Final = {
    "posting": ("postings", "id <> {id}", "move"),
    "entry": ("entries", "posting_id <> {id}", "move"),
    "event": ("outbox", "key <> {id}::text", "move"),
    "hold": ("holds", "id <> {id}", "hold"),
    "wallet": ("accounts", "id <> {source} or balance_minor = 100 and held_minor = 0", "move"),
    "held": ("accounts", "id <> {source} or held_minor = 0", "hold"),
}


@asynccontextmanager
async def poisoned(rows: Rows, table: str, rule: str, item: Wire) -> AsyncIterator[None]:
    """The database refuses what `rule` says of the item, for the length of the block."""
    condition = rule.format(**{name: f"'{item[name]}'::uuid" for name in ("id", "source")})
    await rows(f"alter table {table} add constraint poison check ({condition}) not valid")
    try:
        yield
    finally:
        await rows(f"alter table {table} drop constraint poison")


@pytest.mark.parametrize("at_once", [False, True], ids=["one-call", "many-calls"])
@pytest.mark.parametrize(("table", "rule", "action"), POISON.values(), ids=POISON)
async def test_a_row_that_the_database_refuses_is_not_its_neighbours_problem(
    ledger: LedgerClient,
    neighbours: list[Wire],
    open_wallet: OpenWallet,
    rows: Rows,
    table: str,
    rule: str,
    action: str,
    at_once: bool,
) -> None:
    alice = Person()
    source = await open_wallet(alice, minor=100)
    bad = posting(alice, source, OUTSIDE, 50, action=action)
    units = in_the_middle(neighbours, [bad])

    async with poisoned(rows, table, rule, bad):
        if at_once:
            answers = [answer for [answer] in await asyncio.gather(*map(ledger.send_units, units))]
        else:
            answers = await ledger.send_units(*units)
    outcomes, trouble = without_the_middle(answers)
    left = await rows("select balance_minor, held_minor from accounts where id = $1::uuid", source)
    [[later]] = await ledger.send_units([bad])
    [[again]] = await ledger.send_units([bad])

    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble == {"status": "unknown", "detail": "CheckViolationError"}
    assert left == [(100, 0)]
    assert later == again
    assert later["status"] == "applied"
    assert await rows("select balance_minor - held_minor from accounts where id = $1::uuid", source) == [(50,)]
    await assert_moved(rows, neighbours)
    await assert_sound(rows)


async def test_nothing_is_done_of_a_unit_of_which_the_database_refuses_a_part(
    ledger: LedgerClient, neighbours: list[Wire], open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    unit = [posting(alice, source, target, 10) for _ in range(5)]

    async with poisoned(rows, "entries", "posting_id <> {id}", unit[3]):
        answers = await ledger.send_units(*in_the_middle(neighbours, unit))
    outcomes, trouble = without_the_middle(answers)

    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble["status"] == "unknown"
    assert await balance(rows, source) == 100
    [later] = await ledger.send_units(unit)
    assert {outcome["status"] for outcome in later} == {"applied"}
    assert await balance(rows, source) == 50
    await assert_moved(rows, neighbours)
    await assert_sound(rows)


# ------------------------------------------------------------------------------------------------------- a stuck row


@asynccontextmanager
async def stuck(sandbox: Sandbox, wallet_id: str) -> AsyncIterator[None]:
    """Somebody keeps the wallet's row for the length of the block."""
    connection = await sandbox.connect()
    try:
        async with connection.transaction():
            await connection.execute("select from wallets.accounts where id = $1::uuid for update", wallet_id)
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("at_once", [False, True], ids=["one-call", "many-calls"])
async def test_a_stuck_wallet_delays_itself_alone(
    sandbox: Sandbox,
    ledger: LedgerClient,
    neighbours: list[Wire],
    open_wallet: OpenWallet,
    rows: Rows,
    at_once: bool,
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    late = posting(alice, source, target, 50)
    units = in_the_middle(neighbours, [late])

    async with stuck(sandbox, source), asyncio.timeout(STUCK_LIMIT_SECONDS):
        if at_once:
            answers = [answer for [answer] in await asyncio.gather(*map(ledger.send_units, units))]
        else:
            answers = await ledger.send_units(*units)
        await assert_moved(rows, neighbours)
    outcomes, trouble = without_the_middle(answers)
    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble == {"status": "unknown", "detail": "LockTimeoutError"}
    assert await balance(rows, source) == 100

    [[later]] = await ledger.send_units([late])
    [[again]] = await ledger.send_units([late])

    assert later == again
    assert later["status"] == "applied"
    assert (await balance(rows, source), await balance(rows, target)) == (50, 50)
    await assert_sound(rows)


async def test_who_comes_while_a_wallet_is_stuck_is_served_meanwhile(
    sandbox: Sandbox, ledger: LedgerClient, neighbours: list[Wire], open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    late = posting(alice, source, target, 50)

    async with stuck(sandbox, source), asyncio.timeout(STUCK_LIMIT_SECONDS):
        waiting = asyncio.create_task(ledger.send_units([late]))
        outcomes = await asyncio.gather(*(ledger.send(item) for item in neighbours))
        [trouble] = await waiting

    assert [outcome["status"] for [outcome] in outcomes] == ["applied"] * NEIGHBOURS
    assert trouble == {"status": "unknown", "detail": "LockTimeoutError"}
    await assert_moved(rows, neighbours)


# ----------------------------------------------------------------------------------------------------- a lost COMMIT


async def a_bit_of_everything(open_wallet: OpenWallet) -> tuple[list[str], list[list[Wire]], dict[str, int]]:
    """Wallets, units that touch them, and what has to be in them, less what is held, when each was applied once."""
    alice, bob, carol = Person(), Person(), Person()
    a, b, c = await open_wallet(alice, minor=1_000), await open_wallet(bob, minor=1_000), await open_wallet(carol)
    paid, failed = posting(alice, a, OUTSIDE, 100), posting(alice, a, OUTSIDE, 150)
    units = [
        [posting(alice, a, b, 10)],
        [posting(alice, a, b, 20), posting(alice, a, c, 30, fee_minor=1)],
        [posting(alice, a, b, 5_000)],
        [posting(bob, b, OUTSIDE, 200, action="hold")],
        [posting(bob, b, OUTSIDE, 5_000, action="hold")],
        [paid | {"action": "hold"}],
        [failed | {"action": "hold"}],
        [paid | {"action": "capture"}],
        [failed | {"action": "release"}],
        [posting(carol, OUTSIDE, c, 40, action="return")],
        [posting(bob, b, OUTSIDE, 300, action="dispute")],
        [posting(alice, OUTSIDE, a, 7, action="check")],
    ]
    return [a, b, c], units, {a: 1_000 - 10 - 50 - 100, b: 1_000 + 30 - 200 - 300, c: 29 + 40}


async def available(rows: Rows, wallet_ids: list[str]) -> dict[str, int]:
    found = await rows(
        "select id::text, balance_minor - held_minor from accounts where id = any($1::uuid[])", wallet_ids
    )
    return dict(found)


@asynccontextmanager
async def losing_the_commit(
    sandbox: Sandbox, *, for_good: bool
) -> AsyncIterator[tuple[LedgerClient, httpx.AsyncClient, CommitLine]]:
    """A second wallet-service whose database commits its first batch and does not get to say so."""
    host, port = sandbox.environment["POSTGRES_HOST"], int(sandbox.environment["POSTGRES_PORT"])
    async with losing_a_commit(host, port, b"insert into postings", for_good=for_good) as line:
        settings = sandbox.settings(WalletSettings, postgres_host="127.0.0.1", postgres_port=line.port)
        async with in_process(create_app(settings)) as client:
            yield LedgerClient(client), client, line


async def test_a_commit_that_was_not_heard_of_is_repeated_under_the_same_ids(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    wallets, units, expected = await a_bit_of_everything(open_wallet)

    async with losing_the_commit(sandbox, for_good=False) as (second, _, line):
        first = await second.send_units(*units)
    again = await ledger.send_units(*units)

    assert line.cuts == 1
    assert [[outcome["code"] for outcome in unit] for unit in first] == [
        [None],
        [None, None],
        ["insufficient_funds"],
        [None],
        ["insufficient_funds"],
        *([[None]] * 7),
    ]
    assert [[o["available_minor"] for o in unit] for unit in first if unit[0]["code"]] == [[940], [830]]
    assert again == first
    assert await available(rows, wallets) == expected
    await assert_sound(rows)


async def test_a_commit_that_stays_unknown_is_no_refusal_and_has_one_effect(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    wallets, units, expected = await a_bit_of_everything(open_wallet)

    async with losing_the_commit(sandbox, for_good=True) as (second, client, line):
        answers = await second.send_units(*units)
        health = await client.get("/health/ready")
    assert line.cuts == 1
    assert answers == [{"status": "unknown", "detail": "CommitUnknownError"}] * len(units)
    assert health.status_code == 503
    assert await available(rows, wallets) == expected

    again = await ledger.send_units(*units)

    assert [isinstance(unit, list) for unit in again] == [True] * len(units)
    assert await available(rows, wallets) == expected
    await assert_sound(rows)


async def test_without_a_database_nothing_is_known_and_nothing_is_done(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """The server is gone before anything was sent: still no refusal."""
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    transfer = posting(alice, source, target, 50)

    async with losing_the_commit(sandbox, for_good=True) as (second, _, line):
        await second.send(posting(alice, OUTSIDE, source, 1, action="check"))
        line.cuts = 1
        line.cut()
        [answer] = await second.send_units([transfer])

    assert answer["status"] == "unknown"
    assert await balance(rows, source) == 100
    [[later]] = await ledger.send_units([transfer])
    assert later["status"] == "applied"
    assert await balance(rows, source) == 50


# ----------------------------------------------------------------------------------------- deadlocks, serialization


@asynccontextmanager
async def failing(rows: Rows, code: str, times: int) -> AsyncIterator[None]:
    """The database breaks off the next `times` transactions that write entries."""
    await rows("create sequence trips")
    await rows(
        "create function trip() returns trigger language plpgsql security definer as "
        f"$$ begin if nextval('wallets.trips') <= {times} then raise exception 'trip' using errcode = '{code}'; "
        "end if; return null; end $$"
    )
    await rows("create trigger trip after insert on entries for each statement execute function trip()")
    try:
        yield
    finally:
        await rows("drop trigger trip on entries")
        await rows("drop function trip")
        await rows("drop sequence trips")


@pytest.mark.parametrize("code", ["40P01", "40001"], ids=["deadlock", "serialization"])
async def test_a_transaction_that_the_database_breaks_off_is_repeated(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, code: str
) -> None:
    wallets, units, expected = await a_bit_of_everything(open_wallet)

    async with failing(rows, code, MAX_ATTEMPTS - 1):
        outcomes = await ledger.send_units(*units)

    assert all(isinstance(unit, list) for unit in outcomes)
    assert await available(rows, wallets) == expected
    await assert_sound(rows)


async def test_a_transaction_that_is_broken_off_for_ever_is_unknown_and_nothing_is_done(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    transfer = posting(alice, source, target, 50)

    async with failing(rows, "40P01", 1_000):
        [trouble] = await ledger.send_units([transfer])
    assert trouble == {"status": "unknown", "detail": "DeadlockDetectedError"}
    assert await balance(rows, source) == 100

    [later] = await ledger.send(transfer)
    assert later["status"] == "applied"
    assert await balance(rows, source) == 50


# ------------------------------------------------------------------------------------------------------- a shutdown


async def test_a_shutdown_under_load_loses_nothing_that_was_acknowledged(
    sandbox: Sandbox, open_wallet: OpenWallet, rows: Rows
) -> None:
    people = [Person() for _ in range(8)]
    wallets = [await open_wallet(person, minor=100_000) for person in people]
    batches = [
        [posting(people[i], wallets[i], wallets[(i + call) % 8 if call % 8 else i - 1], 1 + call) for i in range(8)]
        for call in range(150)
    ]

    async def some_committed() -> bool:
        found = await rows("select 1 from postings where id = $1::uuid", batches[5][0]["id"])
        return bool(found)

    async with in_process(create_app(sandbox.settings(WalletSettings))) as client:
        headers = service_headers("transaction-service", "wallet-service")

        async def call(batch: list[Wire]) -> httpx.Response:
            await asyncio.sleep(0)
            return await client.post(
                "/internal/postings", json={"units": [[item] for item in batch]}, headers=headers
            )

        calls = [asyncio.create_task(call(batch)) for batch in batches]
        await eventually(some_committed)
    responses = await asyncio.gather(*calls, return_exceptions=True)

    done = {id_ for (id_,) in await rows("select id::text from postings where refusal is null")}
    answered = refused = 0
    for batch, response in zip(batches, responses, strict=True):
        if isinstance(response, httpx.Response) and response.status_code == 200:
            answered += 1
            units = response.json()["outcomes"]
            applied = [unit[0]["id"] for unit in units if isinstance(unit, list) and unit[0]["status"] == "applied"]
            assert applied == [item["id"] for item in batch]
            assert set(applied) <= done
        else:
            refused += 1
            assert isinstance(response, httpx.Response | RuntimeError), response
            assert not {item["id"] for item in batch} & done
    assert answered
    assert answered + refused == len(batches)
    await assert_sound(rows)


# -------------------------------------------------------------------------------------------------------- two of it


async def test_two_processes_that_apply_the_same_postings_the_other_way_round_do_it_once(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    people = [Person() for _ in range(6)]
    wallets = [await open_wallet(person, minor=10_000) for person in people]
    moves = [
        [posting(people[i], wallets[i], wallets[(i + step) % 6], 10 + step, fee_minor=step)]
        for step in range(1, 6)
        for i in range(6)
    ]
    holds = [posting(people[i], wallets[i], f"external:new{i}:USD", 100, action="hold") for i in range(6)]
    missing = [posting(people[0], str(new_id()), str(new_id()), 1) for _ in range(6)]
    units = [
        *moves,
        *([item] for item in holds + missing),
        *([item | {"action": "capture"}] for item in holds[:3]),
        *([item | {"action": "release"}] for item in holds[3:]),
    ]

    async with in_process(create_app(sandbox.settings(WalletSettings))) as client:
        second = LedgerClient(client)
        batches = [units[begin : begin + 8] for begin in range(0, len(units), 8)]
        await asyncio.gather(*(side.send_units(*batch) for batch in batches for side in (ledger, second)))
        answers = await asyncio.gather(
            *(
                side.send_units(*(batch if side is ledger else batch[::-1]))
                for batch in batches
                for side in (ledger, second)
            )
        )

    by_key: dict[tuple[str, str], set[str]] = {}
    for number, answer in enumerate(answers):
        batch = batches[number // 2] if number % 2 == 0 else batches[number // 2][::-1]
        for unit, outcomes in zip(batch, answer, strict=True):
            assert isinstance(outcomes, list), outcomes
            for item, outcome in zip(unit, outcomes, strict=True):
                by_key.setdefault((item["id"], item["action"]), set()).add(json.dumps(outcome, sort_keys=True))
    assert {len(found) for found in by_key.values()} == {1}
    left = {
        wallets[i]: 10_000
        - sum(10 + step for step in range(1, 6))
        + sum(10 for step in range(1, 6))
        - (100 if i < 3 else 0)
        for i in range(6)
    }
    assert await available(rows, wallets) == left
    await assert_sound(rows)


async def test_two_processes_never_deadlock_for_their_callers(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """New postings in another order on each side, over wallets and system accounts that they have in common."""
    shuffled = random.Random(20261107)  # noqa: S311 - an order, not a secret
    people = [Person() for _ in range(5)]
    wallets = [await open_wallet(person, minor=10_000) for person in people]

    async with in_process(create_app(sandbox.settings(WalletSettings))) as client:
        sides = (ledger, LedgerClient(client))
        calls = []
        for number in range(40):
            batch = [
                posting(people[i], wallets[i], shuffled.choice([*wallets[:i], *wallets[i + 1 :]]), 1, fee_minor=0)
                for i in shuffled.sample(range(5), 5)
            ]
            batch.append(posting(people[0], f"external:p{number % 7}:USD", wallets[0], 1))
            batch.append(posting(people[1], wallets[1], f"external:p{6 - number % 7}:USD", 1, action="dispute"))
            shuffled.shuffle(batch)
            calls.append(sides[number % 2].send(*batch))
        answers = await asyncio.gather(*calls)

    codes = {outcome["code"] for answer in answers for outcome in answer}
    assert codes <= {None, "frozen"}
    await assert_sound(rows)


@pytest.mark.parametrize("action", ["hold", "move", "dispute"])
async def test_two_processes_do_not_give_away_the_same_money(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, action: str
) -> None:
    alice = Person()
    source = await open_wallet(alice, minor=1_000)
    receivable = "select coalesce(sum(balance_minor), 0)::int from accounts where name = 'receivable:USD'"
    [(before,)] = await rows(receivable)

    async with in_process(create_app(sandbox.settings(WalletSettings))) as client:
        sides = (ledger, LedgerClient(client))
        outcomes = [
            outcome
            for _ in range(20)
            for outcome in await asyncio.gather(
                *(side.send(posting(alice, source, OUTSIDE, 90, action=action)) for side in sides)
            )
        ]

    [(after,)] = await rows(receivable)
    applied = sum(outcome["status"] == "applied" for [outcome] in outcomes)
    left = (await available(rows, [source]))[source]
    assert (applied, left, before - after) == ((40, 0, 2_600) if action == "dispute" else (11, 10, 0))
    await assert_sound(rows)


ELSEWHERE: Final = {
    "move": ("insert into wallets.postings (id, refusal) values ($1::uuid, 'wallet_not_found')", "move"),
    "hold": (
        "insert into wallets.holds (id, status, refusal, ended_at) "
        "values ($1::uuid, 'refused', 'wallet_not_found', now())",
        "hold",
    ),
}


@pytest.mark.parametrize(("sql", "action"), ELSEWHERE.values(), ids=ELSEWHERE)
async def test_what_another_process_decides_at_the_same_moment_is_the_outcome(
    sandbox: Sandbox, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, sql: str, action: str
) -> None:
    """It saw no wallet yet, and so there is no lock in common."""
    alice = Person()
    source = await open_wallet(alice, minor=100)
    item = posting(alice, source, OUTSIDE, 50, action=action)

    async def held_up() -> list[Any]:
        return await rows("select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '%insert%'")

    connection = await sandbox.connect()
    async with connection.transaction():
        await connection.execute(sql, item["id"])
        asking = asyncio.create_task(ledger.send_units([item]))
        await eventually(held_up)
    await connection.close()
    [[outcome]] = await asking
    [again] = await ledger.send(item)

    assert outcome["code"] == "wallet_not_found"
    assert again == outcome
    assert await rows("select balance_minor, held_minor from accounts where id = $1::uuid", source) == [(100, 0)]
    await assert_sound(rows)
