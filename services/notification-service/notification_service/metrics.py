"""What Prometheus is told of deliveries."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class DeliveryMetrics:
    """How attempts end, and how late they are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.attempts = Counter(
            "notification_attempts",
            "Attempts to deliver, by how they ended: sent, put_off, failed or skipped.",
            ["channel", "outcome"],
            registry=registry,
        )
        self.late = Gauge(
            "notification_late_seconds",
            "How long the notification that was taken last had been due.",
            ["channel"],
            registry=registry,
        )
