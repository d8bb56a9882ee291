"""Amounts of money: exact, in integer minor units, never mixed between currencies.

Currencies and their decimals come from ISO 4217's own table (package `iso4217`).
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import iso4217

MAX_SIGNIFICANT_DIGITS: Final = 15
# The most that one amount or one wallet may be: far below what the database's BIGINT holds.
MAX_MINOR: Final = 10**15 - 1

# Metals and codes for tests have no decimals in the table, and are no money that a wallet can hold.
CURRENCIES: Final[dict[str, int]] = {
    currency.code: currency.exponent for currency in iso4217.Currency if currency.exponent is not None
}

_AMOUNT_TEXT: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?", re.ASCII)


class InvalidAmountError(ValueError):
    """An amount from outside that is not one; `code` is for machines, the text for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class CurrencyMismatchError(TypeError):
    """Two amounts of different currencies met in one operation."""


@dataclass(frozen=True, slots=True)
class Money:
    """`minor` units (cents, yen, fils) of one ISO 4217 `currency`."""

    minor: int
    currency: str

    def __add__(self, other: "Money") -> "Money":
        return Money(self.minor + self._same(other), self.currency)

    def __sub__(self, other: "Money") -> "Money":
        return Money(self.minor - self._same(other), self.currency)

    def __neg__(self) -> "Money":
        return Money(-self.minor, self.currency)

    def __lt__(self, other: "Money") -> bool:
        return self.minor < self._same(other)

    def __le__(self, other: "Money") -> bool:
        return self.minor <= self._same(other)

    def __gt__(self, other: "Money") -> bool:
        return self.minor > self._same(other)

    def __ge__(self, other: "Money") -> bool:
        return self.minor >= self._same(other)

    def __str__(self) -> str:
        """Major units with exactly the currency's decimals: `12.30`, `1200`, `0.500`."""
        exponent = CURRENCIES[self.currency]
        if exponent == 0:
            return str(self.minor)
        sign = "-" if self.minor < 0 else ""
        whole, fraction = divmod(abs(self.minor), 10**exponent)
        return f"{sign}{whole}.{fraction:0{exponent}d}"

    def _same(self, other: "Money") -> int:
        if not isinstance(other, Money) or other.currency != self.currency:
            raise CurrencyMismatchError("Amounts of different currencies cannot be combined.")
        return other.minor


def parse_amount(value: object) -> Decimal:
    """The exact, positive number in `value`: a decoded JSON number or a string of ASCII digits.

    Raises InvalidAmountError. A binary float is refused: it is no longer what the caller wrote.
    """
    if (
        (isinstance(value, str) and _AMOUNT_TEXT.fullmatch(value))
        or isinstance(value, Decimal)
        or (isinstance(value, int) and not isinstance(value, bool))
    ):
        number = Decimal(value)
    else:
        raise InvalidAmountError("amount_invalid", "Must be a decimal number such as 100.00.")
    if not number.is_finite():
        raise InvalidAmountError("amount_invalid", "Must be a finite number.")
    if number <= 0:
        raise InvalidAmountError("amount_not_positive", "Must be greater than zero.")
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or exponent > 0 or len(digits) > MAX_SIGNIFICANT_DIGITS:
        raise InvalidAmountError("amount_too_long", "Must have at most 15 significant digits and no exponent.")
    return number


def to_money(amount: Decimal, currency: str) -> Money:
    """`amount` major units as Money; raises InvalidAmountError for too many decimals or too much money."""
    exponent = CURRENCIES[currency]
    decimals = -int(amount.as_tuple().exponent)
    if decimals > exponent:
        raise InvalidAmountError("amount_too_precise", f"{currency} has {exponent} decimals.")
    minor = int(amount.scaleb(exponent))
    if minor > MAX_MINOR:
        raise InvalidAmountError("amount_too_long", "Is more than can be recorded.")
    return Money(minor, currency)
