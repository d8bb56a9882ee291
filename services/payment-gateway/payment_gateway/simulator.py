"""The sandbox: providers that answer as Stripe's and PayPal's test modes do.

An answer follows from the order alone, so asking again under the same idempotency key gives the same one, whatever
crashed in between, as with the real providers.
"""

import hashlib
from typing import Final

from payment_gateway.domain import Answer, Kind, Order, Status

# Stripe's own names of test payment methods: https://docs.stripe.com/testing
_DECLINES: Final = {
    "pm_card_chargeDeclined": "card_declined",
    "pm_card_chargeDeclinedInsufficientFunds": "insufficient_funds",
    "pm_card_chargeDeclinedExpiredCard": "expired_card",
    "pm_card_chargeDeclinedIncorrectCvc": "incorrect_cvc",
    "pm_card_chargeDeclinedProcessingError": "processing_error",
}

_ACCEPTED: Final = {"credit_card", "debit_card", "paypal", "bank_account", "pm_card_visa", "pm_card_mastercard"}

_PREFIXES: Final = {Kind.CHARGE: "ch_sim_", Kind.REFUND: "re_sim_"}


class SandboxProvider:
    """Executes an order under an idempotency key."""

    async def execute(self, order: Order, idempotency_key: str) -> Answer:
        """The provider's definite answer."""
        if order.kind is Kind.CHARGE and order.method in _DECLINES:
            return Answer(Status.DECLINED, decline_code=_DECLINES[order.method])
        if order.kind is Kind.CHARGE and order.method not in _ACCEPTED:
            return Answer(Status.DECLINED, decline_code="payment_method_unknown")
        digest = hashlib.sha256(idempotency_key.encode()).hexdigest()
        return Answer(Status.SUCCEEDED, reference=_PREFIXES[order.kind] + digest[:24])
