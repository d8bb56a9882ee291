"""What callers and the world are told about a transaction.

The answer to a create is stored with its idempotency key, so that a replay is the same to the byte.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from shared.errors import AppError
from shared.events import TransactionCompleted, TransactionEvent, TransactionFailed, TransactionPending
from shared.http.problems import MEDIA_TYPE, problem_body
from shared.http.wire import AmountOut, UtcTime, utc_text
from transaction_service.domain import CANCELLED, ORIGINAL_FAILED, Status, Transaction, Type

CREATE_PATH: Final = "/transactions/create"

# In the order in which people get to know them.
TransactionType = Literal["deposit", "withdrawal", "transfer", "payment", "refund", "payout_return", "dispute"]


class TransactionOut(BaseModel):
    """A transaction; `failure_code` says why it failed, `refunded_amount` how much of it has been given back."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    transaction_type: TransactionType
    status: Literal["pending", "completed", "failed"]
    amount: AmountOut
    currency: str
    fee: Annotated[AmountOut | None, Field(description="What the payee paid for receiving it; only they see it.")]
    refunded_amount: AmountOut
    from_wallet_id: UUID | None
    to_wallet_id: UUID | None
    original_transaction_id: Annotated[UUID | None, Field(description="What this one gives back.")]
    payment_method: str | None
    description: str | None
    metadata: dict[str, str]
    failure_code: str | None
    created_at: UtcTime
    completed_at: UtcTime | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer ready to be sent: `body` is JSON."""

    status: int
    body: str
    replayed: bool = False

    @property
    def media_type(self) -> str:
        """Problems have their own."""
        return "application/json" if self.status < 400 else MEDIA_TYPE

    @property
    def final(self) -> bool:
        """Whether it stands for the request for ever; a wrong currency or wallet may be corrected under its key."""
        return self.status in {201, 402}


_encode: Final = msgspec.json.Encoder().encode

_REFUSALS: Final = {
    CANCELLED: (402, "It was cancelled."),
    ORIGINAL_FAILED: (402, "What it would undo has failed."),
    "same_wallet": (422, "A wallet cannot pay itself."),
    "not_a_merchant": (422, "The wallet is not a merchant's."),
    "wallet_not_found": (404, "There is no such wallet."),
    "currency_mismatch": (422, "The wallet is in another currency."),
    "wallet_frozen": (402, "The wallet is frozen."),
    "wallet_closed": (402, "The wallet is closed."),
    "insufficient_funds": (402, "There is not enough money in the wallet."),
    "balance_limit": (402, "No account may hold that much."),
}


def transaction_out(transaction: Transaction, viewer_id: UUID | None = None) -> TransactionOut:
    """The transaction as the person with this id sees it, or anybody who is not its payee."""
    return TransactionOut.model_validate(_members(transaction, viewer_id))


def _members(transaction: Transaction, viewer_id: UUID | None) -> dict[str, Any]:
    """What `TransactionOut` has, in its order: encoded as it is it is the same to the byte."""
    sees_fee = transaction.type is Type.PAYMENT and viewer_id is not None and viewer_id == transaction.payee_user_id
    return {
        "id": transaction.id,
        "transaction_type": transaction.type,
        "status": transaction.status,
        "amount": str(transaction.amount),
        "currency": transaction.amount.currency,
        "fee": str(transaction.fee) if sees_fee else None,
        "refunded_amount": str(transaction.refunded),
        "from_wallet_id": transaction.from_wallet_id,
        "to_wallet_id": transaction.to_wallet_id,
        "original_transaction_id": transaction.original_id,
        "payment_method": transaction.payment_method,
        "description": transaction.description,
        "metadata": transaction.metadata,
        "failure_code": transaction.failure_code,
        "created_at": utc_text(transaction.created_at),
        "completed_at": utc_text(transaction.completed_at) if transaction.completed_at else None,
    }


def answer(transaction: Transaction) -> Answer:
    """The answer to whoever asked for this transaction: 201 done, 202 waiting, otherwise why it was refused."""
    if transaction.failure_code is None:
        status = 201 if transaction.status is Status.COMPLETED else 202
        return Answer(status, _encode(_members(transaction, None)).decode())
    refusal = refusal_of(transaction)
    request_id = transaction.trace.request_id if transaction.trace else None
    return Answer(refusal.status, problem_body(refusal, _path(transaction), request_id).decode())


def refusal_of(transaction: Transaction) -> AppError:
    """Why a failed transaction was refused, by the ledger or by the provider."""
    code = str(transaction.failure_code)
    declined = transaction.declined and code != CANCELLED
    status, detail = (402, "The payment method was declined.") if declined else _REFUSALS[code]
    details: dict[str, Any] = {"transaction_id": str(transaction.id)}
    if transaction.available is not None:
        details |= {
            "available": str(transaction.available),
            "required": str(transaction.amount),
            "currency": transaction.amount.currency,
        }
    return AppError(code, status, detail, **details)


def event_of(transaction: Transaction) -> tuple[type[TransactionEvent], dict[str, object]]:
    """What is told of the transaction as it is now: the kind of event, and what that kind has."""
    common: dict[str, object] = {
        "transaction_id": transaction.id,
        "transaction_type": transaction.type.value,
        "user_id": transaction.user_id,
        "payee_user_id": transaction.payee_user_id,
        "from_wallet_id": transaction.from_wallet_id,
        "to_wallet_id": transaction.to_wallet_id,
        "original_transaction_id": transaction.original_id,
        "amount_minor": transaction.amount.minor,
        "fee_minor": transaction.fee.minor,
        "currency": transaction.amount.currency,
    }
    if transaction.status is Status.FAILED:
        return TransactionFailed, common | {"failure_code": transaction.failure_code}
    return TransactionCompleted if transaction.status is Status.COMPLETED else TransactionPending, common


def _path(transaction: Transaction) -> str:
    """Where the transaction was asked for."""
    if transaction.type is Type.REFUND:
        return f"/transactions/{transaction.original_id}/refund"
    return CREATE_PATH
