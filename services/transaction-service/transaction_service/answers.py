"""What a caller is told about a transaction.

The answer to a create is stored with its idempotency key, so that a replay is the same to the byte.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from shared.errors import AppError
from shared.http.problems import MEDIA_TYPE, problem_body
from shared.http.wire import AmountOut, UtcTime
from transaction_service.domain import Status, Transaction

CREATE_PATH: Final = "/transactions/create"


class TransactionOut(BaseModel):
    """A transaction; `failure_code` says why it failed."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    transaction_type: Literal["deposit", "transfer"]
    status: Literal["pending", "completed", "failed"]
    amount: AmountOut
    currency: str
    from_wallet_id: UUID | None
    to_wallet_id: UUID | None
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


_REFUSALS: Final = {
    "wallet_not_found": (404, "There is no such wallet."),
    "currency_mismatch": (422, "The wallet is in another currency."),
    "wallet_frozen": (402, "The wallet is frozen."),
    "wallet_closed": (402, "The wallet is closed."),
    "insufficient_funds": (402, "There is not enough money in the wallet."),
    "balance_limit": (402, "No account may hold that much."),
}


def transaction_out(transaction: Transaction) -> TransactionOut:
    """The transaction as people see it."""
    return TransactionOut.model_validate(
        {
            "id": transaction.id,
            "transaction_type": transaction.type,
            "status": transaction.status,
            "amount": str(transaction.amount),
            "currency": transaction.amount.currency,
            "from_wallet_id": transaction.from_wallet_id,
            "to_wallet_id": transaction.to_wallet_id,
            "payment_method": transaction.payment_method,
            "description": transaction.description,
            "metadata": transaction.metadata,
            "failure_code": transaction.failure_code,
            "created_at": transaction.created_at,
            "completed_at": transaction.completed_at,
        }
    )


def answer(transaction: Transaction) -> Answer:
    """The answer to the create of this transaction: 201 done, 202 waiting, otherwise why it was refused."""
    if transaction.failure_code is None:
        status = 201 if transaction.status is Status.COMPLETED else 202
        return Answer(status, transaction_out(transaction).model_dump_json())
    refusal = refusal_of(transaction)
    return Answer(refusal.status, problem_body(refusal, CREATE_PATH).decode())


def refusal_of(transaction: Transaction) -> AppError:
    """Why a failed transaction was refused, by the ledger or by the provider."""
    code = str(transaction.failure_code)
    status, detail = (402, "The payment method was declined.") if transaction.declined else _REFUSALS[code]
    details: dict[str, Any] = {"transaction_id": str(transaction.id)}
    if transaction.available is not None:
        details |= {
            "available": str(transaction.available),
            "required": str(transaction.amount),
            "currency": transaction.amount.currency,
        }
    return AppError(code, status, detail, **details)
