"""Amounts of money: exact, of one currency, and nothing else."""

import operator
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.http.json_body import decode_json
from shared.money import CURRENCIES, CurrencyMismatchError, InvalidAmountError, Money, parse_amount, to_money

MINOR = st.integers(-(10**14), 10**14)
POSITIVE = st.integers(1, 10**15 - 1)
CURRENCY = st.sampled_from(sorted(CURRENCIES))


def sent(literal: str) -> Any:
    """What a service is given for `{"amount": literal}` in a request."""
    return decode_json(b'{"amount": ' + literal.encode() + b"}")["amount"]


@given(minor=POSITIVE, currency=CURRENCY)
def test_what_is_written_out_reads_back_as_the_same_money(minor: int, currency: str) -> None:
    money = Money(minor, currency)

    assert to_money(parse_amount(sent(str(money))), currency) == money
    assert to_money(parse_amount(sent(f'"{money}"')), currency) == money


@given(minor=MINOR, currency=CURRENCY)
def test_text_has_exactly_the_currencys_decimals_and_the_same_value(minor: int, currency: str) -> None:
    text = str(Money(minor, currency))

    assert len(text.partition(".")[2]) == CURRENCIES[currency]
    assert Decimal(text) == Decimal(minor) / 10 ** CURRENCIES[currency]


@given(first=MINOR, second=MINOR, currency=CURRENCY)
def test_sums_and_comparisons_are_those_of_the_minor_units(first: int, second: int, currency: str) -> None:
    a, b = Money(first, currency), Money(second, currency)

    assert a + b == Money(first + second, currency)
    assert a - b == Money(first - second, currency)
    assert a + b - b == a
    assert a + -a == Money(0, currency)
    assert (a < b, a <= b, a > b, a >= b, a == b) == (
        first < second,
        first <= second,
        first > second,
        first >= second,
        first == second,
    )


@pytest.mark.parametrize("combine", [operator.add, operator.sub, operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize(
    "other", [Money(1, "EUR"), 1, Decimal(1), None], ids=["other-currency", "int", "Decimal", "None"]
)
def test_money_is_never_combined_with_anything_but_the_same_currency(
    combine: Callable[[Any, Any], Any], other: Any
) -> None:
    with pytest.raises(CurrencyMismatchError):
        combine(Money(1, "USD"), other)


def test_equal_numbers_of_two_currencies_are_not_equal() -> None:
    assert Money(100, "USD") != Money(100, "EUR")


@pytest.mark.parametrize(
    ("money", "text"),
    [
        (Money(1230, "USD"), "12.30"),
        (Money(5, "USD"), "0.05"),
        (Money(-5, "USD"), "-0.05"),
        (Money(-1230, "USD"), "-12.30"),
        (Money(0, "USD"), "0.00"),
        (Money(1200, "JPY"), "1200"),
        (Money(-1200, "JPY"), "-1200"),
        (Money(500, "KWD"), "0.500"),
    ],
    ids=str,
)
def test_money_as_text(money: Money, text: str) -> None:
    assert str(money) == text


@pytest.mark.parametrize(
    ("literal", "currency", "minor"),
    [
        ("100.00", "USD", 10000),
        ('"100.00"', "USD", 10000),
        ("100", "USD", 10000),
        ("100.0", "USD", 10000),
        ("0.01", "USD", 1),
        ("0.1", "USD", 10),
        ("100", "JPY", 100),
        ("0.001", "KWD", 1),
        ('"0.001"', "KWD", 1),
        ("9999999999999.99", "USD", 999999999999999),
        ("999999999999999", "JPY", 999999999999999),
        ('"999999999999999"', "JPY", 999999999999999),
        ("2.675", "KWD", 2675),
    ],
)
def test_amounts_that_are_accepted_are_exact(literal: str, currency: str, minor: int) -> None:
    assert to_money(parse_amount(sent(literal)), currency) == Money(minor, currency)


@pytest.mark.parametrize(
    ("literal", "code"),
    [
        ('"NaN"', "amount_invalid"),
        ('"sNaN"', "amount_invalid"),
        ('"Infinity"', "amount_invalid"),
        ('"-Infinity"', "amount_invalid"),
        ("true", "amount_invalid"),
        ("false", "amount_invalid"),
        ("null", "amount_invalid"),
        ("[1]", "amount_invalid"),
        ('{"value": 1}', "amount_invalid"),
        ('""', "amount_invalid"),
        ('"1_000"', "amount_invalid"),
        ('"1,000"', "amount_invalid"),
        ('"１００"', "amount_invalid"),
        ('"١٠٠"', "amount_invalid"),
        ('" 5 "', "amount_invalid"),
        ('"5\\n"', "amount_invalid"),
        ('"+5"', "amount_invalid"),
        ('"-5"', "amount_invalid"),
        ('"1e3"', "amount_invalid"),
        ('"0x10"', "amount_invalid"),
        ('".5"', "amount_invalid"),
        ('"5."', "amount_invalid"),
        ("1e400", "amount_too_long"),
        ("1e3", "amount_too_long"),
        ("1e999999999999999999", "amount_too_long"),
        ("0", "amount_not_positive"),
        ("0.00", "amount_not_positive"),
        ('"0"', "amount_not_positive"),
        ("-0.0", "amount_not_positive"),
        ("-1", "amount_not_positive"),
        ("-1e400", "amount_not_positive"),
        ("1000000000000000", "amount_too_long"),
        ("12345678901234.56", "amount_too_long"),
        ('"12345678901234.56"', "amount_too_long"),
        ('"1234567890123456"', "amount_invalid"),
        pytest.param("9" * 60_000, "amount_too_long", id="60000-digits"),
    ],
)
def test_what_is_no_amount_is_refused_and_not_repeated(literal: str, code: str) -> None:
    with pytest.raises(InvalidAmountError) as refused:
        parse_amount(sent(literal))

    assert refused.value.code == code
    assert str(refused.value) in {
        "Must be a decimal number such as 100.00.",
        "Must be greater than zero.",
        "Must have at most 15 significant digits and no exponent.",
    }


@pytest.mark.parametrize("value", [100.0, 0.1, float("nan"), float("inf"), b"100", 1 + 0j], ids=repr)
def test_a_binary_float_is_no_amount(value: object) -> None:
    with pytest.raises(InvalidAmountError) as refused:
        parse_amount(value)

    assert refused.value.code == "amount_invalid"


@pytest.mark.parametrize(
    ("literal", "currency"),
    [("0.001", "USD"), ("100.000", "USD"), ("100.00", "JPY"), ("100.0", "JPY"), ("0.0001", "KWD")],
)
def test_more_decimals_than_the_currency_has_are_refused(literal: str, currency: str) -> None:
    with pytest.raises(InvalidAmountError) as refused:
        to_money(parse_amount(sent(literal)), currency)

    assert refused.value.code == "amount_too_precise"


@given(value=st.text(max_size=20))
def test_any_text_is_an_amount_of_ascii_digits_or_refused(value: str) -> None:
    try:
        amount = parse_amount(value)
    except InvalidAmountError:
        return
    assert set(value) <= set("0123456789.")
    assert amount == Decimal(value)
    assert amount > 0


@given(value=st.decimals(allow_nan=True, allow_infinity=True))
def test_any_number_is_an_exact_amount_or_refused(value: Decimal) -> None:
    try:
        amount = parse_amount(value)
    except InvalidAmountError:
        return
    assert amount == value
    assert amount > 0
    assert len(amount.as_tuple().digits) <= 15


def test_metals_and_funds_without_decimals_are_no_currencies() -> None:
    assert {"USD", "EUR", "JPY", "KWD"} <= CURRENCIES.keys()
    assert not {"XAU", "XAG", "XXX", "XTS", "usd", ""} & CURRENCIES.keys()
    assert (CURRENCIES["USD"], CURRENCIES["JPY"], CURRENCIES["KWD"]) == (2, 0, 3)
