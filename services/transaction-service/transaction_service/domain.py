"""Transactions, their states and what may become of them. Pure: no database, no clock, no network."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from shared.errors import AppError
from shared.money import Money


class Type(StrEnum):
    """What kinds of transaction there are."""

    DEPOSIT = "deposit"
    TRANSFER = "transfer"


class Status(StrEnum):
    """A status moves from pending to one of the others, once."""

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Command:
    """A caller's wish; `key` is their idempotency key."""

    type: Type
    user_id: UUID
    amount: Money
    from_wallet_id: UUID | None = None
    to_wallet_id: UUID | None = None
    payment_method: str | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    key: str | None = None

    def fingerprint(self) -> bytes:
        """SHA-256 of what is asked for, so that one key never stands for two wishes."""
        wish = [
            self.type,
            self.amount.minor,
            self.amount.currency,
            str(self.from_wallet_id),
            str(self.to_wallet_id),
            self.payment_method,
            self.description,
            sorted(self.metadata.items()),
        ]
        return hashlib.sha256(json.dumps(wish).encode()).digest()


@dataclass(frozen=True, slots=True)
class Transaction:
    """A wish on record and what has become of it so far."""

    id: UUID
    type: Type
    status: Status
    user_id: UUID
    amount: Money
    from_wallet_id: UUID | None
    to_wallet_id: UUID | None
    payment_method: str | None
    description: str | None
    metadata: dict[str, str]
    created_at: datetime
    completed_at: datetime | None = None
    payee_user_id: UUID | None = None
    failure_code: str | None = None
    available: Money | None = None
    declined: bool = False
    attempts: int = 0
    event_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """How a transaction ends; without a failure code it is completed.

    `declined` says that the code is the provider's word, not the ledger's.
    """

    transaction_id: UUID
    failure_code: str | None = None
    available_minor: int | None = None
    payee_user_id: UUID | None = None
    declined: bool = False

    @property
    def status(self) -> Status:
        """The final status."""
        return Status.FAILED if self.failure_code else Status.COMPLETED


# How the ledger's refusals are told to a caller. Somebody else's wallet looks like none.
_FAILURES: Final = {
    "wallet_not_found": "wallet_not_found",
    "not_owner": "wallet_not_found",
    "frozen": "wallet_frozen",
    "closed": "wallet_closed",
    "currency_mismatch": "currency_mismatch",
    "insufficient_funds": "insufficient_funds",
    "balance_limit": "balance_limit",
}


def failure_of_refusal(code: str) -> str:
    """The failure code of a transaction that the ledger refused with `code`."""
    return _FAILURES[code]


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
