"""Composition root of user-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.auth import ServiceTokens
from shared.background import running
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.http.client import ServiceClient
from shared.http.history import audit_router
from shared.logs import configure_logging
from shared.metrics import CacheMetrics
from shared.outbox import Relay, publishing
from shared.settings import load
from user_service.api import internal_router, users_router
from user_service.clients import WalletClient
from user_service.guesses import Guesses
from user_service.passwords import Passwords
from user_service.profiles import Profiles
from user_service.refresh_tokens import RefreshTokens
from user_service.service.accounts import Accounts
from user_service.service.administration import Administration
from user_service.service.credentials import Credentials
from user_service.service.people import Wakes
from user_service.service.sessions import Sessions
from user_service.session_cache import SessionCache
from user_service.settings import UserSettings
from user_service.worker import Announcer, forget

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: UserSettings | None = None) -> FastAPI:
    """user-service, ready to be served."""
    settings = settings or load(UserSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry)
    announcer = Announcer(database, settings, registry)
    wakes = Wakes(told=relay.wake, ended=announcer.wake)
    passwords = Passwords(settings.bcrypt_rounds)
    guesses = Guesses(settings)
    credentials = Credentials(passwords, guesses)
    cache = SessionCache(settings)
    profiles = Profiles(database, settings, CacheMetrics(registry))
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    wallets = ServiceClient("wallet-service", settings.wallet_service_url, service_tokens)
    access_tokens = settings.access_tokens()
    sessions = Sessions(
        database,
        credentials,
        access_tokens,
        RefreshTokens(settings.signing_secret()),
        cache,
        profiles,
        wakes,
        timedelta(days=settings.refresh_token_expire_days),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with (
                wallets,
                publishing(settings, FOLDER, database, relay),
                running(announcer.run, lambda: forget(database)),
            ):
                yield
        finally:
            passwords.close()
            for redis_user in (announcer, guesses, cache, profiles):
                await redis_user.close()

    app = create_api(
        title="User service",
        description="Registration, login, sessions and profiles.",
        version="0.1.0",
        registry=registry,
        health=health_router(
            {"postgres": database.check, "redis": announcer.check} | relay.checks, essential=frozenset({"postgres"})
        ),
        lifespan=lifespan,
        tokens=service_tokens,
    )
    app.include_router(audit_router("users", relay.audit, sessions))
    app.include_router(
        users_router(
            Accounts(database, credentials, WalletClient(wallets), profiles, wakes),
            sessions,
            Administration(database, profiles, wakes),
            expires_in=access_tokens.expire_seconds,
        )
    )
    app.include_router(internal_router(sessions, service_tokens))
    return app
