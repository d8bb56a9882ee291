"""Prometheus metrics, a registry of its own for each service."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

_LATENCY_BUCKETS_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class HttpMetrics(Collector):
    """Requests by route, method and status, and how long they took.

    Counted in plain numbers, since an observation of prometheus-client's own would be dearer than what it observes.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latencies: dict[tuple[str, str, int], list[float]] = {}  # how many by bucket, and their sum
        registry.register(self)

    def observe(self, scope: Any, status: int, seconds: float) -> None:
        """Count one answered request under its route's template, so that ids never become labels."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (method, getattr(scope.get("route"), "path", "unmatched"), status)
        latencies = self._latencies.get(key)
        if latencies is None:
            latencies = self._latencies[key] = [0.0] * (len(_LATENCY_BUCKETS_SECONDS) + 2)
        latencies[bisect_left(_LATENCY_BUCKETS_SECONDS, seconds)] += 1
        latencies[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """The figures in Prometheus' model."""
        requests = CounterMetricFamily("http_requests", "Requests answered.", labels=["method", "route", "status"])
        together: dict[tuple[str, str], list[float]] = {}
        for (method, route, status), latencies in self._latencies.items():
            requests.add_metric([method, route, str(status)], sum(latencies[:-1]))
            so_far = together.get((method, route), [0.0] * len(latencies))
            together[method, route] = [a + b for a, b in zip(so_far, latencies, strict=True)]
        yield requests
        seconds = HistogramMetricFamily(
            "http_request_seconds", "Time to the end of the answer.", labels=["method", "route"]
        )
        for (method, route), latencies in together.items():
            cumulative = accumulate(latencies[:-1])
            bounds = [*map(str, map(float, _LATENCY_BUCKETS_SECONDS)), "+Inf"]
            seconds.add_metric([method, route], list(zip(bounds, cumulative, strict=True)), latencies[-1])
        yield seconds


class OutboxMetrics:
    """What waits in a service's outbox and what has left it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.depth = Gauge("outbox_depth", "Events not yet published and audited.", registry=registry)
        self.published = Counter("outbox_published", "Events acknowledged by Kafka.", registry=registry)
        self.audited = Counter("outbox_audited", "Events written to the audit.", registry=registry)
        self.failures = Counter("outbox_failures", "Batches that a sink refused.", ["sink"], registry=registry)


class ConsumerMetrics:
    """What a service's consumer has handled, tried again and given up, and how far behind it is."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.handled = Counter(
            "consumer_handled", "Events handled, repeated ones included.", ["topic"], registry=registry
        )
        self.retries = Counter(
            "consumer_retries",
            "Attempts to be repeated, by what failed: an outage, or the event itself.",
            ["topic", "cause"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "consumer_dead_letters", "Messages moved to the dead letters.", ["topic", "reason"], registry=registry
        )
        self.lag = Gauge(
            "consumer_lag", "Messages that are not yet handled.", ["topic", "partition"], registry=registry
        )


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
