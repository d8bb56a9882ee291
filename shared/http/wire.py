"""Field types that wire models share."""

import re
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.money import CURRENCIES, InvalidAmountError, parse_amount

_RFC_3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:?\d\d)", re.ASCII)


def _line(value: str) -> str:
    """Text of one line: control characters could forge a line in a log, a mail or a terminal."""
    if any(unicodedata.category(letter) in {"Cc", "Zl", "Zp"} for letter in value):
        raise PydanticCustomError("text_invalid", "Must not contain control characters.")
    return value


def _amount(value: Any) -> Decimal:
    try:
        return parse_amount(value)
    except InvalidAmountError as error:
        raise PydanticCustomError(error.code, "{reason}", {"reason": str(error)}) from None


def _currency(value: str) -> str:
    if value not in CURRENCIES:
        raise PydanticCustomError("currency_unknown", "Must be an ISO 4217 currency code such as USD.")
    return value


def utc_text(value: datetime) -> str:
    """RFC 3339 in UTC, with microseconds and `Z`."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _rfc_3339(value: Any) -> Any:
    if not (isinstance(value, str) and _RFC_3339.fullmatch(value)):  # pydantic takes numbers for times, too
        raise PydanticCustomError("instant_invalid", "Must be a time with its zone, such as 2026-11-24T09:30:00Z.")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("instant_invalid", "Is beyond the calendar.") from None


SINGLE_LINE = AfterValidator(_line)

AmountIn = Annotated[
    Decimal,
    BeforeValidator(_amount),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^[0-9]{1,15}(\.[0-9]+)?$"},
            ],
            "description": "Major units, with no more decimals than the currency has.",
            "examples": [100.00],
        }
    ),
]

AmountOut = Annotated[str, Field(description="Major units with the currency's decimals.", examples=["100.00"])]

CurrencyCode = Annotated[
    str,
    AfterValidator(_currency),
    Field(description="ISO 4217 code.", examples=["USD"], json_schema_extra={"pattern": "^[A-Z]{3}$"}),
]

InstantIn = Annotated[AwareDatetime, BeforeValidator(_rfc_3339), AfterValidator(_in_utc)]

UtcTime = Annotated[
    datetime,
    PlainSerializer(utc_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-24T09:30:00.000000Z"]}),
]

PageLimit = Annotated[int, Query(ge=1, le=100, description="How many at most.")]
