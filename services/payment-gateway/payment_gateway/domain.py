"""Provider operations and what is known of them. Pure: no database, no clock, no network."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import UUID

from shared.money import Money


class Kind(StrEnum):
    """What is asked of a provider."""

    CHARGE = "charge"
    REFUND = "refund"


VOIDED: Final = "voided"


class Status(StrEnum):
    """`pending` means unknown: the provider has not given a definite answer yet."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    DECLINED = "declined"


@dataclass(frozen=True, slots=True)
class Order:
    """An operation that a transaction needs, at most one of each kind; `method` is a payment method of the caller."""

    transaction_id: UUID
    kind: Kind
    user_id: UUID
    method: str
    amount: Money


def charge_of(order: Order) -> Order:
    """The charge that a refund gives back."""
    return replace(order, kind=Kind.CHARGE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said: its own reference, or why it declines."""

    status: Status
    reference: str | None = None
    decline_code: str | None = None


def provider_of(method: str) -> str:
    """The provider that handles this payment method."""
    return "paypal" if method == "paypal" else "stripe"
