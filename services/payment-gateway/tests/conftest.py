"""payment-gateway on a real PostgreSQL."""

from collections.abc import AsyncIterator

import httpx
import pytest

from payment_gateway.app import create_app
from payment_gateway.settings import PaymentSettings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process


@pytest.fixture(scope="module")
async def client(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(sandbox.settings(PaymentSettings))) as client:
        yield client
