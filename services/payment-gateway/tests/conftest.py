"""payment-gateway on a real PostgreSQL, as two processes."""

from collections.abc import AsyncIterator
from typing import Final

import pytest

from payment_gateway.app import create_app
from payment_gateway.settings import PaymentSettings
from payment_gateway.testing import Gateway
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process

SETTLE_SECONDS: Final = 0.5
REVERSAL_SECONDS: Final = 0.5


@pytest.fixture(scope="module")
def settings(sandbox: Sandbox) -> PaymentSettings:
    return sandbox.settings(
        PaymentSettings, sandbox_settle_seconds=SETTLE_SECONDS, sandbox_reversal_seconds=REVERSAL_SECONDS
    )


@pytest.fixture(scope="module")
async def gateway(settings: PaymentSettings, sandbox: Sandbox) -> AsyncIterator[Gateway]:
    async with in_process(create_app(settings)) as client:
        yield Gateway(client, sandbox)


@pytest.fixture(scope="module")
async def twin(gateway: Gateway, settings: PaymentSettings, sandbox: Sandbox) -> AsyncIterator[Gateway]:
    async with in_process(create_app(settings)) as client:
        yield Gateway(client, sandbox)
