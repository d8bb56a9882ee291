"""Transactions, their states and what may become of them. Pure: no database, no clock, no network."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from enum import StrEnum
from typing import Final
from uuid import UUID

from shared.errors import AppError, ForbiddenError
from shared.http.context import Trace
from shared.money import Money


class Type(StrEnum):
    """What kinds of transaction there are. The last two are made by what a provider tells."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"
    TRANSFER = "transfer"
    PAYMENT = "payment"
    REFUND = "refund"
    PAYOUT_RETURN = "payout_return"
    DISPUTE = "dispute"


class Status(StrEnum):
    """A status moves from pending to one of the others, once."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


CANCELLED: Final = "cancelled"  # the failure code of what was stopped at its owner's wish
ORIGINAL_FAILED: Final = "original_failed"  # that of a reversal of what never was

# Where a provider answers, carrying a transaction out may take long.
OUTSIDE: Final = frozenset({Type.DEPOSIT, Type.WITHDRAWAL, Type.REFUND})
INSIDE: Final = frozenset(Type) - OUTSIDE

_RECEIVED: Final = frozenset({Type.TRANSFER, Type.PAYMENT})
_CANCELLABLE: Final = frozenset({Type.DEPOSIT, Type.WITHDRAWAL})


@dataclass(frozen=True, slots=True)
class Command:
    """A caller's wish; `key` is their idempotency key.

    `amount` is None for a refund of all that is left; `original_id` is the transaction that a refund gives back.
    """

    type: Type
    user_id: UUID
    amount: Money | None
    from_wallet_id: UUID | None = None
    to_wallet_id: UUID | None = None
    payment_method: str | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    key: str | None = None
    fee_minor: int = 0
    original_id: UUID | None = None
    original_type: Type | None = None
    trace: Trace | None = None

    @property
    def operation(self) -> str:
        """What a key of the caller's stands for."""
        return "transactions.refund" if self.type is Type.REFUND else "transactions.create"

    def fingerprint(self) -> bytes:
        """SHA-256 of what is asked for, so that one key never stands for two wishes."""
        wish = [
            self.type,
            self.amount and [self.amount.minor, self.amount.currency],
            str(self.from_wallet_id),
            str(self.to_wallet_id),
            self.payment_method,
            self.description,
            sorted(self.metadata.items()),
            str(self.original_id),
        ]
        return hashlib.sha256(json.dumps(wish).encode()).digest()


@dataclass(slots=True)  # two are made for each transfer, and frozen ones take several times as long
class Transaction:
    """A wish on record and what has become of it so far.

    `refunded` is what has been given back of it, or is reserved for being given back. One that is not `keyed` surely
    came without an idempotency key.
    """

    id: UUID
    type: Type
    status: Status
    user_id: UUID
    amount: Money
    fee: Money
    refunded: Money
    from_wallet_id: UUID | None
    to_wallet_id: UUID | None
    payment_method: str | None
    description: str | None
    metadata: dict[str, str]
    created_at: datetime
    original_id: UUID | None = None
    original_type: Type | None = None
    provider: str | None = None
    completed_at: datetime | None = None
    payee_user_id: UUID | None = None
    failure_code: str | None = None
    available: Money | None = None
    declined: bool = False
    cancel_requested: bool = False
    attempts: int = 0
    event_sequence: int = 0
    trace: Trace | None = None
    keyed: bool = True

    @property
    def goes_out(self) -> bool:
        """Whether money leaves a wallet for outside, which is held until it has arrived there."""
        return self.type is Type.WITHDRAWAL or (self.type is Type.REFUND and self.original_type is Type.DEPOSIT)

    @property
    def comes_back(self) -> bool:
        """Whether a provider has undone what is completed here."""
        return self.type in {Type.PAYOUT_RETURN, Type.DISPUTE}

    @property
    def remaining(self) -> Money:
        """What may still be given back."""
        return self.amount - self.refunded

    def check_refundable(self, user_id: UUID) -> None:
        """Raises AppError unless this user has received it, or deposited it, and it is done."""
        if self.type not in _RECEIVED and self.type is not Type.DEPOSIT:
            raise NotRefundableError(f"A {self.type} cannot be refunded.")
        if user_id != (self.user_id if self.type is Type.DEPOSIT else self.payee_user_id):
            raise ForbiddenError("Only who has received it can give it back.")
        if self.status is not Status.COMPLETED:
            raise NotRefundableError("Only what is completed can be refunded.")

    def check_cancellable(self) -> None:
        """Raises AppError unless it waits for somebody outside."""
        if self.type not in _CANCELLABLE:
            raise NotCancellableError(f"A {self.type} cannot be cancelled.")
        if self.status is not Status.PENDING:
            raise NotCancellableError("It is done already.")


@dataclass(frozen=True, slots=True)
class Decision:
    """How a transaction ends; without a failure code it is completed.

    `declined` says that the code is the provider's word, not the ledger's.
    """

    transaction: Transaction
    failure_code: str | None = None
    available_minor: int | None = None
    payee_user_id: UUID | None = None
    declined: bool = False
    provider: str | None = None

    @property
    def status(self) -> Status:
        """The final status."""
        return Status.FAILED if self.failure_code else Status.COMPLETED


@dataclass(frozen=True, slots=True)
class Reversal:
    """What a provider says that it has undone: a payout that came back, a charge that was disputed."""

    type: Type
    original_id: UUID
    amount_minor: int
    provider: str


@dataclass(frozen=True, slots=True)
class Filters:
    """Which transactions to list; amounts in minor units of `currency`, times as they were created."""

    wallet_id: UUID | None = None
    type: Type | None = None
    status: Status | None = None
    currency: str | None = None
    min_minor: int | None = None
    max_minor: int | None = None
    created_from: datetime | None = None
    created_to: datetime | None = None


def fee_of(amount: Money, basis_points: int) -> Money:
    """`basis_points` hundredths of a per cent of the amount, rounded half-even to the minor unit."""
    exact = Decimal(amount.minor) * basis_points / 10_000
    return Money(int(exact.to_integral_value(ROUND_HALF_EVEN)), amount.currency)


def reserve(original: Transaction, amount: Money | None, reserved_minor: int) -> Money:
    """What a refund gives back: `amount`, or all that is left after the `reserved_minor` of the refunds before it.

    Raises RefundExceedsRemainingError.
    """
    left = Money(original.remaining.minor - reserved_minor, original.amount.currency)
    wanted = left if amount is None else amount
    if wanted > left or not wanted.minor:
        raise RefundExceedsRemainingError(left)
    return wanted


# How the ledger's refusals are told to a caller. Somebody else's wallet looks like none.
_FAILURES: Final = {
    "wallet_not_found": "wallet_not_found",
    "not_owner": "wallet_not_found",
    "frozen": "wallet_frozen",
    "closed": "wallet_closed",
    "currency_mismatch": "currency_mismatch",
    "insufficient_funds": "insufficient_funds",
    "balance_limit": "balance_limit",
    "not_merchant": "not_a_merchant",
    "same_wallet": "same_wallet",
    "hold_released": CANCELLED,
}


def failure_of_refusal(code: str) -> str | None:
    """The failure code of a transaction that the ledger refused with `code`; None for one that is not a no here."""
    return _FAILURES.get(code)


class IdempotencyKeyReusedError(AppError):
    """422: the key stands for another request."""

    def __init__(self) -> None:
        super().__init__("idempotency_key_reused", 422, "This Idempotency-Key was used for another request.")


class IdempotencyKeyInUseError(AppError):
    """409: the first request under this key is still being carried out."""

    def __init__(self) -> None:
        super().__init__(
            "idempotency_key_in_use",
            409,
            "A request with this Idempotency-Key is still being carried out.",
            headers={"Retry-After": "1"},
        )


class NotRefundableError(AppError):
    """409: this transaction, or this caller, cannot give it back."""

    def __init__(self, detail: str) -> None:
        super().__init__("transaction_not_refundable", 409, detail)


class RefundExceedsRemainingError(AppError):
    """409: more than is left to be given back."""

    def __init__(self, remaining: Money) -> None:
        super().__init__(
            "refund_exceeds_remaining",
            409,
            "There is not that much left to be refunded.",
            remaining=str(remaining),
            currency=remaining.currency,
        )


class NotCancellableError(AppError):
    """409: too late, or not a thing that can be stopped."""

    def __init__(self, detail: str) -> None:
        super().__init__("transaction_not_cancellable", 409, detail)
