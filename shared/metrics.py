"""Prometheus metrics, a registry of its own for each service."""

from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

_LATENCY_BUCKETS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class HttpMetrics:
    """Requests by route, method and status, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_seconds",
            "Time to the end of the answer.",
            ["method", "route"],
            registry=registry,
            buckets=_LATENCY_BUCKETS_SECONDS,
        )
        self._series: dict[
            tuple[str, str, int], tuple[Counter, Histogram]
        ] = {}  # to find a series by its labels is slow

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Count one answered request under its route's template, so that ids never become labels."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        series = self._series.get((method, route, status))
        if series is None:
            series = self._requests.labels(method, route, str(status)), self._seconds.labels(method, route)
            self._series[method, route, status] = series
        requests, latency = series
        requests.inc()
        latency.observe(seconds)


class OutboxMetrics:
    """What waits in a service's outbox and what has left it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.depth = Gauge("outbox_depth", "Events not yet published and audited.", registry=registry)
        self.published = Counter("outbox_published", "Events acknowledged by Kafka.", registry=registry)
        self.audited = Counter("outbox_audited", "Events written to the audit.", registry=registry)
        self.failures = Counter("outbox_failures", "Batches that a sink refused.", ["sink"], registry=registry)


class SessionMetrics:
    """Whether the ends of sessions are known as they happen, and what user-service said where they are not."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fresh = Gauge("session_feed_fresh", "1 while no end of a session can be missing.", registry=registry)
        self.checks = Counter(
            "session_checks",
            "Sessions that user-service was asked about, by its answer; unanswered ones were let pass.",
            ["answer"],
            registry=registry,
        )


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def metrics_response(registry: CollectorRegistry) -> Response:
    """The registry in Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
