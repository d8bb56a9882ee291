"""Composition root of user-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from shared.auth import UserTokens
from shared.authentication import authenticator_of, following
from shared.database import Database
from shared.http.app import create_api, health_router
from shared.logs import configure_logging
from shared.outbox import Relay, publishing
from shared.settings import load
from user_service.api import users_router
from user_service.passwords import Passwords
from user_service.service import Users
from user_service.settings import UserSettings

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: UserSettings | None = None) -> FastAPI:
    """user-service, ready to be served."""
    settings = settings or load(UserSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    relay = Relay(database, settings, registry)
    authenticator = authenticator_of(settings, registry)
    passwords = Passwords(settings.bcrypt_rounds)
    tokens = UserTokens(settings.jwt_secret_key.get_secret_value(), settings.access_token_expire_minutes * 60)
    users = Users(database, passwords, tokens, relay)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with publishing(settings, FOLDER, database, relay), following(authenticator):
            yield
        passwords.close()

    app = create_api(
        title="User service",
        description="Registration, login and profiles.",
        version="0.1.0",
        registry=registry,
        health=health_router({"postgres": database.check} | relay.checks, essential=frozenset({"postgres"})),
        lifespan=lifespan,
    )
    app.include_router(users_router(users, tokens, authenticator))
    return app
