"""Composition root of wallet-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.consumer import Consumer, each
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.http.history import audit_router
from shared.logs import configure_logging
from shared.metrics import CacheMetrics
from shared.outbox import Relay, publishing
from shared.redis import connect
from shared.settings import load
from wallet_service.api import internal_router, postings_route, wallets_router
from wallet_service.events import ABOUT_PEOPLE
from wallet_service.service import Ledger, People, Wallets
from wallet_service.settings import WalletSettings
from wallet_service.states import WalletStates

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: WalletSettings | None = None) -> FastAPI:
    """wallet-service, ready to be served."""
    settings = settings or load(WalletSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry, busy=lambda: ledger.busy)
    authenticator = authenticator_of(settings, registry)
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    redis = connect(settings)
    states = WalletStates(database, redis, CacheMetrics(registry), settings.redis_key_prefix)
    ledger, wallets = Ledger(database, relay, states), Wallets(database, relay, states)
    people = People(database, relay, states)
    consumer = Consumer(settings, ["users.events"], each(people.note), ABOUT_PEOPLE, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with (
            publishing(settings, FOLDER, database, relay, consumer.run),
            following(authenticator),
            redis,
        ):
            yield
            await ledger.close()
            await states.close()

    app = create_api(
        title="Wallet service",
        description="Wallets in many currencies, and the double-entry ledger behind them.",
        version="0.1.0",
        registry=registry,
        health=health_router(
            {"postgres": database.check, "redis": states.check} | relay.checks, essential=frozenset({"postgres"})
        ),
        lifespan=lifespan,
        tokens=service_tokens,
        inner=postings_route(ledger, service_tokens),
    )
    app.include_router(audit_router("wallets", relay.audit, authenticator))
    app.include_router(wallets_router(wallets, authenticator))
    app.include_router(internal_router(wallets, service_tokens))
    return app
