"""Composition root of api-gateway."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from api_gateway.addresses import ClientAddresses
from api_gateway.admission import Admission
from api_gateway.api import documentation_router, health_router
from api_gateway.breaker import breakers
from api_gateway.browsers import cors, security_headers
from api_gateway.creations import SERVICE as TRANSACTION_SERVICE
from api_gateway.creations import Creations
from api_gateway.health import Health
from api_gateway.limits import RateLimiter
from api_gateway.openapi import TITLE, ApiDocument
from api_gateway.pool import Pool
from api_gateway.proxy import MAX_CONNECTIONS_PER_SERVICE, Forwarder
from api_gateway.settings import GatewaySettings
from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.http.app import create_api
from shared.logs import configure_logging
from shared.redis import connect
from shared.settings import load

QUESTIONS_PER_SERVICE: Final = 4


def create_app(settings: GatewaySettings | None = None) -> FastAPI:
    """api-gateway, ready to be served."""
    settings = settings or load(GatewaySettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    urls = settings.service_urls()
    forwarding = Pool(urls, MAX_CONNECTIONS_PER_SERVICE)
    asking = Pool(urls, QUESTIONS_PER_SERVICE)
    lines = breakers(urls, registry)
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    creations = Creations(forwarding, lines[TRANSACTION_SERVICE], service_tokens)
    callers = authenticator_of(settings, registry)
    redis = connect(settings)
    limiter = RateLimiter(redis, settings.redis_key_prefix, registry)
    addresses = ClientAddresses(settings.trusted_proxy_cidrs, settings.rate_limit_exempt_cidrs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with following(callers):
                yield
        finally:
            await creations.close()
            await limiter.close()
            await redis.aclose()
            forwarding.close()
            asking.close()

    def forwarding_what_is_theirs(app: ASGIApp) -> ASGIApp:
        return Forwarder(
            app,
            pool=forwarding,
            creations=creations,
            breakers=lines,
            admission=Admission(limiter, addresses, settings),
            addresses=addresses,
            callers=callers,
            service_tokens=service_tokens,
            timeout_seconds=settings.forward_timeout_seconds,
        )

    app = create_api(
        title=TITLE,
        description="The gateway's own operations.",
        version="0.1.0",
        registry=registry,
        health=health_router(Health(asking)),
        lifespan=lifespan,
        trust_deadline=False,
        own_document=False,
        headers=security_headers(settings.environment),
        inner=forwarding_what_is_theirs,
        outer=cors(settings.cors_allowed_origins),
    )
    app.include_router(documentation_router(ApiDocument(asking, app.openapi)))
    return app
