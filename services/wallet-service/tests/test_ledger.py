"""The ledger over a real PostgreSQL: what each action does, once, and that a refusal changes nothing."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from shared.database import Database
from shared.ids import new_id
from shared.money import MAX_MINOR
from shared.outbox import Relay
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person, service_headers
from wallet_service.domain import Outcome, account_ref
from wallet_service.service import Ledger
from wallet_service.settings import WalletSettings
from wallet_service.testing import EVERYTHING, LedgerClient, OpenWallet, Rows, assert_sound, posting
from wallet_service.wire import read_units

OUTSIDE = "external:stripe:USD"


@dataclass
class State:
    """A wallet as the database has it."""

    balance: int
    held: int = 0
    status: str = "active"


async def state(rows: Rows, wallet_id: str) -> State:
    [row] = await rows("select balance_minor, held_minor, status from accounts where id = $1::uuid", wallet_id)
    return State(*row)


async def balances(rows: Rows, *wallet_ids: str) -> list[int]:
    return [(await state(rows, wallet_id)).balance for wallet_id in wallet_ids]


async def system(rows: Rows, name: str) -> int:
    """The balance of a system account; one that nobody has used yet is empty."""
    found = await rows("select balance_minor from accounts where name = $1", name)
    return int(found[0][0]) if found else 0


async def entries(rows: Rows, posting_id: str) -> list[tuple[str, int, int]]:
    """Account or name, amount and balance after it of each entry, what is taken first."""
    return [
        (name, amount, after)
        for name, amount, after in await rows(
            "select coalesce(a.name, a.id::text), e.amount_minor, e.balance_minor from entries e "
            "join accounts a on a.id = e.account_id where posting_id = $1::uuid order by e.amount_minor, 1",
            posting_id,
        )
    ]


# ----------------------------------------------------------------------------------------------------------- moves


async def test_a_transfer_moves_money_and_a_repeat_does_not(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=10_000), await open_wallet(bob)
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
    assert await entries(rows, transfer["id"]) == [(source, -2_500, 7_500), (target, 2_500, 2_500)]
    assert await balances(rows, source, target) == [7_500, 2_500]
    await assert_sound(rows)


async def test_a_payment_to_a_merchant_has_three_entries(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, shop = Person(), Person("merchant")
    source, target = await open_wallet(alice, minor=10_000), await open_wallet(shop)
    before = await system(rows, "fees:USD")
    payment = posting(alice, source, target, 2_500, action="pay", fee_minor=63)

    first = await ledger.send(payment)
    again = await ledger.send(payment)

    assert first == again
    assert await entries(rows, payment["id"]) == [
        (source, -2_500, 7_500),
        ("fees:USD", 63, before + 63),
        (target, 2_437, 2_437),
    ]
    await assert_sound(rows)


async def test_a_refund_goes_back_from_the_payee_whole_even_where_the_fee_stays(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=1_000), await open_wallet(bob, minor=30)
    await ledger.send(posting(alice, source, target, 1_000, fee_minor=30))

    [refund] = await ledger.send(posting(bob, target, source, 1_000))

    assert refund["status"] == "applied"
    assert await balances(rows, source, target) == [1_000, 0]


async def test_a_refusal_is_as_final_as_a_success(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    transfer = posting(alice, source, target, 500)

    [refused] = await ledger.send(transfer)
    await ledger.fund(alice, source, 10_000)
    [again] = await ledger.send(transfer)

    assert (refused["status"], refused["code"], refused["available_minor"]) == ("refused", "insufficient_funds", 0)
    assert again == refused
    assert await balances(rows, target) == [0]


async def test_each_refusal_leaves_the_ledger_as_it_was(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob, ice = Person(), Person(), Person()
    usd, eur = await open_wallet(alice, minor=1_000), await open_wallet(alice, "EUR")
    theirs, closed = await open_wallet(bob, minor=1_000), await open_wallet(Person())
    iced = await open_wallet(ice, minor=1_000)
    full = await open_wallet(Person())
    await rows("update accounts set status = 'frozen' where id = $1::uuid", iced)
    await rows("update accounts set status = 'closed' where id = $1::uuid", closed)
    filler = Person()
    filling = await open_wallet(filler, minor=MAX_MINOR)
    await ledger.send(posting(filler, filling, full, MAX_MINOR))
    captured, released = posting(alice, usd, OUTSIDE, 100), posting(alice, usd, OUTSIDE, 100)
    await ledger.send(captured | {"action": "hold"}, captured | {"action": "capture"})
    await ledger.send(released | {"action": "hold"}, released | {"action": "release"})
    tombstone = posting(alice, usd, OUTSIDE, 100, action="release")
    await ledger.send(tombstone)
    missing = str(new_id())
    expected = [
        (posting(alice, usd, theirs, 901), "insufficient_funds"),
        (posting(alice, theirs, usd, 1), "not_owner"),
        (posting(alice, usd, eur, 1), "currency_mismatch"),
        (posting(alice, usd, theirs, 1, "EUR"), "currency_mismatch"),
        (posting(alice, usd, closed, 1), "closed"),
        (posting(alice, usd, usd, 1), "same_wallet"),
        (posting(alice, usd, full, 1), "balance_limit"),
        (posting(alice, usd, theirs, 1, action="pay"), "not_merchant"),
        (posting(ice, iced, usd, 1), "frozen"),
        (posting(alice, usd, missing, 1), "wallet_not_found"),
        (posting(alice, missing, usd, 1), "wallet_not_found"),
        (posting(alice, OUTSIDE, theirs, 1), "not_owner"),
        (posting(alice, OUTSIDE, missing, 1, action="check"), "wallet_not_found"),
        (posting(alice, OUTSIDE, theirs, 1, action="check"), "not_owner"),
        (posting(alice, usd, OUTSIDE, 901, action="hold"), "insufficient_funds"),
        (posting(alice, theirs, OUTSIDE, 1, action="hold"), "not_owner"),
        (posting(ice, iced, OUTSIDE, 1, action="hold"), "frozen"),
        (posting(alice, missing, OUTSIDE, 1, action="hold"), "wallet_not_found"),
        (tombstone | {"action": "hold"}, "hold_released"),
        (captured | {"action": "release"}, "hold_captured"),
        (released | {"action": "capture"}, "hold_not_open"),
        (posting(alice, usd, OUTSIDE, 1, action="capture"), "hold_not_open"),
        (posting(alice, OUTSIDE, theirs, 1, action="return"), "not_owner"),
        (posting(alice, OUTSIDE, missing, 1, action="return"), "wallet_not_found"),
        (posting(alice, theirs, OUTSIDE, 1, action="dispute"), "not_owner"),
        (posting(alice, usd, "external:stripe:EUR", 1, action="dispute"), "currency_mismatch"),
    ]
    # What a refusal would be the first to name is there already: a system account is made when it is named.
    await ledger.send(*(posting(bob, theirs, name, 1) for name in ("receivable:USD", "suspense:USD")))
    await ledger.send(posting(alice, usd, "external:stripe:EUR", 1))
    before = await rows(EVERYTHING)

    outcomes = await ledger.send(*(item for item, _ in expected))
    again = await ledger.send(*(item for item, _ in expected))

    assert [outcome["code"] for outcome in outcomes] == [code for _, code in expected]
    assert [outcome["available_minor"] for outcome in outcomes if outcome["code"] == "insufficient_funds"] == [
        900
    ] * 2
    assert again == outcomes
    assert await rows(EVERYTHING) == before
    await assert_sound(rows)


async def test_a_system_account_cannot_be_named_by_its_id(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    """Its id follows from its name, so anybody can work it out."""
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    external = str(account_ref(OUTSIDE).id)
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
    wallet_id = await open_wallet(alice, minor=1_000)
    await rows("update accounts set last_entry_at = now() + interval '2 hours' where id = $1::uuid", wallet_id)

    await ledger.fund(alice, wallet_id, 1_000)

    [(not_before,)] = await rows(
        "select e.created_at >= now() + interval '1 hour 59 minutes' from entries e "
        "where account_id = $1::uuid and version = 2",
        wallet_id,
    )
    assert not_before is True


# ---------------------------------------------------------------------------------------------------------- checks


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
    deposit = posting(alice, OUTSIDE, wallet_id, 100)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)
    [checked] = await ledger.send(deposit | {"action": "check"})
    await rows("update accounts set status = 'active' where id = $1::uuid", wallet_id)

    [posted] = await ledger.send(deposit)

    assert (checked["code"], posted["code"]) == ("closed", "closed")
    assert await balances(rows, wallet_id) == [0]


async def test_a_check_knows_what_was_posted(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    deposit = posting(alice, OUTSIDE, wallet_id, 100)
    await ledger.send(deposit)
    await rows("update accounts set status = 'frozen' where id = $1::uuid", wallet_id)
    await rows("update accounts set user_id = $2 where id = $1::uuid", wallet_id, new_id())

    [checked] = await ledger.send(deposit | {"action": "check"})

    assert (checked["status"], checked["code"]) == ("applied", None)


# ----------------------------------------------------------------------------------------------------------- holds


async def test_a_withdrawal_is_held_then_captured(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    outside = await system(rows, OUTSIDE)
    withdrawal = posting(alice, wallet_id, OUTSIDE, 400)

    [held] = await ledger.send(withdrawal | {"action": "hold"})
    assert await state(rows, wallet_id) == State(1_000, 400)
    [captured] = await ledger.send(withdrawal | {"action": "capture"})
    assert await state(rows, wallet_id) == State(600, 0)
    again = await ledger.send(withdrawal | {"action": "capture"}, withdrawal | {"action": "hold"})

    assert [outcome["status"] for outcome in (held, captured, *again)] == ["applied"] * 4
    assert await entries(rows, withdrawal["id"]) == [(wallet_id, -400, 600), (OUTSIDE, 400, outside + 400)]
    assert await state(rows, wallet_id) == State(600, 0)
    assert await rows("select status, ended_at is null from holds where id = $1::uuid", withdrawal["id"]) == [
        ("captured", False)
    ]
    await assert_sound(rows)


async def test_a_withdrawal_that_fails_is_released(ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    withdrawal = posting(alice, wallet_id, OUTSIDE, 400)
    await ledger.send(withdrawal | {"action": "hold"})

    first = await ledger.send(withdrawal | {"action": "release"})
    again = await ledger.send(withdrawal | {"action": "release"})
    [late] = await ledger.send(withdrawal | {"action": "capture"})

    assert first == again
    assert (first[0]["status"], late["code"]) == ("applied", "hold_not_open")
    assert await state(rows, wallet_id) == State(1_000, 0)
    assert await entries(rows, withdrawal["id"]) == []
    await assert_sound(rows)


async def test_a_hold_that_comes_after_its_release_is_refused(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    withdrawal = posting(alice, wallet_id, OUTSIDE, 400)

    [released] = await ledger.send(withdrawal | {"action": "release"})
    [held] = await ledger.send(withdrawal | {"action": "hold"})
    [captured] = await ledger.send(withdrawal | {"action": "capture"})

    assert [outcome["code"] for outcome in (released, held, captured)] == [None, "hold_released", "hold_not_open"]
    assert await state(rows, wallet_id) == State(1_000, 0)


async def test_a_whole_life_of_a_hold_fits_into_one_batch(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    paid, failed, never = (posting(alice, wallet_id, OUTSIDE, minor) for minor in (400, 500, 700))

    outcomes = await ledger.send(
        paid | {"action": "hold"},
        never | {"action": "hold"},
        failed | {"action": "hold"},
        paid | {"action": "capture"},
        failed | {"action": "release"},
        never | {"action": "capture"},
    )

    assert [outcome["code"] for outcome in outcomes] == [
        None,
        "insufficient_funds",
        None,
        None,
        None,
        "hold_not_open",
    ]
    assert await state(rows, wallet_id) == State(600, 0)
    await assert_sound(rows)


async def test_a_frozen_wallet_lets_out_what_was_held_and_nothing_else(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    paid, failed = posting(alice, wallet_id, OUTSIDE, 400), posting(alice, wallet_id, OUTSIDE, 300)
    await ledger.send(paid | {"action": "hold"}, failed | {"action": "hold"})
    await rows("update accounts set status = 'frozen' where id = $1::uuid", wallet_id)

    outcomes = await ledger.send(
        paid | {"action": "capture"},
        failed | {"action": "release"},
        posting(alice, wallet_id, OUTSIDE, 1, action="hold"),
        posting(alice, OUTSIDE, wallet_id, 50),
    )

    assert [outcome["code"] for outcome in outcomes] == [None, None, "frozen", None]
    assert await state(rows, wallet_id) == State(650, 0, "frozen")


# -------------------------------------------------------------------------------- what comes back from outside


@pytest.mark.parametrize(
    ("status", "taker"), [("active", "wallet"), ("frozen", "wallet"), ("closed", "suspense:USD")]
)
async def test_a_returned_payout_is_taken_once(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, status: str, taker: str
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    suspense = await system(rows, "suspense:USD")
    await rows("update accounts set status = $2 where id = $1::uuid", wallet_id, status)
    returned = posting(alice, OUTSIDE, wallet_id, 400, action="return")

    first = await ledger.send(returned)
    again = await ledger.send(returned)

    assert first == again
    assert first[0]["status"] == "applied"
    into_wallet = taker == "wallet"
    assert await state(rows, wallet_id) == State(400 if into_wallet else 0, 0, status)
    assert await system(rows, "suspense:USD") == suspense + (0 if into_wallet else 400)
    await assert_sound(rows)


async def test_money_in_suspense_finds_its_owner_when_the_wallet_is_open_again(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)
    await ledger.send(posting(alice, OUTSIDE, wallet_id, 400, action="return"))
    suspense = await system(rows, "suspense:USD")
    await rows("update accounts set status = 'active' where id = $1::uuid", wallet_id)

    [outcome] = await ledger.send(posting(alice, "suspense:USD", wallet_id, 400))

    assert outcome["status"] == "applied"
    assert await balances(rows, wallet_id) == [400]
    assert await system(rows, "suspense:USD") == suspense - 400


async def test_a_return_to_a_full_wallet_goes_to_suspense(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=MAX_MINOR)
    suspense = await system(rows, "suspense:USD")

    [outcome] = await ledger.send(posting(alice, OUTSIDE, wallet_id, 1, action="return"))

    assert outcome["status"] == "applied"
    assert await balances(rows, wallet_id) == [MAX_MINOR]
    assert await system(rows, "suspense:USD") == suspense + 1


async def test_a_dispute_takes_what_is_there_and_freezes_the_wallet(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    await ledger.send(posting(alice, wallet_id, OUTSIDE, 700, action="hold"))
    receivable, outside = await system(rows, "receivable:USD"), await system(rows, OUTSIDE)
    disputed = posting(alice, wallet_id, OUTSIDE, 1_000, action="dispute")

    first = await ledger.send(disputed)
    again = await ledger.send(disputed)

    assert first == again
    assert first[0]["status"] == "applied"
    assert await entries(rows, disputed["id"]) == [
        ("receivable:USD", -700, receivable - 700),
        (wallet_id, -300, 700),
        (OUTSIDE, 1_000, outside + 1_000),
    ]
    assert await state(rows, wallet_id) == State(700, 700, "frozen")
    await assert_sound(rows)


async def test_a_dispute_about_a_closed_wallet_is_owed_whole_and_freezes_it(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)
    receivable = await system(rows, "receivable:USD")

    [outcome] = await ledger.send(posting(alice, wallet_id, OUTSIDE, 400, action="dispute"))

    assert outcome["status"] == "applied"
    assert await state(rows, wallet_id) == State(0, 0, "frozen")
    assert await system(rows, "receivable:USD") == receivable - 400


# ----------------------------------------------------------------------------------------------------------- units


async def test_a_unit_is_applied_wholly_or_not_at_all(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(bob)
    bad = [posting(alice, source, target, minor) for minor in (50, 60)]
    good = [posting(alice, source, target, minor) for minor in (70, 30)]

    first = await ledger.send_units(bad, good)
    again = await ledger.send_units(good, bad)
    alone = await ledger.send(bad[0])

    assert [[outcome["code"] for outcome in unit] for unit in first] == [
        ["unit_refused", "insufficient_funds"],
        [None, None],
    ]
    assert again == first[::-1]
    assert alone == first[0][:1]
    assert await balances(rows, source, target) == [0, 100]
    await assert_sound(rows)


async def test_a_unit_may_have_a_thousand_postings_and_one_more_is_none(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=1_000), await open_wallet(bob)
    unit = [posting(alice, source, target, 1) for _ in range(1_000)]

    [outcomes] = await ledger.send_units(unit)
    [trouble] = await ledger.send_units([*unit, posting(alice, source, target, 1)])

    assert {outcome["status"] for outcome in outcomes} == {"applied"}
    assert trouble["status"] == "invalid"
    assert await balances(rows, source, target) == [0, 1_000]


# ----------------------------------------------------------------------------------------------------- many at once


async def test_one_bad_item_is_not_its_neighbours_problem(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=300), await open_wallet(bob)

    outcomes = await ledger.send(
        posting(alice, source, target, 100),
        posting(alice, source, str(new_id()), 100),
        posting(alice, source, target, 201),
        posting(alice, source, target, 200),
    )

    assert [outcome["status"] for outcome in outcomes] == ["applied", "refused", "refused", "applied"]
    assert await balances(rows, source, target) == [0, 300]


@pytest.mark.parametrize(
    ("before", "action", "left"),
    [
        ([], "move", State(600, 0)),
        ([], "hold", State(1_000, 400)),
        (["hold"], "capture", State(600, 0)),
        (["hold"], "release", State(1_000, 0)),
        ([], "release", State(1_000, 0)),
        ([], "dispute", State(600, 0, "frozen")),
    ],
)
async def test_fifty_concurrent_retries_have_one_effect(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, before: list[str], action: str, left: State
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    outside = await system(rows, OUTSIDE)
    item = posting(alice, wallet_id, OUTSIDE, 400, action=action)
    for earlier in before:
        await ledger.send(item | {"action": earlier})

    outcomes = await asyncio.gather(*(ledger.send(item) for _ in range(50)))

    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0][0]["status"] == "applied"
    assert await state(rows, wallet_id) == left
    assert await system(rows, OUTSIDE) == outside + 1_000 - left.balance
    await assert_sound(rows)


async def test_fifty_concurrent_retries_for_a_wallet_that_is_not_there_are_one_refusal(
    ledger: LedgerClient, rows: Rows
) -> None:
    alice = Person()
    transfer = posting(alice, str(new_id()), str(new_id()), 100)

    outcomes = await asyncio.gather(*(ledger.send(transfer) for _ in range(50)))

    assert {outcome["code"] for [outcome] in outcomes} == {"wallet_not_found"}
    assert await rows("select count(*) from postings where id = $1::uuid", transfer["id"]) == [(1,)]


async def test_of_a_capture_and_a_release_at_the_same_moment_one_wins(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    withdrawals = [posting(alice, wallet_id, OUTSIDE, 10) for _ in range(20)]
    await ledger.send(*(item | {"action": "hold"} for item in withdrawals))

    outcomes = await asyncio.gather(
        *(
            ledger.send(item | {"action": action})
            for number, item in enumerate(withdrawals)
            for action in (("capture", "release") if number % 2 else ("release", "capture"))
        )
    )

    captured = sum(outcome["code"] == "hold_captured" for [outcome] in outcomes)
    released = sum(outcome["code"] == "hold_not_open" for [outcome] in outcomes)
    assert captured + released == 20
    assert await state(rows, wallet_id) == State(1_000 - 10 * captured, 0)
    await assert_sound(rows)


async def test_a_wallet_cannot_be_overdrawn_by_many_at_once(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=1_000), await open_wallet(bob)

    outcomes = await asyncio.gather(
        *(
            ledger.send(posting(alice, source, target, 90, action=action))
            for action in ("move", "hold")
            for _ in range(20)
        )
    )

    assert sum(outcome["status"] == "applied" for [outcome] in outcomes) == 11
    left = await state(rows, source)
    assert left.balance - left.held == 10
    await assert_sound(rows)


async def test_batches_that_cross_each_other_neither_deadlock_nor_lose_money(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    people = [Person() for _ in range(6)]
    wallets = [await open_wallet(person, minor=10_000) for person in people]
    batches = [
        [posting(people[i], wallets[i], wallets[(i + step) % 6], 10 + step) for i in order]
        for step in range(1, 6)
        for order in (range(6), range(5, -1, -1))
    ]

    outcomes = await asyncio.gather(*(ledger.send(*batch) for batch in batches * 2))

    assert {outcome["status"] for batch in outcomes for outcome in batch} == {"applied"}
    assert await balances(rows, *wallets) == [10_000] * 6
    await assert_sound(rows)


async def test_a_lone_call_waits_for_nobody(sandbox: Sandbox, open_wallet: OpenWallet, rows: Rows) -> None:
    """Between a call and its answer no timer is set but those that bound how long it may take."""
    alice = Person()
    wallet_id = await open_wallet(alice)
    body = json.dumps({"units": [[posting(alice, OUTSIDE, wallet_id, 100)]]}).encode()

    outcomes, timers = await asyncio.to_thread(asyncio.run, _call_alone(sandbox, body))

    assert [outcome.refusal for outcome in outcomes] == [None]
    assert await balances(rows, wallet_id) == [100]
    assert min(timers) >= 1.0


async def _call_alone(sandbox: Sandbox, body: bytes) -> tuple[list[Outcome], list[float]]:
    """The outcomes of the one call in this event loop, and how long each timer was set for, in seconds."""
    settings = sandbox.settings(WalletSettings)
    database = Database(settings)
    relay = Relay(database, settings, CollectorRegistry())
    ledger = Ledger(database, relay)
    loop = asyncio.get_running_loop()
    timers: list[float] = []
    call_at = loop.call_at

    def count(when: float, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        timers.append(when - loop.time())
        return call_at(when, *arguments, **more)

    await database.open()
    loop.call_at = count  # type: ignore[method-assign,assignment]
    [unit] = read_units(body)
    assert not isinstance(unit, Exception)
    [outcomes] = await ledger.apply([unit])
    loop.call_at = call_at  # type: ignore[method-assign]
    await ledger.close()
    await relay.close()
    await database.close()
    assert not isinstance(outcomes, Exception)
    return outcomes, timers


# ------------------------------------------------------------------------------------------------------ who may call


async def test_the_internal_operations_want_a_service_token(
    client: httpx.AsyncClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    body = {"units": [[posting(alice, OUTSIDE, wallet_id, 100)]]}

    for headers in (
        {},
        alice.headers,
        Person("admin").headers,
        {"X-User-Id": str(alice.id)},
        service_headers("transaction-service", "payment-gateway"),
    ):
        assert (await client.post("/internal/postings", json=body, headers=headers)).status_code == 401

    assert await balances(rows, wallet_id) == [0]
