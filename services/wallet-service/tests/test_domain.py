"""The ledger's rules, without a database."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ids import new_id
from shared.money import Money
from wallet_service.domain import (
    Account,
    AccountRef,
    Action,
    Book,
    Posting,
    Refusal,
    UnknownAccountError,
    account_ref,
    move,
)

ALICE, BOB = new_id(), new_id()


def usd(minor: int) -> Money:
    return Money(minor, "USD")


def wallet(owner: UUID | None, minor: int, currency: str = "USD", status: str = "active") -> Account:
    return Account(new_id(), None, owner, status, Money(minor, currency), Money(0, currency), 0)


def wish(source: Account, target: Account, amount: Money, caller: UUID = ALICE) -> Posting:
    return Posting(
        new_id(), Action.MOVE, caller, AccountRef(source.id, source.name), AccountRef(target.id, target.name), amount
    )


def decide(*accounts: Account, posting: Posting) -> tuple[Refusal | None, int]:
    """The refusal and how many entries there are."""
    book = Book({account.id: account for account in accounts})
    [[outcome]] = book.apply([[posting]])
    return outcome.refusal, len(book.entries)


def test_a_posting_moves_the_amount_and_its_entries_sum_to_zero() -> None:
    source, target = wallet(ALICE, 1000), wallet(BOB, 5)

    change = move(wish(source, target, usd(400)), source, target)
    source_after, target_after = change.accounts
    entries = change.entries

    assert (source_after.balance, target_after.balance) == (usd(600), usd(405))
    assert [entry.amount for entry in entries] == [usd(-400), usd(400)]
    assert [entry.balance for entry in entries] == [usd(600), usd(405)]
    assert [entry.version for entry in entries] == [1, 1]


def test_held_money_cannot_be_spent() -> None:
    source = Account(new_id(), None, ALICE, "active", usd(1000), usd(700), 0)
    target = wallet(BOB, 0)

    assert decide(source, target, posting=wish(source, target, usd(301))) == (Refusal.INSUFFICIENT_FUNDS, 0)
    assert decide(source, target, posting=wish(source, target, usd(300))) == (None, 2)


@pytest.mark.parametrize(
    ("source", "target", "amount", "refusal"),
    [
        (wallet(ALICE, 99), wallet(BOB, 0), usd(100), Refusal.INSUFFICIENT_FUNDS),
        (wallet(BOB, 100), wallet(ALICE, 0), usd(100), Refusal.NOT_OWNER),
        (wallet(ALICE, 100, status="frozen"), wallet(BOB, 0), usd(100), Refusal.FROZEN),
        (wallet(ALICE, 100, status="closed"), wallet(BOB, 0), usd(100), Refusal.CLOSED),
        (wallet(ALICE, 100), wallet(BOB, 0, status="closed"), usd(100), Refusal.CLOSED),
        (wallet(ALICE, 100), wallet(BOB, 0, "EUR"), usd(100), Refusal.CURRENCY_MISMATCH),
        (wallet(ALICE, 100, "EUR"), wallet(BOB, 0, "EUR"), usd(100), Refusal.CURRENCY_MISMATCH),
        (wallet(ALICE, 100), wallet(BOB, 0, status="frozen"), usd(100), None),
    ],
    ids=["short", "foreign", "frozen", "closed", "closed-target", "mixed", "other-currency", "frozen-receives"],
)
def test_a_rule_that_is_broken_is_named_and_nothing_moves(
    source: Account, target: Account, amount: Money, refusal: Refusal | None
) -> None:
    assert decide(source, target, posting=wish(source, target, amount)) == (refusal, 0 if refusal else 2)


def test_a_wallet_that_does_not_exist_is_refused() -> None:
    source = wallet(ALICE, 100)

    assert decide(source, posting=wish(source, wallet(BOB, 0), usd(1))) == (Refusal.WALLET_NOT_FOUND, 0)


def test_money_from_outside_goes_only_to_a_wallet_of_the_caller() -> None:
    external = Account(new_id(), "external:stripe:USD", None, "active", usd(0), usd(0), 0)
    mine, theirs = wallet(ALICE, 0), wallet(BOB, 0)

    assert decide(external, mine, posting=wish(external, mine, usd(500))) == (None, 2)
    assert decide(external, theirs, posting=wish(external, theirs, usd(500))) == (Refusal.NOT_OWNER, 0)


def test_no_wallet_holds_more_than_the_largest_amount() -> None:
    external = Account(new_id(), "external:stripe:USD", None, "active", usd(-(10**18)), usd(0), 0)
    full, rich = wallet(ALICE, 10**15 - 10), wallet(ALICE, 100)

    assert decide(external, full, posting=wish(external, full, usd(9))) == (None, 2)
    assert decide(external, full, posting=wish(external, full, usd(10))) == (Refusal.BALANCE_LIMIT, 0)
    assert decide(rich, full, posting=wish(rich, full, usd(10))) == (Refusal.BALANCE_LIMIT, 0)


def test_a_system_account_ends_where_the_database_does() -> None:
    drained = Account(new_id(), "external:paypal:USD", None, "active", usd(10 - 2**63), usd(0), 0)
    poor = wallet(ALICE, 0)

    assert decide(drained, poor, posting=wish(drained, poor, usd(9))) == (None, 2)
    assert decide(drained, poor, posting=wish(drained, poor, usd(10))) == (Refusal.BALANCE_LIMIT, 0)


def test_a_system_account_is_not_meant_by_its_id_alone() -> None:
    external = Account(new_id(), "external:stripe:USD", None, "active", usd(0), usd(0), 0)
    mine = wallet(ALICE, 100)
    out = Posting(new_id(), Action.MOVE, ALICE, AccountRef(external.id), AccountRef(mine.id), usd(10))
    into = Posting(new_id(), Action.MOVE, ALICE, AccountRef(mine.id), AccountRef(external.id), usd(10))

    assert decide(external, mine, posting=out) == (Refusal.WALLET_NOT_FOUND, 0)
    assert decide(external, mine, posting=into) == (Refusal.WALLET_NOT_FOUND, 0)


def test_two_halves_of_one_batch_cannot_spend_the_same_money() -> None:
    source, target = wallet(ALICE, 100), wallet(BOB, 0)
    book = Book({source.id: source, target.id: target})

    outcomes = [outcome for [outcome] in book.apply([[wish(source, target, usd(60))] for _ in range(2)])]

    assert [outcome.refusal for outcome in outcomes] == [None, Refusal.INSUFFICIENT_FUNDS]
    assert outcomes[1].available_minor == 40


def test_the_same_posting_twice_in_one_batch_is_decided_once() -> None:
    source, target = wallet(ALICE, 100), wallet(BOB, 0)
    book = Book({source.id: source, target.id: target})
    posting = wish(source, target, usd(60))

    [[first], [again]] = book.apply([[posting], [posting]])

    assert first == again
    assert book.accounts[source.id].balance == usd(40)
    assert len(book.decided) == 1


@pytest.mark.parametrize(
    "text", ["", "external", "external:stripe", "external:stripe:XXX", "fees::USD", "a:b:c:d", "fees:usd"]
)
def test_a_name_that_is_no_account_is_refused(text: str) -> None:
    with pytest.raises(UnknownAccountError):
        account_ref(text)


def test_a_system_account_has_one_id_for_ever() -> None:
    ref = account_ref("external:stripe:USD")

    assert ref == account_ref("external:stripe:USD")
    assert ref.id != account_ref("external:stripe:EUR").id
    assert (ref.name, ref.currency) == ("external:stripe:USD", "USD")


MOVES = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 500), st.integers(0, 30)), max_size=60
)


@given(balances=st.lists(st.integers(0, 1000), min_size=5, max_size=5), moves=MOVES)
def test_whatever_is_posted_money_is_conserved_and_nobody_is_overdrawn(
    balances: list[int], moves: list[tuple[int, int, int, int]]
) -> None:
    accounts = [wallet(ALICE, minor) for minor in balances]
    ids = [new_id() for _ in range(31)]
    book = Book({account.id: account for account in accounts})
    postings = [
        Posting(ids[key], Action.MOVE, ALICE, AccountRef(accounts[a].id), AccountRef(accounts[b].id), usd(minor))
        for a, b, minor, key in moves
        if a != b
    ]

    outcomes = [outcome for [outcome] in book.apply([[posting] for posting in postings])]

    assert sum(account.balance.minor for account in book.accounts.values()) == sum(balances)
    assert all(account.balance.minor >= 0 for account in book.accounts.values())
    assert sum(entry.amount.minor for entry in book.entries) == 0
    for account in accounts:
        entries = [entry for entry in book.entries if entry.account_id == account.id]
        assert [entry.version for entry in entries] == list(range(1, len(entries) + 1))
        running = account.balance.minor
        for entry in entries:
            running += entry.amount.minor
            assert entry.balance.minor == running
        assert book.accounts[account.id].balance.minor == running
    first: dict[UUID, Refusal | None] = {}
    for posting, outcome in zip(postings, outcomes, strict=True):
        assert first.setdefault(posting.id, outcome.refusal) == outcome.refusal
