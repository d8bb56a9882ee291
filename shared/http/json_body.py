"""JSON as it is accepted from outside: exact numbers, no duplicate keys, no text that a database cannot hold."""

import json
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NoReturn

from shared.errors import AppError, FieldInvalidError

MAX_DEPTH: Final = 32
_MAX_INTEGER_DIGITS: Final = 40


def decode_json(body: bytes) -> Any:
    """The value in `body`; numbers with a fraction or exponent come back as Decimal.

    Raises AppError: 400 `json_invalid` for what is not JSON in UTF-8, for NaN and Infinity, duplicate keys and
    nesting beyond 32; 422 `text_invalid` with the field for NUL characters and lone surrogates.
    """
    try:
        value = json.loads(
            body.decode("utf-8"),
            parse_float=Decimal,
            parse_int=_parse_int,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_duplicates,
        )
    except (ValueError, RecursionError, InvalidOperation):  # the last by an exponent of twenty digits
        raise AppError("json_invalid", 400, "The body is not valid JSON.") from None
    _check(value, "", 0)
    return value


def _parse_int(text: str) -> int | Decimal:
    return int(text) if len(text) <= _MAX_INTEGER_DIGITS else Decimal(text)


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError("not a JSON number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate key")
    return members


def _check(value: Any, field: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise AppError("json_invalid", 400, f"The body is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, str):
        _check_text(value, field)
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_text(key, field or "body")
            _check(member, f"{field}.{key}" if field else key, depth + 1)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            _check(member, f"{field}.{index}" if field else str(index), depth + 1)


def _check_text(text: str, field: str) -> None:
    if "\x00" in text or (not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)):
        raise FieldInvalidError(field[:100] or "body", "text_invalid", "Contains characters that are not text.")
