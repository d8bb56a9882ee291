"""Looking again and again, for as long as the service runs."""

import asyncio
import logging
import time
from datetime import datetime, timedelta
from typing import Final

from ledger_reconciler.domain import LISTED, CannotCheckError, Pass, Scope, Watch
from ledger_reconciler.metrics import ReconcilerMetrics
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings

# Commits do not come in the order of their clocks: each pass looks back a minute beyond the one before it.
LOOK_BACK: Final = timedelta(seconds=60)

_log = logging.getLogger(__name__)


class Watchdog:
    """One full pass, then recent ones from the last one's time on, and a full one again when that is due.

    What it knows lives in memory: a new process begins with a full pass.
    """

    def __init__(self, reconciler: Reconciler, metrics: ReconcilerMetrics, settings: ReconcilerSettings) -> None:
        self._reconciler = reconciler
        self._metrics = metrics
        self._settings = settings
        self._watch = Watch()
        self._checkpoint: datetime | None = None
        self._full_due = 0.0
        self._trouble = ""

    async def run(self) -> None:
        """Look until cancelled, through any outage, and never more than half of the time."""
        while True:
            began = time.monotonic()
            await self.look()
            await asyncio.sleep(max(self._settings.reconcile_interval_seconds, time.monotonic() - began))

    async def look(self) -> None:
        """The pass that is due; what keeps it from being made is logged once."""
        full_due = self._checkpoint is None or time.monotonic() >= self._full_due
        scope = Scope.FULL if full_due else Scope.RECENT
        try:
            done = await self._pass(scope)
        except Exception as error:  # noqa: BLE001 - the watchdog outlives whatever it watches
            self._metrics.failures.labels(scope).inc()
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:
                _log.warning("nothing is checked: %s", error, exc_info=not isinstance(error, CannotCheckError))
            self._trouble = trouble
        else:
            self._trouble = ""
            self._tell(done)

    async def _pass(self, scope: Scope) -> Pass:
        if scope is Scope.RECENT and self._checkpoint is not None:
            done = await self._reconciler.recent(self._checkpoint - LOOK_BACK)
        else:
            done = await self._reconciler.full()
            self._full_due = time.monotonic() + self._settings.reconcile_full_interval_minutes * 60
        self._checkpoint = done.taken_at
        return done

    def _tell(self, done: Pass) -> None:
        new = self._watch.learn(done)
        for finding in new[:LISTED]:
            _log.error("finding: %s", finding)
        if len(new) > LISTED:
            _log.error("%d more findings: `make reconcile` lists them", len(new) - LISTED)
        self._metrics.record(done, self._watch)
