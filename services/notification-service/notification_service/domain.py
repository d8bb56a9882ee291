"""Who is told what about an event, and by which channel. Pure: no database, no clock, no network."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, UUID, uuid5

from shared.money import Money

MAX_FACT_LENGTH: Final = 120
LEAST_ATTEMPTS: Final = 3  # a row that waited long behind others is tried this often all the same


class Channel(StrEnum):
    """A way to a person."""

    EMAIL = "email"
    SMS = "sms"


class Kind(StrEnum):
    """What a notification is about: what preferences are kept for."""

    WELCOME = "welcome"
    NEW_DEVICE = "new_device"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - no password
    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    MONEY_SENT = "money_sent"
    MONEY_RECEIVED = "money_received"
    PAYMENT_RECEIVED = "payment_received"
    REFUND = "refund"
    FAILURE = "failure"
    PAYOUT_RETURN = "payout_return"
    DISPUTE = "dispute"


class State(StrEnum):
    """What became of a notification; it is `PENDING` until it is one of the others, for good."""

    PENDING = "pending"
    SENT = "sent"
    FAILED = "failed"
    SKIPPED = "skipped"


SECURITY: Final = frozenset({Kind.NEW_DEVICE, Kind.PASSWORD_CHANGED})
"""Kinds whose e-mail cannot be turned off: whoever has taken an account over would do so first."""

SMS_BY_DEFAULT: Final = SECURITY | {Kind.WITHDRAWAL}


class Preference(NamedTuple):
    """Which channels one kind takes."""

    email: bool
    sms: bool

    def wants(self, channel: Channel) -> bool:
        """Whether the channel is on."""
        return self.email if channel is Channel.EMAIL else self.sms


def default_preference(kind: Kind) -> Preference:
    """What counts where a person has said nothing."""
    return Preference(email=True, sms=kind in SMS_BY_DEFAULT)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell one person: `template` names the words, `facts` fill them and stand below them."""

    user_id: UUID
    kind: Kind
    template: str
    facts: dict[str, str]


class Contact(NamedTuple):
    """How a person is reached, from the event of theirs with this `sequence`; `phone` may be empty."""

    user_id: UUID
    email: str
    phone: str
    first_name: str
    last_name: str
    status: str
    sequence: int


class Decision(NamedTuple):
    """A channel that a notice goes by, or would go by had its person not turned it off (`SKIPPED`)."""

    channel: Channel
    state: State
    reason: str | None = None


def decide(kind: Kind, chosen: Preference | None) -> list[Decision]:
    """The channels of a notice; a channel that is off by default and was not asked for is no decision at all."""
    default = default_preference(kind)
    preference = chosen or default
    decisions = []
    for channel in Channel:
        if preference.wants(channel) or (channel is Channel.EMAIL and kind in SECURITY):
            decisions.append(Decision(channel, State.PENDING))
        elif default.wants(channel):
            decisions.append(Decision(channel, State.SKIPPED, "turned_off"))
    return decisions


def reason_to_skip(kind: Kind, channel: Channel, contact: Contact) -> str | None:
    """Why this person is not told after all.

    Who is disabled or has closed their account still hears by e-mail of their money and their security: it may have
    been somebody else who did it.
    """
    if contact.status != "active" and (channel is Channel.SMS or kind is Kind.WELCOME):
        return f"account_{contact.status}"
    if channel is Channel.SMS and not contact.phone:
        return "no_phone"
    return None


def message_token(event_id: UUID, user_id: UUID, channel: Channel) -> UUID:
    """The same for every repeat of one message, so that whoever gets it twice can tell."""
    return uuid5(NAMESPACE_URL, f"urn:payment-system:notification:{event_id}:{user_id}:{channel}")


def pause_seconds(attempts: int, first: float, longest: float, chance: float) -> float:
    """How long to wait after so many attempts: twice as long each time, at most `longest`, of which `chance` (0 to 1)
    decides the second half, so that what failed together is not tried together."""
    whole = min(first * 2.0 ** min(attempts - 1, 32), longest)
    return whole * (0.5 + chance / 2)


# ---------------------------------------------------------------------------------------- events


def notices(event_type: str, data: Mapping[str, Any]) -> list[Notice]:
    """What to tell whom about an event; nothing about the types that concern nobody."""
    compose = _COMPOSERS.get(event_type)
    return compose(data) if compose else []


def _welcome(data: Mapping[str, Any]) -> list[Notice]:
    return [Notice(UUID(data["user_id"]), Kind.WELCOME, "welcome", {})]


def _password_changed(data: Mapping[str, Any]) -> list[Notice]:
    return [Notice(UUID(data["user_id"]), Kind.PASSWORD_CHANGED, "password_changed", {})]


def _signed_in(data: Mapping[str, Any]) -> list[Notice]:
    if not data["new_device"]:
        return []
    facts = {"ip": plain(data["ip"]), "device": _device(data["user_agent"])}
    return [Notice(UUID(data["user_id"]), Kind.NEW_DEVICE, "new_device", facts)]


def _completed(data: Mapping[str, Any]) -> list[Notice]:
    owner_kind, owner_template, payee_kind, payee_template = _DONE[_type(data)]
    owner, facts = UUID(data["user_id"]), _facts(data)
    told = [Notice(owner, owner_kind, owner_template, facts)]
    payee = UUID(data["payee_user_id"]) if data["payee_user_id"] else None
    if payee is not None and payee != owner:
        told.append(Notice(payee, payee_kind, payee_template, facts | _after_fee(data)))
    return told


def _failed(data: Mapping[str, Any]) -> list[Notice]:
    template = "cancelled" if data["failure_code"] == "cancelled" else "failure"
    facts = _facts(data) | {"transaction": str(data["transaction_type"]).replace("_", " ")}
    return [Notice(UUID(data["user_id"]), Kind.FAILURE, template, facts)]


def _type(data: Mapping[str, Any]) -> str:
    """The transaction's type; a refund without a wallet to go to is that of a deposit."""
    kind = str(data["transaction_type"])
    return "deposit_refund" if kind == "refund" and data["to_wallet_id"] is None else kind


# Of each type: what its owner is told, and what its payee is, where that is somebody else.
_SENT: Final = (Kind.MONEY_SENT, "money_sent")
_RECEIVED: Final = (Kind.MONEY_RECEIVED, "money_received")
_DONE: Final = {
    "deposit": (Kind.DEPOSIT, "deposit", *_RECEIVED),
    "withdrawal": (Kind.WITHDRAWAL, "withdrawal", *_RECEIVED),
    "transfer": (*_SENT, *_RECEIVED),
    "payment": (*_SENT, Kind.PAYMENT_RECEIVED, "payment_received"),
    "refund": (Kind.REFUND, "refund_sent", Kind.REFUND, "refund_received"),
    "deposit_refund": (Kind.REFUND, "deposit_refund", *_RECEIVED),
    "payout_return": (Kind.PAYOUT_RETURN, "payout_return", *_RECEIVED),
    "dispute": (Kind.DISPUTE, "dispute", *_RECEIVED),
}


def _facts(data: Mapping[str, Any]) -> dict[str, str]:
    return {"amount": _amount(data["amount_minor"], data["currency"]), "transaction_id": str(data["transaction_id"])}


def _after_fee(data: Mapping[str, Any]) -> dict[str, str]:
    """What a payee who bears a fee is told of it."""
    fee = data["fee_minor"]
    if not fee:
        return {}
    currency = data["currency"]
    return {"fee": _amount(fee, currency), "net": _amount(data["amount_minor"] - fee, currency)}


def _amount(minor: int, currency: str) -> str:
    whole, point, fraction = str(Money(minor, currency)).partition(".")
    return f"{int(whole):,}{point}{fraction} {currency}"


# ------------------------------------------------------------------------------- strangers' words


def plain(text: str, limit: int = MAX_FACT_LENGTH) -> str:
    """Text from outside as one line without control characters, without marks that turn the reading direction of what
    follows, and not longer than `limit` characters. Joiners, which some scripts and emoji need, stay.

    Nor does it hold an encoded word (RFC 2047): Python's e-mail package decodes one in a name, line ends and all, and
    writes what comes out of it as headers.
    """
    kept = "".join(
        letter if letter in _JOINERS or unicodedata.category(letter)[0] != "C" else " "
        for letter in text[: 4 * limit].replace("=?", "= ?")
    ).split()
    line = " ".join(kept)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def speaks_of_a_place(text: str) -> bool:
    """Whether mail programs might make a link of it: strangers choose these words, and others read them as ours."""
    return any(sign in text for sign in ("/", "@", ":", "www.")) or any(
        before.isalnum() and after.isalnum()
        for before, dot, after in zip(text, text[1:], text[2:], strict=False)
        if dot in _DOTS
    )


_JOINERS: Final = "\u200c\u200d"
_DOTS: Final = ".。．｡"


def _device(user_agent: str) -> str:
    device = plain(user_agent)
    return device if device and not any(sign in device for sign in ("://", "www.", "@")) else "unknown"


_COMPOSERS: Final[dict[str, Callable[[Mapping[str, Any]], list[Notice]]]] = {
    "users.registered.v1": _welcome,
    "users.password_changed.v1": _password_changed,
    "users.signed_in.v1": _signed_in,
    "transactions.completed.v1": _completed,
    "transactions.failed.v1": _failed,
}

CONTACT_TYPES: Final = frozenset(
    {
        "users.registered.v1",
        "users.updated.v1",
        "users.password_changed.v1",
        "users.disabled.v1",
        "users.enabled.v1",
        "users.closed.v1",
    }
)
"""The types of events that say how somebody is reached."""

HANDLED: Final = frozenset(_COMPOSERS) | CONTACT_TYPES
"""The types of events that matter here."""
