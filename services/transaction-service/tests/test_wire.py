"""The quick way to read a body says the same as the thorough one, or nothing."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.errors import AppError
from shared.http.json_body import decode_json
from shared.money import Money
from transaction_service.api import PaymentIn, TransactionIn, TransferIn
from transaction_service.domain import Type
from transaction_service.wire import PlainWish, read_plain

MINE, THEIRS = "01980000-0000-7000-8000-000000000001", "01980000-0000-7000-8000-000000000002"
PLAIN = {
    "transaction_type": "transfer",
    "amount": 50.00,
    "currency": "USD",
    "from_wallet_id": MINE,
    "to_wallet_id": THEIRS,
}
thorough: TypeAdapter[Any] = TypeAdapter(TransactionIn)


def read_thoroughly(body: bytes) -> PlainWish | None:
    """What `api.py` makes of the body; None for what it refuses and for other types."""
    try:
        wish = thorough.validate_python(decode_json(body))
    except (AppError, ValidationError):
        return None
    if not isinstance(wish, TransferIn | PaymentIn):
        return None
    return PlainWish(
        Type(wish.transaction_type), wish.money, wish.from_wallet_id, wish.to_wallet_id, wish.description
    )


def body_of(**changes: str | None) -> bytes:
    """A plain body with some members as this JSON, or without them."""
    members = {name: json.dumps(value) for name, value in PLAIN.items()} | changes
    return (
        "{" + ", ".join(f'"{name}": {value}' for name, value in members.items() if value is not None) + "}"
    ).encode()


@pytest.mark.parametrize("kind", ["transfer", "payment"])
@pytest.mark.parametrize("amount", ["50", "50.0", "50.00", '"50"', '"50.00"'])
def test_a_plain_body_is_read(kind: str, amount: str) -> None:
    body = body_of(transaction_type=f'"{kind}"', amount=amount, description='"Rent für Zoë"')

    wish = read_plain(body)

    assert wish == PlainWish(Type(kind), Money(5000, "USD"), UUID(MINE), UUID(THEIRS), "Rent für Zoë")
    assert wish == read_thoroughly(body)


def test_the_sample_of_the_readme_is_plain() -> None:
    body = (
        b'{\n    "transaction_type": "transfer",\n    "amount": 50.00,\n    "currency": "USD",\n'
        b'    "from_wallet_id": "'
        + MINE.encode()
        + b'",\n    "to_wallet_id": "'
        + THEIRS.encode()
        + b'",\n    "description": "Payment for services"\n  }'
    )

    assert read_plain(body) == PlainWish(
        Type.TRANSFER, Money(5000, "USD"), UUID(MINE), UUID(THEIRS), "Payment for services"
    )


NO_AMOUNTS = [
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e3",
        "1E3",
        "true",
        "null",
        "[]",
        "{}",
        "0",
        "0.00",
        "-1",
        "-0",
        "007",
    ),
    *("0.001", "100.000", "+5", "5.", ".5", "1_000", "99999999999999.99", "1234567890123456", "0x10", "1 000"),
    *(
        '""',
        '"1_000"',
        '" 5 "',
        '"+5"',
        '"1e3"',
        '"\uff11\uff10\uff10"',
        '"NaN"',
        '"5',
        '5"',
        '"0"',
        '"-1"',
        '"50,00"',
    ),
]
ODD_BODIES = [
    *(b"", b"{}", b"[]", b"null", b'"x"', b"\xff", b"{", b"[" * 100_000, b"\x00", b'{"transaction_type":"transfer"}'),
    body_of(transaction_type='"deposit"'),
    body_of(transaction_type='"Transfer"'),
    body_of(currency='"usd"'),
    body_of(currency='"XXX"'),
    body_of(currency='"JPY"', amount="0.5"),
    body_of(to_wallet_id=f'"{MINE}"'),
    body_of(to_wallet_id='"x"'),
    body_of(from_wallet_id=None),
    body_of(balance="1"),
    body_of(metadata='{"a": "b"}'),
    body_of(description='"a\\u0000b"'),
    body_of(description='"a\\nb"'),
    body_of(description='"a\u2028b"'),
    body_of(description='"' + "x" * 501 + '"'),
    body_of(description='"' + "x" * 5000 + '"'),
    body_of(description='"\x01"'),
    body_of()[:-1] + b', "amount": 1}',
    body_of()[:-1] + b', "amount": "1"}',
    body_of(description="null")[:-1] + b', "description": null}',
    b'{"currency": "USD", ' + body_of(description='"x"')[1:],
    body_of() + b"x",
    body_of() + body_of(),
]


@pytest.mark.parametrize("body", [body_of(amount=amount) for amount in NO_AMOUNTS] + ODD_BODIES)
def test_whatever_is_unusual_is_left_to_the_thorough_way(body: bytes) -> None:
    assert read_plain(body) is None


words = st.text(max_size=30)
amounts = st.one_of(
    st.from_regex(r"-?[0-9]{1,17}(\.[0-9]{0,5})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r'"[ +-]?[0-9_]{1,17}(\.[0-9]{0,5})?"', fullmatch=True),
    st.sampled_from(NO_AMOUNTS),
)
values = st.one_of(
    words.map(json.dumps), st.sampled_from([f'"{MINE}"', f'"{THEIRS}"', "null", "1", '"USD"', '"JPY"'])
)
members = st.tuples(
    st.sampled_from([*PLAIN, "description", "metadata", "payment_method", "x"]), st.one_of(values, amounts)
)


@given(amount=amounts, more=st.lists(members, max_size=3), description=st.none() | words)
@example(amount="1", more=[("amount", "2")], description=None)
def test_it_never_says_anything_else(amount: str, more: list[tuple[str, str]], description: str | None) -> None:
    changes: dict[str, str | None] = {"amount": amount}
    if description is not None:
        changes["description"] = json.dumps(description, ensure_ascii=False)
    body = (
        body_of(**changes)[:-1]
        + "".join(f', "{name}": {value}' for name, value in more).encode("utf-8", "replace")
        + b"}"
    )

    wish = read_plain(body)

    assert wish is None or wish == read_thoroughly(body)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(body: bytes) -> None:
    assert read_plain(body) is None
