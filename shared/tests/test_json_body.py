"""Bodies from outside: what is JSON, and what only looks like it."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import AppError
from shared.http.json_body import MAX_DEPTH, decode_json


def refusal(body: bytes) -> AppError:
    with pytest.raises(AppError) as refused:
        decode_json(body)
    return refused.value


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b" [1, 2]\n", [1, 2]),
        (b'"text"', "text"),
        (b"null", None),
        (b"true", True),
        ('{"name": "Zoë 😀"}'.encode(), {"name": "Zoë 😀"}),
        (b'{"name": "\\ud83d\\ude00"}', {"name": "😀"}),
        (b'{"": ""}', {"": ""}),
        (b'{"a": {"x": 1}, "b": {"x": 2}}', {"a": {"x": 1}, "b": {"x": 2}}),
    ],
)
def test_json_is_decoded(body: bytes, value: Any) -> None:
    assert decode_json(body) == value


@pytest.mark.parametrize(
    "text", ["0.1", "100.00", "1e-7", "1.000000000000000000000000000001", "123456789012345678901234567890.5", "1e400"]
)
def test_numbers_with_a_fraction_or_an_exponent_are_exact(text: str) -> None:
    value = decode_json(text.encode())

    assert isinstance(value, Decimal)
    assert value.as_tuple() == Decimal(text).as_tuple()


@pytest.mark.parametrize("number", [0, -1, 2**63, -(2**63) - 1, 10**39])
def test_whole_numbers_are_exact(number: int) -> None:
    value = decode_json(str(number).encode())

    assert isinstance(value, int)
    assert value == number


def test_a_number_of_sixty_thousand_digits_costs_nothing_and_is_no_int() -> None:
    value = decode_json(b"9" * 60_000)

    assert isinstance(value, Decimal)
    assert value.adjusted() == 59_999


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"   \n", id="blank"),
        pytest.param(b"{", id="cut-off"),
        pytest.param(b'{"a": 1} x', id="trailing"),
        pytest.param(b"{'a': 1}", id="single-quotes"),
        pytest.param(b'{"a": 1,}', id="trailing-comma"),
        pytest.param(b'{"a": 01}', id="leading-zero"),
        pytest.param(b'{"a": +1}', id="plus"),
        pytest.param(b'{"a": "line\nbreak"}', id="raw-control-character"),
        pytest.param(b'{"a": 1, "a": 2}', id="duplicate-key"),
        pytest.param(b'{"a": 1, "\\u0061": 2}', id="duplicate-key-escaped"),
        pytest.param(b'{"x": [{"a": 1, "a": 1}]}', id="duplicate-key-nested"),
        pytest.param(b'{"a": NaN}', id="NaN"),
        pytest.param(b'{"a": Infinity}', id="Infinity"),
        pytest.param(b'{"a": -Infinity}', id="minus-Infinity"),
        pytest.param(b'{"a": 1e99999999999999999999}', id="exponent-beyond-decimal"),
        pytest.param(b'{"a": 1e-99999999999999999999}', id="small-exponent-beyond-decimal"),
        pytest.param(b"\xff\xfe{\x00}\x00", id="utf-16"),
        pytest.param('{"a": "é"}'.encode("latin-1"), id="latin-1"),
        pytest.param(b'{"a": "\xc0\x80"}', id="overlong-nul"),
        pytest.param(b'{"a": "\xed\xa0\x80"}', id="surrogate-as-bytes"),
        pytest.param(b'\xef\xbb\xbf{"a": 1}', id="byte-order-mark"),
        pytest.param(b"[" * 60_000, id="deep-lists"),
        pytest.param(b"[" * 30_000 + b"]" * 30_000, id="deep-closed-lists"),
        pytest.param(b'{"a":' * 12_000, id="deep-objects"),
        pytest.param(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, id="deep-closed-objects"),
    ],
)
def test_what_is_not_json_is_a_400_that_repeats_nothing(body: bytes) -> None:
    error = refusal(body)

    assert (error.status, error.code, error.errors) == (400, "json_invalid", [])
    assert error.detail in {"The body is not valid JSON.", "The body is nested deeper than 32 levels."}


def test_thirty_two_levels_are_accepted_and_one_more_is_not() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    assert json.dumps(decode_json(deepest)).encode() == deepest
    assert refusal(b"[" * 33 + b"1" + b"]" * 33).detail == "The body is nested deeper than 32 levels."
    assert refusal(b'{"a":' * 33 + b"1" + b"}" * 33).detail == "The body is nested deeper than 32 levels."


@pytest.mark.parametrize("letter", ["\\u0000", "\\ud800", "\\udfff", "\\udc00\\ud800"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"name": "a%sb"}', "name"),
        ('{"a": {"b": "%s"}}', "a.b"),
        ('{"a": ["fine", "%s"]}', "a.1"),
        ('{"a": [{"b": "%s"}]}', "a.0.b"),
        ('["%s"]', "0"),
        ('{"%s": 1}', "body"),
        ('{"a": {"x%s": 1}}', "a"),
        ('"%s"', "body"),
    ],
)
def test_characters_that_are_no_text_are_a_422_that_names_the_field(body: str, field: str, letter: str) -> None:
    error = refusal((body % letter).encode())

    assert (error.status, error.code) == (422, "validation_failed")
    assert error.errors == [
        {"field": field, "code": "text_invalid", "message": "Contains characters that are not text."}
    ]


def test_the_name_of_a_field_is_repeated_up_to_a_hundred_characters() -> None:
    error = refusal(json.dumps({"k" * 5000: "\x00"}).encode())

    assert error.errors[0]["field"] == "k" * 100


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcé", max_size=3), inner, max_size=4),
    max_leaves=20,
)


@given(value=JSON)
def test_any_value_comes_back_as_it_was_sent(value: Any) -> None:
    body = json.dumps(value).encode()
    if b"\\u0000" in body:
        assert refusal(body).status == 422
    else:
        assert decode_json(body) == value


@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_an_error_of_ours(body: bytes) -> None:
    try:
        outcome = decode_json(body)
    except AppError as error:
        outcome = error.status
    assert outcome in (400, 422) or outcome == json.loads(body, parse_float=Decimal)
