"""The gateway before five stand-ins for services."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx
import pytest

from api_gateway.app import create_app
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Service, standing_in
from shared.testing.servers import in_process

SERVICES = ("user-service", "wallet-service", "transaction-service", "payment-gateway", "notification-service")


@pytest.fixture
async def services() -> AsyncIterator[dict[str, Service]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(standing_in()) for name in SERVICES}


@pytest.fixture
def settings(services: dict[str, Service]) -> GatewaySettings:
    urls = {f"{name.replace('-', '_')}_url": service.url for name, service in services.items()}
    return GatewaySettings.model_validate(urls)


@pytest.fixture
async def client(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(settings)) as client:
        yield client
