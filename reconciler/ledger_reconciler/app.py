"""Composition root of the reconciler."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from ledger_reconciler.metrics import ReconcilerMetrics
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.worker import Watchdog
from shared.audit import AuditReader
from shared.background import running
from shared.http.app import create_api, health_router
from shared.logs import configure_logging
from shared.settings import load


def create_app(settings: ReconcilerSettings | None = None) -> FastAPI:
    """The reconciler, ready to be served."""
    settings = settings or load(ReconcilerSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    audit = AuditReader(settings)
    reconciler = Reconciler(settings, audit)
    watchdog = Watchdog(reconciler, ReconcilerMetrics(registry), settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with running(watchdog.run):
            yield
        audit.close()

    return create_api(
        title="Reconciler",
        description="Compares what the services have written, and says where it does not add up. It changes nothing.",
        version="0.1.0",
        registry=registry,
        health=health_router(
            {"postgres": reconciler.check_postgres, "mongodb": audit.check}, essential=frozenset({"postgres"})
        ),
        lifespan=lifespan,
    )
