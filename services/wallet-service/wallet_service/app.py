"""Composition root of wallet-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.logs import configure_logging
from shared.outbox import Relay, publishing
from shared.settings import load
from wallet_service.api import internal_router, wallets_router
from wallet_service.service import Ledger, Wallets
from wallet_service.settings import WalletSettings

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: WalletSettings | None = None) -> FastAPI:
    """wallet-service, ready to be served."""
    settings = settings or load(WalletSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry, busy=lambda: ledger.busy)
    authenticator = authenticator_of(settings, registry)
    ledger = Ledger(database, relay)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with publishing(settings, FOLDER, database, relay), following(authenticator):
            yield
            await ledger.close()

    app = create_api(
        title="Wallet service",
        description="Wallets in many currencies, and the double-entry ledger behind them.",
        version="0.1.0",
        registry=registry,
        health=health_router({"postgres": database.check} | relay.checks, essential=frozenset({"postgres"})),
        lifespan=lifespan,
    )
    app.include_router(wallets_router(Wallets(database, relay), authenticator))
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    app.include_router(internal_router(ledger, service_tokens))
    return app
