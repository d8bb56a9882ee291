"""The ledger's wire: batches of units of postings in JSON, each unit read for itself."""

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from shared.errors import AppError
from shared.http.context import Trace
from shared.money import CURRENCIES, MAX_MINOR, Money
from wallet_service.domain import MAX_UNIT, Action, Outcome, Posting, Unit, UnknownAccountError, account_ref

MAX_UNITS: Final = 1000

_Minor = Annotated[int, msgspec.Meta(gt=0, le=MAX_MINOR)]


class PostingIn(msgspec.Struct, forbid_unknown_fields=True):
    """One posting; `source` and `target` are wallets' ids or names of system accounts."""

    id: UUID
    action: Action
    user_id: UUID
    source: str
    target: str
    amount_minor: _Minor
    currency: str
    fee_minor: Annotated[int, msgspec.Meta(ge=0, le=MAX_MINOR)] = 0
    trace: Trace | None = None


class UnitsIn(msgspec.Struct, forbid_unknown_fields=True):
    """A batch; its units are read one by one, so that a bad one is not its neighbours' problem."""

    units: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1, max_length=MAX_UNITS)]


class OutcomeOut(msgspec.Struct):
    """What became of one posting; `unknown` is neither a yes nor a no."""

    id: UUID
    status: Literal["applied", "refused"]
    code: str | None
    available_minor: int | None
    target_user_id: UUID | None


class TroubleOut(msgspec.Struct):
    """Why a unit has no outcome: `invalid` was not understood and never will be, `unknown` may be tried again."""

    status: Literal["invalid", "unknown"]
    detail: str


class OutcomesOut(msgspec.Struct):
    """For each unit its postings' outcomes, or its trouble, in the units' order."""

    outcomes: list[list[OutcomeOut] | TroubleOut]


_batch: Final = msgspec.json.Decoder(UnitsIn)
_unit: Final = msgspec.json.Decoder(Annotated[list[PostingIn], msgspec.Meta(min_length=1, max_length=MAX_UNIT)])
_encoder: Final = msgspec.json.Encoder()

_HEAD: Final = re.compile(rb'\s*\{\s*"units"\s*:\s*\[')
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"|[][{},"]', re.DOTALL)
_TAIL: Final = re.compile(rb"\s*\}\s*")


_WITH_FEE: Final = frozenset({Action.MOVE, Action.PAY})


class InvalidUnitError(ValueError):
    """A unit that cannot be read; the text says why."""


def read_units(body: bytes) -> list[Unit | InvalidUnitError]:
    """The units of a batch, each by itself; raises AppError (422) when the batch as a whole is none."""
    raw: Sequence[msgspec.Raw | bytes]
    try:
        raw = _batch.decode(body).units
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raw = _split(body)
    return [_read(part) for part in raw]


def _split(body: bytes) -> list[bytes]:
    """The units of a batch that is not JSON throughout, by their brackets and commas: what is wrong inside of one,
    such as a NaN, is not its neighbours' problem. Raises AppError (422) when there are no such units."""
    units: list[bytes] = []
    head = _HEAD.match(body)
    begin, depth = head.end() if head else len(body), 0
    for token in _TOKEN.finditer(body, begin):
        match token[0]:
            case b"[" | b"{":
                depth += 1
            case b"]" | b"}" if depth:
                depth -= 1
            case b"," | b"]" as mark if not depth:
                units.append(body[begin : token.start()])
                begin = token.end()
                if mark == b"]":
                    break
            case b'"':  # a text without an end
                break
    if not _TAIL.fullmatch(body, begin) or not 1 <= len(units) <= MAX_UNITS or units == [b""]:
        raise AppError("batch_invalid", 422, "Is not a batch of postings.")
    return units


def _read(part: msgspec.Raw | bytes) -> Unit | InvalidUnitError:
    try:
        unit = [_posting(item) for item in _unit.decode(part)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return InvalidUnitError(str(error))
    except UnknownAccountError:
        return InvalidUnitError("Names an account that cannot be.")
    except InvalidUnitError as error:
        return error
    if len(unit) > 1 and any(posting.action not in _WITH_FEE for posting in unit):
        return InvalidUnitError("A unit of several postings is made of moves.")
    return unit


def _posting(item: PostingIn) -> Posting:
    if item.currency not in CURRENCIES:
        raise InvalidUnitError("Is not in a currency.")
    if item.fee_minor >= item.amount_minor or (item.fee_minor and item.action not in _WITH_FEE):
        raise InvalidUnitError("A fee is a part of what is moved.")
    return Posting(
        item.id,
        item.action,
        item.user_id,
        account_ref(item.source),
        account_ref(item.target),
        Money(item.amount_minor, item.currency),
        Money(item.fee_minor, item.currency) if item.fee_minor else None,
        item.trace,
    )


def write_outcomes(answers: list[list[Outcome] | Exception]) -> bytes:
    """The answer to a batch, in the order of its units."""
    return _encoder.encode(OutcomesOut([_answer(answer) for answer in answers]))


def _answer(answer: list[Outcome] | Exception) -> list[OutcomeOut] | TroubleOut:
    if isinstance(answer, InvalidUnitError):
        return TroubleOut("invalid", str(answer))
    if isinstance(answer, Exception):
        return TroubleOut("unknown", type(answer).__name__)
    return [
        OutcomeOut(
            outcome.posting_id,
            "refused" if outcome.refusal else "applied",
            outcome.refusal,
            outcome.available_minor,
            outcome.target_user_id,
        )
        for outcome in answer
    ]
