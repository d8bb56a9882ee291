"""The quick way to read what comes most often: a plain transfer or payment.

What this module reads, `api.py` would read the same; whatever is unusual in any way is left to that.
"""

import re
from typing import Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from shared.money import CURRENCIES, InvalidAmountError, Money, parse_amount, to_money
from transaction_service.domain import Type

MAX_BODY_BYTES: Final = 2048
MAX_DESCRIPTION: Final = 500

_AMOUNT: Final = re.compile(rb'(?P<quote>"?)(?P<digits>(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,4})?)(?P=quote)')


class _BetweenWallets(msgspec.Struct, forbid_unknown_fields=True):
    transaction_type: Literal["transfer", "payment"]
    amount: msgspec.Raw
    currency: str
    from_wallet_id: UUID
    to_wallet_id: UUID
    description: str | msgspec.UnsetType | None = msgspec.UNSET


class PlainWish(NamedTuple):
    """A transfer or payment as it was asked for."""

    type: Type
    amount: Money
    from_wallet_id: UUID
    to_wallet_id: UUID
    description: str | None


_decode: Final = msgspec.json.Decoder(_BetweenWallets).decode


def read_plain(body: bytes) -> PlainWish | None:
    """The wish in a body of JSON; None where it is another one, or there is anything to be said about it."""
    if len(body) > MAX_BODY_BYTES or b"\\" in body:
        return None
    try:
        wish = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    amount = _AMOUNT.fullmatch(bytes(wish.amount))
    if amount is None or wish.currency not in CURRENCIES or wish.from_wallet_id == wish.to_wallet_id:
        return None
    description = None if wish.description is msgspec.UNSET else wish.description
    if description is not None and (len(description) > MAX_DESCRIPTION or not description.isprintable()):
        return None
    if body.count(b'"') != _quotes(wish, quoted_amount=bool(amount["quote"])):
        return None  # a field came twice
    try:
        money = to_money(parse_amount(amount["digits"].decode()), wish.currency)
    except InvalidAmountError:
        return None
    return PlainWish(Type(wish.transaction_type), money, wish.from_wallet_id, wish.to_wallet_id, description)


def _quotes(wish: _BetweenWallets, *, quoted_amount: bool) -> int:
    """How many quotation marks the body has if each field came once, as none is escaped."""
    names, texts = 5, 4 + quoted_amount
    if wish.description is not msgspec.UNSET:
        names += 1
        texts += wish.description is not None
    return 2 * (names + texts)
