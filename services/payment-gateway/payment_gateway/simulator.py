"""The sandbox: providers that answer as Stripe's and PayPal's test modes do.

An answer follows from the order, its idempotency key and its age alone, so asking again under the same key gives the
same one, whatever crashed in between, as with the real providers. What is old enough has moved on.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from payment_gateway.domain import CANCELLED, Answer, Kind, Order, Reversal, Status

# Stripe's own names of test payment methods, where nothing else is said: https://docs.stripe.com/testing
_DECLINES: Final = {
    "pm_card_chargeDeclined": "card_declined",
    "pm_card_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_chargeDeclinedExpiredCard": "expired_card",
    "pm_card_chargeDeclinedIncorrectCvc": "incorrect_cvc",
    "pm_card_chargeDeclinedProcessingError": "processing_error",
}

_DELAYED_DECLINES: Final = {
    "pm_usBankAccount_noAccount": "no_account",
    "pm_usBankAccount_accountClosed": "account_closed",
}
_NEVER_SETTLED: Final = "pm_usBankAccount_processing"
_DELAYED: Final = {"pm_usBankAccount_success", _NEVER_SETTLED, *_DELAYED_DECLINES}

_DISPUTED: Final = "pm_card_createDispute"
_RETURNED: Final = "pm_usBankAccount_payoutReturned"  # our own name: Stripe has no method for this
_REVERSALS: Final = {(Kind.CHARGE, _DISPUTED): Reversal.DISPUTED, (Kind.PAYOUT, _RETURNED): Reversal.RETURNED}

_ACCEPTED: Final = {
    "credit_card",
    "debit_card",
    "paypal",
    "bank_account",
    "pm_card_visa",
    "pm_card_mastercard",
    _DISPUTED,
    _RETURNED,
}

_PREFIXES: Final = {Kind.CHARGE: "ch_sim_", Kind.REFUND: "re_sim_", Kind.PAYOUT: "po_sim_"}


@dataclass(frozen=True, slots=True)
class SandboxProvider:
    """Executes orders under idempotency keys.

    Bank accounts settle after `settle_seconds`; what comes back does so after `reversal_seconds`.
    """

    settle_seconds: float
    reversal_seconds: float

    async def execute(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        """What the provider knows of an operation that was first asked for `age_seconds` ago."""
        succeeded = Answer(Status.SUCCEEDED, reference=_reference(order, idempotency_key))
        if order.kind is Kind.REFUND:
            return succeeded
        if order.method in _DELAYED:
            if order.method == _NEVER_SETTLED or age_seconds < self.settle_seconds:
                return Answer(Status.PENDING)
            code = _DELAYED_DECLINES.get(order.method)
            return Answer(Status.DECLINED, decline_code=code) if code else succeeded
        if order.method not in _ACCEPTED:
            return Answer(Status.DECLINED, decline_code=_DECLINES.get(order.method, "payment_method_unknown"))
        reversal = _REVERSALS.get((order.kind, order.method))
        if reversal is None:
            return succeeded
        return replace(
            succeeded, reversible=True, reversal=reversal if age_seconds >= self.reversal_seconds else None
        )

    async def cancel(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        """As `execute`, but what would be pending is cancelled. Cards are charged at once: there it is too late."""
        answer = await self.execute(order, idempotency_key, age_seconds)
        return Answer(Status.DECLINED, decline_code=CANCELLED) if answer.status is Status.PENDING else answer


def _reference(order: Order, idempotency_key: str) -> str:
    return _PREFIXES[order.kind] + hashlib.sha256(idempotency_key.encode()).hexdigest()[:24]
