"""The ledger's rules, without a database."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from shared.ids import new_id
from shared.money import MAX_MINOR, Money
from wallet_service.domain import (
    Account,
    AccountRef,
    Action,
    Book,
    HoldStatus,
    Outcome,
    Posting,
    Refusal,
    UnknownAccountError,
    account_ref,
)

ALICE, BOB = new_id(), new_id()
EXTERNAL = account_ref("external:stripe:USD")
FEES = account_ref("fees:USD")
SUSPENSE = account_ref("suspense:USD")
RECEIVABLE = account_ref("receivable:USD")
NOBODYS = AccountRef(new_id())
MONEY: dict[str, Any] = {"minor": 100}
BOBS: dict[str, Any] = {"owner": BOB}


class Paper:
    """A ledger on paper: accounts and holds, and what was decided, over as many batches as are wanted."""

    def __init__(self) -> None:
        self.book = Book({})
        for ref in (EXTERNAL, FEES, SUSPENSE, RECEIVABLE, account_ref("external:stripe:EUR")):
            self._add(ref, None, 0, str(ref.currency))

    def wallet(self, owner: UUID = ALICE, minor: int = 0, currency: str = "USD", **more: Any) -> AccountRef:
        return self._add(AccountRef(new_id()), owner, minor, currency, **more)

    def __getitem__(self, ref: AccountRef) -> Account:
        return self.book.accounts[ref.id]

    def balances(self, *refs: AccountRef) -> list[int]:
        return [self[ref].balance.minor for ref in refs]

    def set(self, ref: AccountRef, **changes: Any) -> None:
        self.book.accounts[ref.id] = replace(self[ref], **changes)

    def send(self, *units: list[Posting]) -> list[list[Outcome]]:
        return self.book.apply(units)

    def do(self, posting: Posting) -> Outcome:
        """The outcome, checked for what is true of each: entries balance, and a refusal moves nothing."""
        before, written = dict(self.book.accounts), len(self.book.entries)
        [[outcome]] = self.send([posting])
        assert outcome.posting_id == posting.id
        assert sum(entry.amount.minor for entry in self.book.entries[written:]) == 0
        if outcome.refusal:
            assert self.book.accounts == before
            assert len(self.book.entries) == written
        return outcome

    def entries(self, posting: Posting) -> list[tuple[UUID, int, int]]:
        """The account, the signed amount and the balance after it of each of the posting's entries."""
        return [
            (entry.account_id, entry.amount.minor, entry.balance.minor)
            for entry in self.book.entries
            if entry.posting_id == posting.id
        ]

    def next_batch(self) -> None:
        """What was decided so far was decided before."""
        self.book = Book(self.book.accounts, self.book.holds, self.book.outcomes)

    def _add(
        self, ref: AccountRef, owner: UUID | None, minor: int, currency: str, held: int = 0, **more: Any
    ) -> AccountRef:
        account = Account(ref.id, ref.name, owner, "active", Money(minor, currency), Money(held, currency), 0)
        self.book.accounts[ref.id] = replace(account, **more)
        return ref


@pytest.fixture
def paper() -> Paper:
    return Paper()


def wish(
    action: Action,
    source: AccountRef,
    target: AccountRef,
    minor: int,
    *,
    caller: UUID = ALICE,
    currency: str = "USD",
    fee: int = 0,
    posting_id: UUID | None = None,
) -> Posting:
    return Posting(
        posting_id or new_id(),
        action,
        caller,
        source,
        target,
        Money(minor, currency),
        Money(fee, currency) if fee else None,
    )


def move(source: AccountRef, target: AccountRef, minor: int, **more: Any) -> Posting:
    return wish(Action.MOVE, source, target, minor, **more)


# ---------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "external",
        "external:stripe",
        "external:stripe:XXX",
        "fees::USD",
        "a:b:c:d",
        "fees:usd",
        "fees:USD:x",
        ":",
        "external:\x00:USD",
        "external: :USD",
        "external:é:USD",
        f"external:{'x' * 33}:USD",
    ],
)
def test_a_name_that_is_no_account_is_refused(text: str) -> None:
    with pytest.raises(UnknownAccountError):
        account_ref(text)


def test_a_system_account_has_one_id_for_ever() -> None:
    ref = account_ref("external:stripe:USD")

    assert ref.id == UUID("f43ae216-902c-5d6a-9472-e6cdf31d4430")
    assert ref.id != account_ref("external:stripe:EUR").id
    assert (ref.name, ref.currency) == ("external:stripe:USD", "USD")


# ---------------------------------------------------------------------------------------------------------- moves


def test_a_move_takes_from_one_and_gives_to_the_other(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 1000), paper.wallet(BOB, 5)
    posting = move(source, target, 400)

    outcome = paper.do(posting)

    assert outcome == Outcome(posting.id, target_user_id=BOB)
    assert paper.entries(posting) == [(source.id, -400, 600), (target.id, 400, 405)]
    assert [entry.version for entry in paper.book.entries] == [1, 1]
    assert paper.balances(source, target) == [600, 405]


def test_a_fee_is_a_third_entry_and_comes_out_of_what_the_target_gets(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 1000), paper.wallet(BOB)
    posting = move(source, target, 400, fee=12)

    assert paper.do(posting).refusal is None

    assert paper.entries(posting) == [(source.id, -400, 600), (target.id, 388, 388), (FEES.id, 12, 12)]


def test_the_whole_balance_may_be_spent_and_not_a_unit_more(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 1000, held=700), paper.wallet(BOB)

    refused = paper.do(move(source, target, 301))
    applied = paper.do(move(source, target, 300))

    assert (refused.refusal, refused.available_minor) == (Refusal.INSUFFICIENT_FUNDS, 300)
    assert (applied.refusal, applied.available_minor) == (None, None)
    assert paper.balances(source, target) == [700, 300]


Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], Refusal | None]
MOVES: dict[str, Case] = {
    "short": ({"minor": 99}, {}, {}, Refusal.INSUFFICIENT_FUNDS),
    "anothers": ({"owner": BOB}, {}, {}, Refusal.NOT_OWNER),
    "frozen": ({"status": "frozen"}, {}, {}, Refusal.FROZEN),
    "closed": ({"status": "closed"}, {}, {}, Refusal.CLOSED),
    "closed-target": ({}, {"status": "closed"}, {}, Refusal.CLOSED),
    "frozen-target": ({}, {"status": "frozen"}, {}, None),
    "target-of-another-currency": ({}, {"currency": "EUR"}, {}, Refusal.CURRENCY_MISMATCH),
    "source-of-another-currency": ({"currency": "EUR"}, {}, {}, Refusal.CURRENCY_MISMATCH),
    "both-of-another-currency": ({}, {}, {"currency": "EUR"}, Refusal.CURRENCY_MISMATCH),
    "target-full": ({}, {"minor": MAX_MINOR - 99}, {}, Refusal.BALANCE_LIMIT),
    "target-just-full": ({}, {"minor": MAX_MINOR - 100}, {}, None),
    "target-just-full-after-the-fee": ({}, {"minor": MAX_MINOR - 99}, {"fee": 1}, None),
}


@pytest.mark.parametrize(("source", "target", "more", "refusal"), MOVES.values(), ids=MOVES)
def test_a_rule_of_moving_that_is_broken_is_named(
    paper: Paper,
    source: dict[str, Any],
    target: dict[str, Any],
    more: dict[str, Any],
    refusal: Refusal | None,
) -> None:
    payer = paper.wallet(**MONEY | source)
    payee = paper.wallet(**BOBS | target)

    assert paper.do(move(payer, payee, 100, **more)).refusal == refusal


def test_a_wallet_cannot_pay_itself(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 100)

    assert paper.do(move(wallet, wallet, 1)).refusal == Refusal.SAME_WALLET


def test_a_wallet_that_does_not_exist_neither_pays_nor_is_paid(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 100)

    assert paper.do(move(wallet, NOBODYS, 1)) == Outcome(
        paper.book.decided[-1].posting_id, Refusal.WALLET_NOT_FOUND, None, None
    )
    assert paper.do(move(NOBODYS, wallet, 1)).refusal == Refusal.WALLET_NOT_FOUND


@pytest.mark.parametrize("status", ["active", "frozen", "closed"])
@pytest.mark.parametrize("action", [Action.MOVE, Action.HOLD])
def test_a_stranger_learns_nothing_of_a_wallet(paper: Paper, action: Action, status: str) -> None:
    """Neither its status, nor its currency, nor what is in it."""
    theirs, mine = paper.wallet(BOB, 5, "EUR", status=status), paper.wallet(ALICE)

    outcome = paper.do(wish(action, theirs, mine, 100))

    assert (outcome.refusal, outcome.available_minor) == (Refusal.NOT_OWNER, None)


def test_money_from_outside_goes_only_to_a_wallet_of_the_caller(paper: Paper) -> None:
    mine, theirs = paper.wallet(ALICE), paper.wallet(BOB)

    assert paper.do(move(EXTERNAL, mine, 500)).refusal is None
    assert paper.do(move(EXTERNAL, theirs, 500)).refusal == Refusal.NOT_OWNER
    assert paper.balances(EXTERNAL, mine, theirs) == [-500, 500, 0]


def test_nobody_moves_money_between_system_accounts(paper: Paper) -> None:
    assert paper.do(move(FEES, EXTERNAL, 1)).refusal == Refusal.NOT_OWNER


def test_a_system_account_is_not_meant_by_its_id_alone(paper: Paper) -> None:
    mine = paper.wallet(ALICE, 100)
    by_id = AccountRef(EXTERNAL.id)

    assert paper.do(move(by_id, mine, 10)).refusal == Refusal.WALLET_NOT_FOUND
    assert paper.do(move(mine, by_id, 10)).refusal == Refusal.WALLET_NOT_FOUND


def test_a_system_account_ends_where_the_database_does(paper: Paper) -> None:
    wallet = paper.wallet(ALICE)
    paper.set(EXTERNAL, balance=Money(10 - 2**63, "USD"))

    assert paper.do(move(EXTERNAL, wallet, 9)).refusal is None
    assert paper.do(move(EXTERNAL, wallet, 1)).refusal == Refusal.BALANCE_LIMIT


def test_a_payment_goes_only_to_a_merchant(paper: Paper) -> None:
    source, shop, friend = paper.wallet(ALICE, 1000), paper.wallet(BOB, merchant=True), paper.wallet(BOB)
    payment = wish(Action.PAY, source, shop, 400, fee=12)

    assert paper.do(payment).refusal is None
    assert paper.do(wish(Action.PAY, source, friend, 400)).refusal == Refusal.NOT_MERCHANT

    assert paper.entries(payment) == [(source.id, -400, 600), (shop.id, 388, 388), (FEES.id, 12, 12)]


# ------------------------------------------------------------------------------------------------ first outcomes


def test_two_postings_of_one_batch_cannot_spend_the_same_money(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)

    [[first], [second]] = paper.send([move(source, target, 60)], [move(source, target, 60)])

    assert (first.refusal, second.refusal, second.available_minor) == (None, Refusal.INSUFFICIENT_FUNDS, 40)


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_repeated_posting_has_its_first_outcome_and_moves_nothing(paper: Paper, in_one_batch: bool) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    posting = move(source, target, 60)

    first = paper.do(posting)
    if not in_one_batch:
        paper.next_batch()
    written = len(paper.book.decided)
    again = paper.do(posting)

    assert first == again
    assert paper.balances(source, target) == [40, 60]
    assert len(paper.book.decided) == written


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_refusal_stays_when_there_is_money_later(paper: Paper, in_one_batch: bool) -> None:
    source, target = paper.wallet(ALICE, 10), paper.wallet(BOB)
    posting = move(source, target, 60)

    first = paper.do(posting)
    if not in_one_batch:
        paper.next_batch()
    paper.do(move(EXTERNAL, source, 1000))
    again = paper.do(posting)

    assert first == again == Outcome(posting.id, Refusal.INSUFFICIENT_FUNDS, 10, BOB)
    assert paper.balances(source, target) == [1010, 0]


# ---------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("target", "more", "refusal"),
    [
        ({}, {}, None),
        ({"status": "frozen"}, {}, None),
        ({"status": "closed"}, {}, Refusal.CLOSED),
        ({"owner": BOB}, {}, Refusal.NOT_OWNER),
        ({"currency": "EUR"}, {}, Refusal.CURRENCY_MISMATCH),
    ],
    ids=["active", "frozen", "closed", "anothers", "other-currency"],
)
def test_a_check_names_the_rule_that_the_deposit_would_break(
    paper: Paper, target: dict[str, Any], more: dict[str, Any], refusal: Refusal | None
) -> None:
    wallet = paper.wallet(**target)

    assert paper.do(wish(Action.CHECK, EXTERNAL, wallet, 100, **more)).refusal == refusal
    assert paper.book.entries == []


def test_a_check_of_a_wallet_that_does_not_exist_is_refused(paper: Paper) -> None:
    assert paper.do(wish(Action.CHECK, EXTERNAL, NOBODYS, 100)).refusal == Refusal.WALLET_NOT_FOUND


def test_a_check_that_passes_decides_nothing_and_one_that_is_refused_decides_for_good(paper: Paper) -> None:
    wallet = paper.wallet(ALICE)
    passed, refused = move(EXTERNAL, wallet, 100), move(EXTERNAL, wallet, 100)

    assert paper.do(replace(passed, action=Action.CHECK)).refusal is None
    paper.set(wallet, status="closed")
    assert paper.do(replace(refused, action=Action.CHECK)).refusal == Refusal.CLOSED
    paper.set(wallet, status="active")

    assert paper.do(passed).refusal is None
    assert paper.do(refused).refusal == Refusal.CLOSED
    assert paper.balances(wallet) == [100]


# ----------------------------------------------------------------------------------------------------------- holds


def test_a_hold_sets_money_aside_and_a_capture_takes_it(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    captured = replace(held, action=Action.CAPTURE)

    assert paper.do(held).refusal is None
    assert (paper[wallet].balance.minor, paper[wallet].held.minor, paper[wallet].version) == (1000, 400, 0)
    assert paper.entries(held) == []

    assert paper.do(captured).refusal is None
    assert (paper[wallet].balance.minor, paper[wallet].held.minor, paper[wallet].version) == (600, 0, 1)
    assert paper.entries(captured) == [(wallet.id, -400, 600), (EXTERNAL.id, 400, 400)]
    assert paper.book.holds[held.id].status is HoldStatus.CAPTURED


def test_a_release_gives_back_what_was_set_aside(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    paper.do(held)

    assert paper.do(replace(held, action=Action.RELEASE)).refusal is None

    assert (paper[wallet].available.minor, paper[wallet].held.minor, paper[wallet].version) == (1000, 0, 0)
    assert paper.book.entries == []
    assert paper.book.holds[held.id].status is HoldStatus.RELEASED


@pytest.mark.parametrize(
    ("source", "more", "refusal", "available"),
    [
        ({}, {}, None, None),
        ({"minor": 99}, {}, Refusal.INSUFFICIENT_FUNDS, 99),
        ({"minor": 150, "held": 51}, {}, Refusal.INSUFFICIENT_FUNDS, 99),
        ({"owner": BOB}, {}, Refusal.NOT_OWNER, None),
        ({"status": "frozen"}, {}, Refusal.FROZEN, None),
        ({"status": "closed"}, {}, Refusal.CLOSED, None),
        ({"currency": "EUR"}, {}, Refusal.CURRENCY_MISMATCH, None),
    ],
    ids=["all-of-it", "short", "held-already", "anothers", "frozen", "closed", "other-currency"],
)
def test_a_rule_of_holding_that_is_broken_is_named_for_good(
    paper: Paper, source: dict[str, Any], more: dict[str, Any], refusal: Refusal | None, available: int | None
) -> None:
    wallet = paper.wallet(**MONEY | source)
    held = wish(Action.HOLD, wallet, EXTERNAL, 100, **more)

    first = paper.do(held)
    paper.next_batch()
    paper.set(wallet, status="active", balance=paper[wallet].balance + Money(500, paper[wallet].balance.currency))

    assert first == Outcome(held.id, refusal, available)
    assert paper.do(held) == first


def test_a_hold_on_a_wallet_that_does_not_exist_or_on_a_system_account_is_refused(paper: Paper) -> None:
    assert paper.do(wish(Action.HOLD, NOBODYS, EXTERNAL, 1)).refusal == Refusal.WALLET_NOT_FOUND
    assert paper.do(wish(Action.HOLD, FEES, EXTERNAL, 1)).refusal == Refusal.NOT_OWNER


NOTHING, OPEN, CAPTURED, RELEASED, TOMBSTONE, REFUSED = (
    "nothing",
    "open",
    "captured",
    "released",
    "tombstone",
    "short",
)
LIFE = [
    # what there is, what is asked, the answer, what is held and what is in the wallet afterwards (of 1000)
    (NOTHING, Action.HOLD, None, 400, 1000),
    (NOTHING, Action.CAPTURE, Refusal.HOLD_NOT_OPEN, 0, 1000),
    (NOTHING, Action.RELEASE, None, 0, 1000),
    (OPEN, Action.HOLD, None, 400, 1000),
    (OPEN, Action.CAPTURE, None, 0, 600),
    (OPEN, Action.RELEASE, None, 0, 1000),
    (CAPTURED, Action.HOLD, None, 0, 600),
    (CAPTURED, Action.CAPTURE, None, 0, 600),
    (CAPTURED, Action.RELEASE, Refusal.HOLD_CAPTURED, 0, 600),
    (RELEASED, Action.HOLD, None, 0, 1000),
    (RELEASED, Action.CAPTURE, Refusal.HOLD_NOT_OPEN, 0, 1000),
    (RELEASED, Action.RELEASE, None, 0, 1000),
    (TOMBSTONE, Action.HOLD, Refusal.HOLD_RELEASED, 0, 1000),
    (TOMBSTONE, Action.CAPTURE, Refusal.HOLD_NOT_OPEN, 0, 1000),
    (TOMBSTONE, Action.RELEASE, None, 0, 1000),
    (REFUSED, Action.HOLD, Refusal.INSUFFICIENT_FUNDS, 0, 1000),
    (REFUSED, Action.CAPTURE, Refusal.HOLD_NOT_OPEN, 0, 1000),
    (REFUSED, Action.RELEASE, None, 0, 1000),
]


@pytest.mark.parametrize("in_one_batch", [True, False], ids=["same-batch", "later"])
@pytest.mark.parametrize(("begun", "action", "refusal", "held", "left"), LIFE)
def test_a_hold_ends_once_in_whatever_order_it_is_asked(
    paper: Paper, begun: str, action: Action, refusal: Refusal | None, held: int, left: int, in_one_batch: bool
) -> None:
    wallet = paper.wallet(ALICE, 1000)
    posting = wish(Action.HOLD, wallet, EXTERNAL, 400)
    for earlier in {
        NOTHING: [],
        OPEN: [Action.HOLD],
        CAPTURED: [Action.HOLD, Action.CAPTURE],
        RELEASED: [Action.HOLD, Action.RELEASE],
        TOMBSTONE: [Action.RELEASE],
        REFUSED: [],
    }[begun]:
        paper.do(replace(posting, action=earlier))
    if begun == REFUSED:
        paper.set(wallet, held=Money(700, "USD"))
        paper.do(posting)
        paper.set(wallet, held=Money(0, "USD"))
    if not in_one_batch:
        paper.next_batch()

    first = paper.do(replace(posting, action=action))
    again = paper.do(replace(posting, action=action))

    assert first.refusal == again.refusal == refusal
    assert (paper[wallet].held.minor, paper[wallet].balance.minor) == (held, left)
    assert paper.balances(EXTERNAL) == [1000 - left]


def test_a_capture_that_came_before_its_hold_stays_refused_and_the_hold_can_be_released(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)

    assert paper.do(replace(held, action=Action.CAPTURE)).refusal == Refusal.HOLD_NOT_OPEN
    assert paper.do(held).refusal is None
    assert paper.do(replace(held, action=Action.CAPTURE)).refusal == Refusal.HOLD_NOT_OPEN
    assert paper.do(replace(held, action=Action.RELEASE)).refusal is None

    assert (paper[wallet].available.minor, paper[wallet].held.minor) == (1000, 0)


@pytest.mark.parametrize("status", ["frozen", "closed"])
@pytest.mark.parametrize("action", [Action.CAPTURE, Action.RELEASE])
def test_what_ends_a_hold_ignores_the_wallets_status(paper: Paper, action: Action, status: str) -> None:
    """Outside the money has moved, or will not."""
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    paper.do(held)
    paper.set(wallet, status=status)

    assert paper.do(replace(held, action=action)).refusal is None

    assert paper[wallet].held.minor == 0
    assert paper[wallet].status == status


def test_another_amount_or_another_wallet_than_was_held_is_not_captured(paper: Paper) -> None:
    wallet, second = paper.wallet(ALICE, 1000), paper.wallet(ALICE, 1000)
    for change in ({"amount": Money(399, "USD")}, {"amount": Money(400, "EUR")}, {"source": second}):
        held = wish(Action.HOLD, wallet, EXTERNAL, 400)
        paper.do(held)
        refused = paper.do(replace(held, action=Action.CAPTURE, **change))
        assert refused.refusal == Refusal.HOLD_NOT_OPEN
        assert paper.book.holds[held.id].status is HoldStatus.OPEN
        paper.do(replace(held, action=Action.RELEASE))

    assert paper.balances(wallet, second) == [1000, 1000]


def test_a_capture_for_a_wallet_that_does_not_exist_leaves_the_hold(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    paper.do(held)

    assert paper.do(replace(held, action=Action.CAPTURE, target=NOBODYS)).refusal == Refusal.HOLD_NOT_OPEN
    assert paper[wallet].held.minor == 400


def test_a_release_that_names_another_wallet_leaves_the_hold(paper: Paper) -> None:
    wallet, second = paper.wallet(ALICE, 1000), paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    paper.do(held)

    assert paper.do(replace(held, action=Action.RELEASE, source=second)).refusal == Refusal.HOLD_NOT_OPEN
    assert (paper[wallet].held.minor, paper[second].held.minor) == (400, 0)
    assert paper.do(replace(held, action=Action.RELEASE)).refusal is None


def test_a_capture_that_would_overflow_an_account_leaves_the_hold(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 1000)
    held = wish(Action.HOLD, wallet, EXTERNAL, 400)
    paper.do(held)
    paper.set(EXTERNAL, balance=Money(2**63 - 400, "USD"))

    assert paper.do(replace(held, action=Action.CAPTURE)).refusal == Refusal.BALANCE_LIMIT
    assert paper[wallet].held.minor == 400


# ------------------------------------------------------------------------------------- what comes back from outside


@pytest.mark.parametrize(
    ("wallet", "to_suspense"),
    [
        ({}, False),
        ({"status": "frozen"}, False),
        ({"status": "closed"}, True),
        ({"minor": MAX_MINOR - 100}, False),
        ({"minor": MAX_MINOR - 99}, True),
    ],
    ids=["active", "frozen", "closed", "just-full", "full"],
)
def test_a_returned_payout_goes_to_the_wallet_or_where_that_cannot_take_it_to_suspense(
    paper: Paper, wallet: dict[str, Any], to_suspense: bool
) -> None:
    target = paper.wallet(ALICE, **wallet)
    before = paper[target].balance.minor
    posting = wish(Action.RETURN, EXTERNAL, target, 100)

    assert paper.do(posting) == Outcome(posting.id, target_user_id=ALICE)

    taker = (SUSPENSE.id, 100, 100) if to_suspense else (target.id, 100, before + 100)
    assert paper.entries(posting) == [(EXTERNAL.id, -100, -100), taker]


@pytest.mark.parametrize(
    ("wallet", "currency", "refusal"),
    [
        ({"owner": BOB}, "USD", Refusal.NOT_OWNER),
        ({"currency": "EUR"}, "USD", Refusal.CURRENCY_MISMATCH),
        ({}, "EUR", Refusal.CURRENCY_MISMATCH),
    ],
    ids=["anothers", "other-currency", "other-amount"],
)
def test_a_rule_of_returning_that_is_broken_is_named(
    paper: Paper, wallet: dict[str, Any], currency: str, refusal: Refusal
) -> None:
    target = paper.wallet(**wallet)
    paper._add(account_ref("suspense:EUR"), None, 0, "EUR")

    assert paper.do(wish(Action.RETURN, EXTERNAL, target, 100, currency=currency)).refusal == refusal


def test_a_return_to_a_wallet_that_never_was_is_refused(paper: Paper) -> None:
    assert paper.do(wish(Action.RETURN, EXTERNAL, NOBODYS, 100)).refusal == Refusal.WALLET_NOT_FOUND


@pytest.mark.parametrize(
    ("wallet", "taken", "owed", "status"),
    [
        ({"minor": 1000}, 400, 0, "frozen"),
        ({"minor": 400}, 400, 0, "frozen"),
        ({"minor": 150}, 150, 250, "frozen"),
        ({"minor": 1000, "held": 750}, 250, 150, "frozen"),
        ({"minor": 1000, "held": 1000}, 0, 400, "frozen"),
        ({"minor": 0}, 0, 400, "frozen"),
        ({"minor": 150, "status": "frozen"}, 150, 250, "frozen"),
        ({"minor": 0, "status": "closed"}, 0, 400, "frozen"),
    ],
    ids=["enough", "all", "part", "less-what-is-held", "all-held", "empty", "frozen-already", "closed"],
)
def test_a_dispute_takes_what_is_available_and_the_rest_is_owed(
    paper: Paper, wallet: dict[str, Any], taken: int, owed: int, status: str
) -> None:
    source = paper.wallet(ALICE, **wallet)
    before = paper[source]
    posting = wish(Action.DISPUTE, source, EXTERNAL, 400)

    assert paper.do(posting) == Outcome(posting.id)

    after = paper[source]
    entries = [(source.id, -taken, before.balance.minor - taken), (RECEIVABLE.id, -owed, -owed)]
    assert paper.entries(posting) == [*(entry for entry in entries if entry[1]), (EXTERNAL.id, 400, 400)]
    assert (after.status, after.held, after.version) == (status, before.held, 1 if taken else 0)
    assert after.available.minor == before.available.minor - taken


def test_a_dispute_freezes_a_wallet_once(paper: Paper) -> None:
    source = paper.wallet(ALICE, 1000)

    [[first], [second]] = paper.send(
        [wish(Action.DISPUTE, source, EXTERNAL, 400)], [wish(Action.DISPUTE, source, EXTERNAL, 400)]
    )

    assert (first.refusal, second.refusal) == (None, None)
    assert [change.frozen is not None for _, change in paper.book.changes] == [True, False]
    assert paper.balances(source, EXTERNAL) == [200, 800]


def test_a_repeated_dispute_takes_once(paper: Paper) -> None:
    source = paper.wallet(ALICE, 1000)
    posting = wish(Action.DISPUTE, source, EXTERNAL, 400)

    paper.do(posting)
    paper.next_batch()
    paper.do(posting)

    assert paper.balances(source, EXTERNAL) == [600, 400]


@pytest.mark.parametrize(
    ("wallet", "currency", "refusal"),
    [
        ({"owner": BOB}, "USD", Refusal.NOT_OWNER),
        ({"currency": "EUR"}, "USD", Refusal.CURRENCY_MISMATCH),
        ({}, "EUR", Refusal.CURRENCY_MISMATCH),
    ],
    ids=["anothers", "other-currency", "other-amount"],
)
def test_a_rule_of_disputing_that_is_broken_is_named_and_freezes_nothing(
    paper: Paper, wallet: dict[str, Any], currency: str, refusal: Refusal
) -> None:
    source = paper.wallet(**MONEY | wallet)
    paper._add(account_ref("receivable:EUR"), None, 0, "EUR")

    assert paper.do(wish(Action.DISPUTE, source, EXTERNAL, 400, currency=currency)).refusal == refusal
    assert paper[source].status == "active"


def test_a_dispute_about_a_wallet_that_never_was_is_refused(paper: Paper) -> None:
    assert paper.do(wish(Action.DISPUTE, NOBODYS, EXTERNAL, 400)).refusal == Refusal.WALLET_NOT_FOUND


# ----------------------------------------------------------------------------------------------------------- units


def test_a_unit_is_applied_wholly(paper: Paper) -> None:
    source, target, third = paper.wallet(ALICE, 100), paper.wallet(ALICE), paper.wallet(BOB)

    [outcomes] = paper.send([move(source, target, 60), move(target, third, 50), move(source, third, 40)])

    assert [outcome.refusal for outcome in outcomes] == [None, None, None]
    assert paper.balances(source, target, third) == [0, 10, 90]
    assert len(paper.book.decided) == 3


@pytest.mark.parametrize("bad_one", [0, 1, 2])
def test_one_refusal_undoes_the_unit_and_is_final_for_all_of_it(paper: Paper, bad_one: int) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    unit = [move(source, target, 10) for _ in range(3)]
    unit[bad_one] = move(source, target, 500)
    before = dict(paper.book.accounts)

    [outcomes] = paper.send(unit)
    paper.next_batch()
    paper.set(source, balance=Money(1000, "USD"))
    alone = [paper.do(posting) for posting in unit]

    expected: list[Refusal] = [Refusal.UNIT_REFUSED] * 3
    expected[bad_one] = Refusal.INSUFFICIENT_FUNDS
    assert [outcome.refusal for outcome in outcomes] == expected
    assert alone == outcomes
    assert paper.balances(target) == [0]
    assert before[target.id] == paper[target]


def test_a_refused_unit_leaves_its_neighbours_as_if_it_had_not_been_there(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)

    before, unit, after = paper.send(
        [move(source, target, 10)],
        [move(source, target, 80), move(target, NOBODYS, 1)],
        [move(source, target, 90)],
    )

    assert [outcome.refusal for outcome in before + unit + after] == [
        None,
        Refusal.UNIT_REFUSED,
        Refusal.WALLET_NOT_FOUND,
        None,
    ]
    assert paper.balances(source, target) == [0, 100]
    assert [entry.version for entry in paper.book.entries if entry.account_id == source.id] == [1, 2]


def test_the_same_posting_twice_in_a_unit_counts_once(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    twice = move(source, target, 60)

    [[first, again, other]] = paper.send([twice, twice, move(source, target, 40)])

    assert first == again
    assert (first.refusal, other.refusal) == (None, None)
    assert paper.balances(source, target) == [0, 100]
    assert len(paper.book.decided) == 2


def test_the_same_posting_twice_in_a_refused_unit_is_refused_once(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    twice = move(source, target, 60)

    [outcomes] = paper.send([twice, twice, move(source, target, 41)])

    assert [outcome.refusal for outcome in outcomes] == [
        Refusal.UNIT_REFUSED,
        Refusal.UNIT_REFUSED,
        Refusal.INSUFFICIENT_FUNDS,
    ]
    assert len(paper.book.decided) == 2
    assert paper.balances(source, target) == [100, 0]


def test_a_posting_of_a_unit_that_was_applied_before_keeps_that(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    earlier = move(source, target, 60)
    paper.do(earlier)
    paper.next_batch()

    [refused] = paper.send([earlier, move(source, target, 1), move(source, target, 500)])
    [applied] = paper.send([earlier, move(source, target, 2)])

    assert [outcome.refusal for outcome in refused] == [None, Refusal.UNIT_REFUSED, Refusal.INSUFFICIENT_FUNDS]
    assert [outcome.refusal for outcome in applied] == [None, None]
    assert paper.balances(source, target) == [38, 62]


def test_a_posting_of_a_unit_that_was_refused_before_refuses_the_unit(paper: Paper) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    earlier = move(source, target, 500)
    paper.do(earlier)
    paper.next_batch()
    paper.do(move(EXTERNAL, source, 1000))

    [outcomes] = paper.send([move(source, target, 1), earlier])

    assert [outcome.refusal for outcome in outcomes] == [Refusal.UNIT_REFUSED, Refusal.INSUFFICIENT_FUNDS]
    assert paper.balances(source, target) == [1100, 0]


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_repeated_unit_has_its_first_outcomes(paper: Paper, in_one_batch: bool) -> None:
    source, target = paper.wallet(ALICE, 100), paper.wallet(BOB)
    good = [move(source, target, 10), move(source, target, 20)]
    bad = [move(source, target, 10), move(source, target, 500)]

    first = paper.send(good, bad)
    if not in_one_batch:
        paper.next_batch()
    again = paper.send(bad, good)

    assert again == first[::-1]
    assert paper.balances(source, target) == [70, 30]


# ------------------------------------------------------------------------------- what no caller should ask for


def once_each(paper: Paper) -> bool:
    """Whether no account's version is taken twice."""
    taken = [(entry.account_id, entry.version) for entry in paper.book.entries]
    return len(taken) == len(set(taken))


Sides = Callable[[Paper], tuple[Action, AccountRef, AccountRef, int]]
SAME_SIDES: dict[str, Sides] = {
    "fee-to-the-fee-account": lambda paper: (Action.MOVE, paper.wallet(ALICE, 100), FEES, 5),
    "return-from-suspense-to-a-closed-wallet": lambda paper: (
        Action.RETURN,
        SUSPENSE,
        paper.wallet(ALICE, status="closed"),
        0,
    ),
    "dispute-for-receivable": lambda paper: (Action.DISPUTE, paper.wallet(ALICE, 10), RECEIVABLE, 0),
}


@pytest.mark.parametrize("sides", SAME_SIDES.values(), ids=SAME_SIDES)
def test_a_posting_in_which_an_account_would_meet_itself_is_refused(paper: Paper, sides: Sides) -> None:
    action, source, target, fee = sides(paper)

    outcome = paper.do(wish(action, source, target, 50, fee=fee))

    assert once_each(paper)
    assert outcome.refusal == Refusal.SAME_WALLET


@pytest.mark.parametrize("action", [Action.CAPTURE, Action.RETURN, Action.DISPUTE])
def test_money_between_outside_and_a_wallet_does_not_stay_in_the_wallet(paper: Paper, action: Action) -> None:
    wallet = paper.wallet(ALICE, 100)
    posting = wish(action, wallet, wallet, 50)
    if action is Action.CAPTURE:
        paper.do(replace(posting, action=Action.HOLD))

    assert paper.do(posting).refusal is not None
    assert paper.balances(wallet) == [100]


def test_a_return_never_takes_from_somebodys_wallet(paper: Paper) -> None:
    mine, theirs = paper.wallet(ALICE), paper.wallet(BOB, 100)

    assert paper.do(wish(Action.RETURN, theirs, mine, 60)).refusal is not None
    assert paper.balances(mine, theirs) == [0, 100]


def test_a_capture_into_another_currency_is_refused(paper: Paper) -> None:
    wallet = paper.wallet(ALICE, 100)
    held = wish(Action.HOLD, wallet, account_ref("external:stripe:EUR"), 60)
    paper.do(held)

    assert paper.do(replace(held, action=Action.CAPTURE)).refusal is not None
    assert paper[wallet].held.minor == 60


@pytest.mark.parametrize("action", [Action.CAPTURE, Action.DISPUTE])
def test_what_goes_outside_never_ends_in_somebodys_wallet(paper: Paper, action: Action) -> None:
    mine, theirs = paper.wallet(ALICE, 100), paper.wallet(BOB)
    posting = wish(action, mine, theirs, 60)
    if action is Action.CAPTURE:
        paper.do(replace(posting, action=Action.HOLD))

    assert paper.do(posting).refusal == Refusal.NOT_OWNER
    assert paper.balances(mine, theirs) == [100, 0]
    assert paper[mine].status == "active"
