"""Who is told what about an event. Pure: no database, no clock, no network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from shared.money import Money


@dataclass(frozen=True, slots=True)
class Notice:
    """A message to one person."""

    user_id: UUID
    template: str
    text: str


def notices(event_type: str, data: dict[str, Any]) -> list[Notice]:
    """What to tell whom about an event; nothing about the types that concern nobody."""
    compose = _COMPOSERS.get(event_type)
    return compose(data) if compose else []


def _welcome(data: dict[str, Any]) -> list[Notice]:
    return [Notice(UUID(data["user_id"]), "welcome", f"Welcome, {data['first_name']}.")]


def _completed(data: dict[str, Any]) -> list[Notice]:
    amount, payer = _amount(data), UUID(data["user_id"])
    template, text = _DONE.get(_kind(data), ("money_sent", "You sent {amount}."))
    told = [Notice(payer, template, text.format(amount=amount))]
    if data["payee_user_id"] and UUID(data["payee_user_id"]) != payer:
        told.append(Notice(UUID(data["payee_user_id"]), "money_received", f"You received {amount}."))
    return told


def _failed(data: dict[str, Any]) -> list[Notice]:
    if data["failure_code"] == "cancelled":
        text = f"Your {data['transaction_type']} of {_amount(data)} was cancelled. No money has moved."
    else:
        text = f"Your {data['transaction_type']} of {_amount(data)} was refused. No money has moved."
    return [Notice(UUID(data["user_id"]), "failure", text)]


def _kind(data: dict[str, Any]) -> str:
    """The transaction's type; a refund without a wallet to go to is that of a deposit."""
    kind = str(data["transaction_type"])
    return "deposit_refund" if kind == "refund" and data["to_wallet_id"] is None else kind


_DONE: Final = {
    "deposit": ("deposit", "Your deposit of {amount} has arrived."),
    "withdrawal": ("withdrawal", "{amount} are on their way to you."),
    "deposit_refund": ("refund", "{amount} of your deposit are on their way back to you."),
    "payout_return": ("payout_return", "A withdrawal of {amount} came back and is in your wallet again."),
    "dispute": ("dispute", "A deposit of {amount} was disputed and taken back. Your wallet is frozen."),
}


def _amount(data: dict[str, Any]) -> str:
    money = Money(data["amount_minor"], data["currency"])
    return f"{money} {money.currency}"


_COMPOSERS: Final[dict[str, Callable[[dict[str, Any]], list[Notice]]]] = {
    "users.registered.v1": _welcome,
    "transactions.completed.v1": _completed,
    "transactions.failed.v1": _failed,
}

TOLD: Final = frozenset(_COMPOSERS)
"""The types of events that somebody is told about."""
