"""Provider operations and what is known of them. Pure: no database, no clock, no network."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final
from uuid import UUID

from shared.money import Money


class Kind(StrEnum):
    """What is asked of a provider: take a person's money, give it back, or pay a person out."""

    CHARGE = "charge"
    REFUND = "refund"
    PAYOUT = "payout"


VOIDED: Final = "voided"  # given back before it was charged
CANCELLED: Final = "cancelled"


class Status(StrEnum):
    """`pending` means unknown: the provider has not given a definite answer yet."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    DECLINED = "declined"


class Reversal(StrEnum):
    """How the money of an operation that succeeded comes back: a charge is disputed, a payout is returned."""

    DISPUTED = "disputed"
    RETURNED = "returned"


@dataclass(frozen=True, slots=True)
class Order:
    """An operation that a transaction needs, at most one of each kind; `method` is a payment method of the caller.

    `original_id` is the transaction whose charge a refund gives back, None for its own. `cancel` asks that the
    operation does not happen any more.
    """

    transaction_id: UUID
    kind: Kind
    user_id: UUID
    method: str
    amount: Money
    original_id: UUID | None = None
    cancel: bool = False

    @property
    def charged_by(self) -> UUID:
        """The transaction whose charge the order is about."""
        return self.original_id or self.transaction_id

    @property
    def terms(self) -> tuple[Money, str, UUID | None]:
        """What has to be the same whenever the order is repeated."""
        return self.amount, self.method, self.original_id


def charge_of(refund: Order) -> Order:
    """The charge that a refund of the transaction's own charge gives back."""
    return replace(refund, kind=Kind.CHARGE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a provider said: its own reference, or why it declines, and whether the money has come back since."""

    status: Status
    reference: str | None = None
    decline_code: str | None = None
    reversal: Reversal | None = None
    reversible: bool = False

    @property
    def expects_more(self) -> bool:
        """Whether the provider has to be asked again to know how the operation ends."""
        return self.status is Status.PENDING or (self.reversible and self.reversal is None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an order; `payment_id` is None where not even that is known."""

    transaction_id: UUID
    kind: Kind
    payment_id: UUID | None
    provider: str
    status: Status
    code: str | None


def refund_refusal(refund: Order, charge: Order | None, *, disputed: bool, given_back_minor: int) -> str | None:
    """Why the charge, one that succeeded, cannot be given back, or None.

    `given_back_minor` is the sum of the charge's refunds with this one, without those that were declined.
    """
    if charge is None or (charge.user_id, charge.method, charge.amount.currency) != (
        refund.user_id,
        refund.method,
        refund.amount.currency,
    ):
        return "charge_not_found"
    if disputed:
        return "charge_disputed"
    return "refund_exceeds_charge" if given_back_minor > charge.amount.minor else None


PROVIDERS: Final = ("stripe", "paypal")


def provider_of(method: str) -> str:
    """The provider that handles this payment method."""
    return "paypal" if method == "paypal" else "stripe"
