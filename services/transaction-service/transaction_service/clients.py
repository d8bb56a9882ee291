"""Calls to wallet-service and payment-gateway. An answer that does not come is None: unknown, never a no."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from shared.batching import Batcher
from shared.errors import AppError
from shared.http.client import ServiceCallError, ServiceClient, ServiceRefusedError
from shared.http.context import current_context
from transaction_service.domain import Transaction, Type

MAX_POSTINGS: Final = 256  # in one call to the ledger
MAX_CALLS: Final = 2  # to the ledger at a time: what arrives meanwhile is the next call

_log = logging.getLogger(__name__)


class Action(StrEnum):
    """What the ledger does for a transaction."""

    CHECK = "check"
    MOVE = "move"
    PAY = "pay"
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"
    RETURN = "return"
    DISPUTE = "dispute"


@dataclass(frozen=True, slots=True)
class LedgerOutcome:
    """What wallet-service says: applied, or refused with a code."""

    code: str | None
    available_minor: int | None
    payee_user_id: UUID | None


@dataclass(frozen=True, slots=True)
class OrderOutcome:
    """What payment-gateway says of an order; `status` is pending, succeeded or declined."""

    kind: str
    status: str
    provider: str
    code: str | None


class LedgerTroubleError(Exception):
    """The ledger has no outcome for a posting."""


class WalletClient:
    """The ledger's side of transactions: what is asked for while its last calls are under way goes as one call."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._batcher: Batcher[dict[str, Any], LedgerOutcome] = Batcher(
            self._send,
            max_size=MAX_POSTINGS,
            max_in_flight=MAX_CALLS,
            concerns_all=(ServiceCallError, OSError),
        )

    async def post(
        self, action: Action, transactions: Sequence[Transaction], providers: Mapping[UUID, str] | None = None
    ) -> dict[UUID, LedgerOutcome]:
        """Have the ledger do this for each transaction, once; those whose outcome is unknown are left out.

        `providers` says where outside money comes from or goes to.
        """
        postings = [_posting(action, t, (providers or {}).get(t.id, "any")) for t in transactions]
        try:
            outcomes = await self._batcher.submit(postings)
        except AppError as error:  # too many wait
            _log.warning("%s of %s transactions not sent: %s", action, len(postings), error.code)
            return {}
        found = {}
        for transaction, outcome in zip(transactions, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _log.warning("%s of transaction %s unknown: %s", action, transaction.id, outcome)
            else:
                found[transaction.id] = outcome
        return found

    async def close(self) -> None:
        """Finish the calls that were begun."""
        await self._batcher.close()

    async def _send(self, postings: Sequence[dict[str, Any]]) -> list[LedgerOutcome | Exception]:
        """A call that the ledger cannot read is sent again in halves; any other failure leaves all of it unknown."""
        try:
            answer = await self._client.post("/internal/postings", {"units": [[posting] for posting in postings]})
        except ServiceRefusedError as error:
            raise LedgerTroubleError(str(error)) from error
        return [_ledger_outcome(unit) for unit in answer["outcomes"]]


class PaymentClient:
    """The providers' side of transactions."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def execute(self, transactions: Sequence[Transaction]) -> dict[UUID, OrderOutcome]:
        """Charge, pay out or refund as the transactions want it, once each, or see to it that it does not happen."""
        return await self._order([_order(_KINDS[t.type], t) | {"cancel": t.cancel_requested} for t in transactions])

    async def undo(self, deposits: Sequence[Transaction]) -> dict[UUID, OrderOutcome]:
        """Give each deposit's charge back, once; the answer is the charge where it took nothing."""
        return await self._order([_order("refund", deposit) for deposit in deposits])

    async def _order(self, orders: Sequence[dict[str, Any]]) -> dict[UUID, OrderOutcome]:
        if not orders:
            return {}
        try:
            answer = await self._client.post("/internal/orders", {"orders": orders})
            return {
                UUID(outcome["transaction_id"]): OrderOutcome(
                    outcome["kind"], outcome["status"], outcome["provider"], outcome["code"]
                )
                for outcome in answer["outcomes"]
            }
        except ServiceRefusedError as error:
            if len(orders) == 1:
                _log.error("payment-gateway cannot read an order of transaction %s", orders[0]["transaction_id"])
                return {}
            _log.warning("%s orders are sent again in halves: %s", len(orders), error)
            half = len(orders) // 2
            return await self._order(orders[:half]) | await self._order(orders[half:])
        except (ServiceCallError, LookupError, TypeError, ValueError) as error:  # none, or not to what was asked
            _log.warning("outcome of %s orders unknown: %s: %s", len(orders), type(error).__name__, error)
            return {}


_KINDS: Final = {Type.DEPOSIT: "charge", Type.WITHDRAWAL: "payout", Type.REFUND: "refund"}


def _order(kind: str, transaction: Transaction) -> dict[str, Any]:
    return {
        "transaction_id": str(transaction.id),
        "kind": kind,
        "user_id": str(transaction.user_id),
        "method": transaction.payment_method,
        "amount_minor": transaction.amount.minor,
        "currency": transaction.amount.currency,
        "original_id": str(transaction.original_id) if transaction.original_id else None,
    }


def _posting(action: Action, transaction: Transaction, provider: str) -> dict[str, Any]:
    """What has no wallet on one side has a provider there."""
    currency = transaction.amount.currency
    outside = f"external:{provider}:{currency}"
    return {
        "id": str(transaction.id),
        "action": action,
        "user_id": str(transaction.user_id),
        "source": str(transaction.from_wallet_id or outside),
        "target": str(transaction.to_wallet_id or outside),
        "amount_minor": transaction.amount.minor,
        "fee_minor": transaction.fee.minor,
        "currency": currency,
        "trace": transaction.trace or current_context().trace,
    }


def _ledger_outcome(unit: Any) -> LedgerOutcome | Exception:
    if not isinstance(unit, list):
        return LedgerTroubleError(f"{unit['status']}: {unit['detail']}")
    [outcome] = unit
    if (outcome["status"] == "applied") != (outcome["code"] is None):
        return LedgerTroubleError(f"{outcome['status']} with the code {outcome['code']}")
    payee = outcome["target_user_id"]
    return LedgerOutcome(outcome["code"], outcome["available_minor"], UUID(payee) if payee else None)
