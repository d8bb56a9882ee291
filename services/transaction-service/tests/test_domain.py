"""Fees, what is left to be refunded, what may become of a transaction, and when two wishes are the same."""

from dataclasses import fields, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import AppError, ForbiddenError
from shared.http.context import Trace
from shared.ids import new_id
from shared.money import MAX_MINOR, CurrencyMismatchError, Money
from transaction_service.domain import (
    Command,
    NotCancellableError,
    NotRefundableError,
    RefundExceedsRemainingError,
    Status,
    Transaction,
    Type,
    failure_of_refusal,
    fee_of,
    reserve,
)
from transaction_service.settings import MAX_FEE_BPS

ALICE, BOB, CAROL = new_id(), new_id(), new_id()


def usd(minor: int) -> Money:
    return Money(minor, "USD")


def transaction(kind: Type, status: Status = Status.COMPLETED, **change: Any) -> Transaction:
    """One of Alice's over ten dollars, received by Bob."""
    made = Transaction(
        id=new_id(),
        type=kind,
        status=status,
        user_id=ALICE,
        amount=usd(1_000),
        fee=usd(0),
        refunded=usd(0),
        from_wallet_id=new_id(),
        to_wallet_id=new_id(),
        payment_method=None,
        description=None,
        metadata={},
        created_at=datetime.now(UTC),
        payee_user_id=BOB if kind in {Type.TRANSFER, Type.PAYMENT} and status is Status.COMPLETED else None,
    )
    return replace(made, **change)


# --------------------------------------------------------------------------------------------------------------- fees


@pytest.mark.parametrize(
    ("minor", "basis_points", "fee"),
    [
        (2_000, 250, 50),
        (1, 5_000, 0),  # 0.5 → 0
        (3, 5_000, 2),  # 1.5 → 2
        (5, 5_000, 2),  # 2.5 → 2
        (100, 50, 0),  # 0.50 → 0
        (100, 51, 1),
        (300, 50, 2),  # 1.50 → 2
        (500, 50, 2),  # 2.50 → 2
        (1_000, 0, 0),
        (1, 1, 0),
        (MAX_MINOR, 5_000, 500_000_000_000_000),
        (MAX_MINOR, 1, 100_000_000_000),
    ],
)
def test_a_fee_is_rounded_half_even_to_the_minor_unit(minor: int, basis_points: int, fee: int) -> None:
    assert fee_of(usd(minor), basis_points) == usd(fee)


@pytest.mark.parametrize("currency", ["USD", "JPY", "KWD"])
def test_a_fee_is_in_the_currency_of_its_amount(currency: str) -> None:
    assert fee_of(Money(10_000, currency), 250) == Money(250, currency)


amounts = st.integers(1, 300) | st.integers(1, MAX_MINOR)
rates = st.integers(0, MAX_FEE_BPS)


@given(minor=amounts, basis_points=rates)
def test_a_fee_leaves_something_and_is_the_nearest_minor_unit(minor: int, basis_points: int) -> None:
    fee = fee_of(usd(minor), basis_points).minor

    assert 0 <= fee < minor
    exact = Fraction(minor * basis_points, 10_000)
    assert fee == round(exact)  # Python rounds half to even, here without a decimal
    assert (fee > 0) == (exact > Fraction(1, 2))


@given(minor=st.integers(1, MAX_MINOR - 1), basis_points=rates)
def test_more_money_never_costs_less(minor: int, basis_points: int) -> None:
    assert fee_of(usd(minor), basis_points) <= fee_of(usd(minor + 1), basis_points)


# ------------------------------------------------------------------------------------------------------------ refunds


@pytest.mark.parametrize(
    ("refunded", "reserved", "wanted", "taken"),
    [
        (0, 0, None, 1_000),
        (0, 0, 1_000, 1_000),
        (0, 0, 1, 1),
        (400, 0, None, 600),
        (400, 600, 1, None),
        (400, 100, 500, 500),
        (400, 100, 501, None),
        (400, 100, None, 500),
        (1_000, 0, None, None),
        (0, 1_000, None, None),
        (0, 0, 1_001, None),
        (0, 0, 0, None),
    ],
)
def test_a_refund_takes_no_more_than_is_left(
    refunded: int, reserved: int, wanted: int | None, taken: int | None
) -> None:
    original = transaction(Type.TRANSFER, refunded=usd(refunded))
    amount = None if wanted is None else usd(wanted)

    if taken is not None:
        assert reserve(original, amount, reserved) == usd(taken)
    else:
        with pytest.raises(RefundExceedsRemainingError) as refused:
            reserve(original, amount, reserved)
        left = str(usd(1_000 - refunded - reserved))
        assert (refused.value.status, refused.value.details) == (409, {"remaining": left, "currency": "USD"})


def test_a_refund_is_in_the_currency_of_what_it_gives_back() -> None:
    with pytest.raises(CurrencyMismatchError):
        reserve(transaction(Type.TRANSFER), Money(1, "EUR"), 0)


@given(wishes=st.lists(st.none() | st.integers(1, 1_200), max_size=12))
def test_whatever_is_wished_for_refunds_never_exceed_the_original(wishes: list[int | None]) -> None:
    original, reserved = transaction(Type.PAYMENT), 0
    for wish in wishes:
        left = 1_000 - reserved
        try:
            taken = reserve(original, None if wish is None else usd(wish), reserved).minor
        except RefundExceedsRemainingError:
            assert left == 0 or (wish or 0) > left
        else:
            assert taken == (left if wish is None else wish)
            reserved += taken
    assert reserved <= 1_000


def raised(check: Any) -> tuple[int, str] | None:
    try:
        check()
    except AppError as error:
        return error.status, error.code
    return None


NOT_REFUNDABLE, FORBIDDEN = (409, "transaction_not_refundable"), (403, "forbidden")
PAYER, PAYEE, STRANGER = ALICE, BOB, CAROL


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("kind", Type)
def test_who_may_give_back_what(kind: Type, status: Status) -> None:
    item = transaction(kind, status)
    done = status is Status.COMPLETED

    found = {user: raised(lambda user=user: item.check_refundable(user)) for user in (PAYER, PAYEE, STRANGER)}

    if kind in {Type.TRANSFER, Type.PAYMENT}:
        assert found == {PAYER: FORBIDDEN, PAYEE: None if done else FORBIDDEN, STRANGER: FORBIDDEN}
    elif kind is Type.DEPOSIT:
        assert found == {PAYER: None if done else NOT_REFUNDABLE, PAYEE: FORBIDDEN, STRANGER: FORBIDDEN}
    else:
        assert found == dict.fromkeys((PAYER, PAYEE, STRANGER), NOT_REFUNDABLE)


def test_a_payment_that_is_known_to_its_payee_but_not_done_is_not_refundable() -> None:
    pending = transaction(Type.PAYMENT, Status.PENDING, payee_user_id=BOB)

    with pytest.raises(NotRefundableError):
        pending.check_refundable(BOB)
    with pytest.raises(ForbiddenError):
        pending.check_refundable(ALICE)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("kind", Type)
def test_only_what_waits_for_somebody_outside_can_be_cancelled(kind: Type, status: Status) -> None:
    item = transaction(kind, status)

    if kind in {Type.DEPOSIT, Type.WITHDRAWAL} and status is Status.PENDING:
        item.check_cancellable()
    else:
        with pytest.raises(NotCancellableError) as refused:
            item.check_cancellable()
        assert (refused.value.status, refused.value.code) == (409, "transaction_not_cancellable")


@pytest.mark.parametrize(
    ("kind", "original", "goes_out", "comes_back"),
    [
        (Type.DEPOSIT, None, False, False),
        (Type.WITHDRAWAL, None, True, False),
        (Type.TRANSFER, None, False, False),
        (Type.PAYMENT, None, False, False),
        (Type.REFUND, Type.DEPOSIT, True, False),
        (Type.REFUND, Type.TRANSFER, False, False),
        (Type.REFUND, Type.PAYMENT, False, False),
        (Type.PAYOUT_RETURN, Type.WITHDRAWAL, False, True),
        (Type.DISPUTE, Type.DEPOSIT, False, True),
    ],
)
def test_which_way_the_money_goes(kind: Type, original: Type | None, goes_out: bool, comes_back: bool) -> None:
    item = transaction(kind, original_type=original)

    assert (item.goes_out, item.comes_back) == (goes_out, comes_back)


def test_somebody_elses_wallet_looks_like_none() -> None:
    assert failure_of_refusal("not_owner") == failure_of_refusal("wallet_not_found") == "wallet_not_found"


# ------------------------------------------------------------------------------------------------------------- wishes

WISH = Command(
    Type.TRANSFER,
    ALICE,
    usd(1_000),
    from_wallet_id=UUID(int=1),
    to_wallet_id=UUID(int=2),
    payment_method="credit_card",
    description="rent",
    metadata={"a": "1", "b": "2"},
    key="k",
    original_id=UUID(int=3),
)
ANOTHER_WISH: dict[str, list[Any]] = {
    "type": [Type.PAYMENT],
    "amount": [usd(1_001), Money(1_000, "EUR"), None],
    "from_wallet_id": [UUID(int=9), None],
    "to_wallet_id": [UUID(int=9), None],
    "payment_method": ["paypal", None],
    "description": ["Rent", "", None],
    "metadata": [{}, {"a": "1"}, {"a": "2", "b": "1"}, {"a": "1", "b": "2", "c": ""}, {"a1": "", "b": "2"}],
    "original_id": [UUID(int=9), None],
}
THE_SAME_WISH: dict[str, list[Any]] = {
    "user_id": [BOB],  # the key is the user's own
    "key": ["another", None],
    "fee_minor": [25],  # a fee may change between a request and its retry
    "original_type": [Type.PAYMENT],  # follows from the original
    "trace": [Trace("request", "trace")],
    "metadata": [{"b": "2", "a": "1"}],
}


def test_every_field_of_a_wish_is_considered() -> None:
    assert {field.name for field in fields(Command)} == ANOTHER_WISH.keys() | THE_SAME_WISH.keys()


def test_another_wish_has_another_fingerprint() -> None:
    wishes = [WISH, *(replace(WISH, **{name: value}) for name, values in ANOTHER_WISH.items() for value in values)]

    assert len({wish.fingerprint() for wish in wishes}) == len(wishes)


def test_the_same_wish_has_the_same_fingerprint() -> None:
    for name, values in THE_SAME_WISH.items():
        for value in values:
            assert replace(WISH, **{name: value}).fingerprint() == WISH.fingerprint(), name


texts = st.none() | st.text(max_size=5)
wishes = st.builds(
    Command,
    type=st.sampled_from(Type),
    user_id=st.just(ALICE),
    amount=st.none() | st.builds(Money, st.integers(1, 3), st.sampled_from(["USD", "EUR"])),
    from_wallet_id=st.sampled_from([None, UUID(int=1), UUID(int=2)]),
    to_wallet_id=st.sampled_from([None, UUID(int=1), UUID(int=2)]),
    payment_method=st.sampled_from([None, "None", "paypal"]),
    description=texts,
    metadata=st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    original_id=st.sampled_from([None, UUID(int=1)]),
)


@given(one=wishes, other=wishes)
def test_fingerprints_are_equal_exactly_when_wishes_are(one: Command, other: Command) -> None:
    assert (one.fingerprint() == other.fingerprint()) == (one == other)


def test_a_refund_is_an_operation_of_its_own() -> None:
    operations = {kind: replace(WISH, type=kind).operation for kind in Type}

    assert operations[Type.REFUND] == "transactions.refund"
    assert {operation for kind, operation in operations.items() if kind is not Type.REFUND} == {"transactions.create"}
