"""Use cases of the reconciler: looking at everything, and at what is new."""

import time
from datetime import datetime

from ledger_reconciler.checks import CHECKS
from ledger_reconciler.domain import Pass, Result, Scope
from ledger_reconciler.events import EventComparison
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.snapshot import connected, snapshot
from shared.audit import AuditReader


class Reconciler:
    """Reads what the services have written and says what does not add up."""

    def __init__(self, settings: ReconcilerSettings, audit: AuditReader) -> None:
        self._settings = settings
        self._audit = audit

    async def full(self) -> Pass:
        """Look at everything, as it is at one moment; raises CannotCheckError."""
        started = time.monotonic()
        with EventComparison(self._settings, self._audit) as events:
            async with snapshot(self._settings, Scope.FULL) as look:
                counts = await look.counts(None)
                results = [await look.run(check, counts, None) for check in CHECKS]
                await events.expect(look)
            # The snapshot has ended: it would keep the database from cleaning up while the audit is read.
            results.append(await events.compare())
        return _pass(Scope.FULL, look.taken_at, started, results)

    async def recent(self, since: datetime) -> Pass:
        """Look at what has come since; raises CannotCheckError."""
        started = time.monotonic()
        async with snapshot(self._settings, Scope.RECENT) as look:
            counts = await look.counts(since)
            results = [await look.run(check, counts, since) for check in CHECKS]
        return _pass(Scope.RECENT, look.taken_at, started, results)

    async def check_postgres(self) -> None:
        """Raises when the database cannot be read."""
        async with connected(self._settings, Scope.RECENT) as connection:
            await connection.fetchval("select 1")


def _pass(scope: Scope, taken_at: datetime, started: float, results: list[Result | None]) -> Pass:
    kept = [result for result in results if result is not None]
    kept.sort(key=lambda result: result.number)
    return Pass(scope, taken_at, time.monotonic() - started, tuple(kept))
