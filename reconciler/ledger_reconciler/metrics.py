"""What the reconciler tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from ledger_reconciler.domain import Pass, Scope, Watch


class ReconcilerMetrics:
    """Findings by invariant, and that the looking itself goes on: a watchdog that is silent must not look content."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.findings = Gauge(
            "reconciler_findings",
            "Rows that break an invariant: by the last full pass, and found since.",
            ["invariant"],
            registry=registry,
        )
        self.checked = Gauge(
            "reconciler_checked",
            "1 when the last pass that should could check the invariant.",
            ["invariant"],
            registry=registry,
        )
        self.rows = Gauge(
            "reconciler_rows", "Rows that the last pass looked at.", ["invariant", "scope"], registry=registry
        )
        self.last_run = Gauge(
            "reconciler_last_run_timestamp_seconds",
            "When the last pass was complete, by the database's clock.",
            ["scope"],
            registry=registry,
        )
        self.seconds = Gauge("reconciler_pass_seconds", "How long the last pass took.", ["scope"], registry=registry)
        self.failures = Counter("reconciler_failures", "Passes that could not be made.", ["scope"], registry=registry)
        for scope in Scope:
            self.failures.labels(scope)

    def record(self, done: Pass, watch: Watch) -> None:
        """Take over what the pass has found."""
        for result in done.results:
            self.checked.labels(result.invariant).set(result.not_checked is None)
            self.rows.labels(result.invariant, done.scope).set(result.rows)
        for invariant, total in watch.totals.items():
            self.findings.labels(invariant).set(total)
        self.last_run.labels(done.scope).set(done.taken_at.timestamp() + done.seconds)
        self.seconds.labels(done.scope).set(done.seconds)
