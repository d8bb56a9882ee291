"""Composition root of payment-gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from payment_gateway.api import internal_router, payments_router
from payment_gateway.domain import PROVIDERS
from payment_gateway.metrics import PaymentMetrics
from payment_gateway.service import Payments
from payment_gateway.settings import PaymentSettings
from payment_gateway.simulator import SandboxProvider
from payment_gateway.worker import follow_up
from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.http.history import audit_router
from shared.logs import configure_logging
from shared.outbox import Relay, publishing
from shared.settings import load

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: PaymentSettings | None = None) -> FastAPI:
    """payment-gateway, ready to be served."""
    settings = settings or load(PaymentSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry)
    authenticator = authenticator_of(settings, registry)
    provider = SandboxProvider(settings.sandbox_settle_seconds, settings.sandbox_reversal_seconds)
    payments = Payments(database, provider, relay, PaymentMetrics(registry))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with (
            publishing(
                settings, FOLDER, database, relay, *(partial(follow_up, payments, name) for name in PROVIDERS)
            ),
            following(authenticator),
        ):
            yield

    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    app = create_api(
        title="Payment gateway",
        description="Charges, refunds and payouts at external providers (simulated Stripe and PayPal).",
        version="0.1.0",
        registry=registry,
        health=health_router({"postgres": database.check} | relay.checks, essential=frozenset({"postgres"})),
        lifespan=lifespan,
        tokens=service_tokens,
    )
    app.include_router(audit_router("payments", relay.audit, authenticator))
    app.include_router(payments_router(payments, authenticator))
    app.include_router(internal_router(payments, service_tokens))
    return app
