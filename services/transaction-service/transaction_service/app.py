"""Composition root of transaction-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.background import running
from shared.consumer import Consumer, each
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.http.client import ServiceClient
from shared.http.history import audit_router
from shared.logs import configure_logging
from shared.outbox import Relay, publishing
from shared.settings import load
from transaction_service.api import transactions_router
from transaction_service.bundles import bundles_route
from transaction_service.clients import PaymentClient, WalletClient
from transaction_service.domain import INSIDE, OUTSIDE
from transaction_service.journal import Journal
from transaction_service.service import NEWS, Transactions
from transaction_service.settings import TransactionSettings
from transaction_service.steps import Steps
from transaction_service.worker import forget, sweep

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: TransactionSettings | None = None) -> FastAPI:
    """transaction-service, ready to be served."""
    settings = settings or load(TransactionSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry, busy=lambda: journal.busy)
    authenticator = authenticator_of(settings, registry)
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    wallets = ServiceClient("wallet-service", settings.wallet_service_url, service_tokens)
    payments = ServiceClient("payment-gateway", settings.payment_gateway_url, service_tokens)
    ledger = WalletClient(wallets)
    journal = Journal(database, relay)
    transactions = Transactions(database, journal, Steps(ledger, PaymentClient(payments)), settings.payment_fee_bps)
    consumer = Consumer(settings, ["payments.events"], each(transactions.note), NEWS, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with (
            wallets,
            payments,
            publishing(settings, FOLDER, database, relay),
            following(authenticator),
        ):
            # A slow provider keeps a sweeper busy: what stays inside has one of its own.
            async with running(
                lambda: sweep(transactions, INSIDE),
                lambda: sweep(transactions, OUTSIDE),
                lambda: forget(journal),
                consumer.run,
            ):
                yield
            await transactions.drain()
            await ledger.close()
            await journal.finish()

    app = create_api(
        title="Transaction service",
        description="Deposits, withdrawals, transfers, payments and refunds, each carried out once.",
        version="0.1.0",
        registry=registry,
        health=health_router({"postgres": database.check} | relay.checks, essential=frozenset({"postgres"})),
        lifespan=lifespan,
        tokens=service_tokens,
        inner=bundles_route(transactions, authenticator, service_tokens),
    )
    app.include_router(audit_router("transactions", relay.audit, authenticator))
    app.include_router(transactions_router(transactions, authenticator))
    return app
