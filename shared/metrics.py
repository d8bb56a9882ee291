"""Prometheus metrics, a registry of its own for each service."""

from dataclasses import dataclass
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

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Count one answered request under its route's template, so that ids never become labels."""
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class OutboxMetrics:
    """What waits in a service's outbox and what has left it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.depth = Gauge("outbox_depth", "Events not yet published and audited.", registry=registry)
        self.published = Counter("outbox_published", "Events acknowledged by Kafka.", registry=registry)
        self.audited = Counter("outbox_audited", "Events written to the audit.", registry=registry)
        self.failures = Counter("outbox_failures", "Batches that a sink refused.", ["sink"], registry=registry)


@dataclass(frozen=True, slots=True)
class KindMetrics:
    """How the cache of one kind does."""

    hits: Counter
    misses: Counter
    errors: Counter
    evicted: Gauge


class CacheMetrics:
    """What the caches of a service answered themselves, what they had to ask the database for, and how Redis does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._hits = Counter("cache_hits", "Values found in Redis.", ["kind"], registry=registry)
        self._misses = Counter("cache_misses", "Values read from the database.", ["kind"], registry=registry)
        self._errors = Counter("cache_errors", "Calls that Redis did not answer.", ["kind"], registry=registry)
        self._evicted = Gauge(
            "redis_evicted_keys", "Keys that Redis had no room for since its start, of all users.", registry=registry
        )

    def of(self, kind: str) -> KindMetrics:
        """The metrics of one kind of value."""
        return KindMetrics(
            self._hits.labels(kind), self._misses.labels(kind), self._errors.labels(kind), self._evicted
        )


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def metrics_response(registry: CollectorRegistry) -> Response:
    """The registry in Prometheus' text format."""
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
