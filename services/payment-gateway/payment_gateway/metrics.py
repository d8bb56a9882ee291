"""What payment-gateway tells Prometheus."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter

from payment_gateway.domain import PROVIDERS

_KINDS: Final = ("charge", "refund", "payout")


class PaymentMetrics:
    """Where a provider leaves us without an answer, and where only a person can find out."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.timeouts = Counter(
            "payments_provider_timeouts",
            "Calls that a provider did not answer in time.",
            ["provider"],
            registry=registry,
        )
        self.given_up = Counter(
            "payments_need_a_person",
            "Payments without an answer when their idempotency keys ended: never sent again. Alert on more than 0.",
            ["provider", "kind"],
            registry=registry,
        )
        for provider in PROVIDERS:
            self.timeouts.labels(provider)
            for kind in _KINDS:
                self.given_up.labels(provider, kind)
