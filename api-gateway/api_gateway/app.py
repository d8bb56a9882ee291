"""Composition root of api-gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware

from api_gateway.api import documentation_router, health_router
from api_gateway.health import Health
from api_gateway.openapi import TITLE, ApiDocument
from api_gateway.pool import Pool
from api_gateway.proxy import MAX_CONNECTIONS_PER_SERVICE, Forwarder
from api_gateway.settings import GatewaySettings
from shared.authentication import authenticator_of, following
from shared.http.app import create_api
from shared.logs import configure_logging
from shared.settings import load

QUESTIONS_PER_SERVICE: Final = 4


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """api-gateway, ready to be served."""
    settings = settings or load(GatewaySettings)
    configure_logging(settings.service, settings.log_level)
    urls = settings.service_urls()
    forwarding = Pool(urls, MAX_CONNECTIONS_PER_SERVICE)
    asking = Pool(urls, QUESTIONS_PER_SERVICE)
    registry = CollectorRegistry()
    authenticator = authenticator_of(settings, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await forwarding.open()
        await asking.open()
        try:
            async with following(authenticator):
                yield
        finally:
            await forwarding.close()
            await asking.close()

    app = create_api(
        title=TITLE,
        description="The gateway's own operations.",
        version="0.1.0",
        registry=registry,
        health=health_router(Health(asking)),
        lifespan=lifespan,
        trust_deadline=False,
        own_document=False,
    )
    app.include_router(documentation_router(ApiDocument(asking, app.openapi)))
    # The innermost middleware: within the edge's limits, before FastAPI's own routing.
    timeout = settings.forward_timeout_seconds
    app.user_middleware.append(
        Middleware(Forwarder, pool=forwarding, authenticator=authenticator, timeout_seconds=timeout)
    )
    return app
