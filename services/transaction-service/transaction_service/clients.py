"""Calls to wallet-service and payment-gateway. An answer that does not come is None: unknown, never a no."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.http.client import ServiceCallError, ServiceClient
from transaction_service.domain import Transaction, Type

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerOutcome:
    """What wallet-service says: applied, or refused with a code."""

    code: str | None
    available_minor: int | None
    payee_user_id: UUID | None


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """What payment-gateway says of a charge or refund; `status` is pending, succeeded or declined."""

    kind: str
    status: str
    provider: str
    code: str | None


class WalletClient:
    """The ledger's side of a transaction."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def check(self, deposits: Sequence[Transaction]) -> dict[UUID, LedgerOutcome]:
        """Have the ledger refuse for good, before outside money moves, what breaks a rule of owner or status."""
        return await self._call("/internal/postings/check", deposits, {})

    async def post(
        self, transactions: Sequence[Transaction], providers: Mapping[UUID, str]
    ) -> dict[UUID, LedgerOutcome]:
        """Move the money of each transaction, once; `providers` says where that of a deposit comes from."""
        return await self._call("/internal/postings", transactions, providers)

    async def _call(
        self, path: str, transactions: Sequence[Transaction], providers: Mapping[UUID, str]
    ) -> dict[UUID, LedgerOutcome]:
        if not transactions:
            return {}
        postings = [_posting(transaction, providers.get(transaction.id, "any")) for transaction in transactions]
        try:
            answer = await self._client.post(path, {"postings": postings})
        except ServiceCallError as error:
            _log.warning("ledger outcome unknown for %s transactions: %s", len(postings), error)
            return {}
        return {
            UUID(outcome["id"]): LedgerOutcome(
                outcome["code"], outcome["available_minor"], _uuid(outcome["target_user_id"])
            )
            for outcome in answer["outcomes"]
        }


class PaymentClient:
    """The providers' side of a deposit."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def charge(self, transactions: Sequence[Transaction]) -> dict[UUID, OrderOutcome]:
        """Charge each deposit's payment method, once."""
        return await self._order("charge", transactions)

    async def refund(self, transactions: Sequence[Transaction]) -> dict[UUID, OrderOutcome]:
        """Give each deposit's charge back, once; the answer is the charge where it took nothing."""
        return await self._order("refund", transactions)

    async def _order(self, kind: str, transactions: Sequence[Transaction]) -> dict[UUID, OrderOutcome]:
        if not transactions:
            return {}
        orders = [
            {
                "transaction_id": str(transaction.id),
                "kind": kind,
                "user_id": str(transaction.user_id),
                "method": transaction.payment_method,
                "amount_minor": transaction.amount.minor,
                "currency": transaction.amount.currency,
            }
            for transaction in transactions
        ]
        try:
            answer = await self._client.post("/internal/orders", {"orders": orders})
        except ServiceCallError as error:
            _log.warning("%s outcome unknown for %s transactions: %s", kind, len(orders), error)
            return {}
        return {
            UUID(outcome["transaction_id"]): OrderOutcome(
                outcome["kind"], outcome["status"], outcome["provider"], outcome["code"]
            )
            for outcome in answer["outcomes"]
        }


def _posting(transaction: Transaction, provider: str) -> dict[str, Any]:
    currency = transaction.amount.currency
    if transaction.type is Type.DEPOSIT:
        source = f"external:{provider}:{currency}"
    else:
        source = str(transaction.from_wallet_id)
    return {
        "id": str(transaction.id),
        "user_id": str(transaction.user_id),
        "source": source,
        "target": str(transaction.to_wallet_id),
        "amount_minor": transaction.amount.minor,
        "currency": currency,
    }


def _uuid(text: str | None) -> UUID | None:
    return UUID(text) if text else None
