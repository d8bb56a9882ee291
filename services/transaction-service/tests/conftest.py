"""transaction-service beside the real wallet-service and payment-gateway."""

from collections.abc import AsyncIterator

import pytest

from payment_gateway.app import create_app as create_payment_gateway
from payment_gateway.settings import PaymentSettings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, Neighbour
from wallet_service.app import create_app as create_wallet_service
from wallet_service.settings import WalletSettings


@pytest.fixture(scope="module")
async def wallet_service(sandbox: Sandbox) -> AsyncIterator[Neighbour]:
    neighbour = Neighbour(lambda: create_wallet_service(sandbox.settings(WalletSettings)))
    await neighbour.start()
    yield neighbour
    await neighbour.stop()


@pytest.fixture(scope="module")
def provider_times() -> dict[str, float]:
    """Settings of the simulated providers; a module may have its own."""
    return {}


@pytest.fixture(scope="module")
async def payment_gateway(sandbox: Sandbox, provider_times: dict[str, float]) -> AsyncIterator[Neighbour]:
    neighbour = Neighbour(lambda: create_payment_gateway(sandbox.settings(PaymentSettings, **provider_times)))
    await neighbour.start()
    yield neighbour
    await neighbour.stop()


@pytest.fixture(scope="module")
async def bank(sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Bank]:
    settings = sandbox.settings(
        TransactionSettings, wallet_service_url=wallet_service.url, payment_gateway_url=payment_gateway.url
    )
    async with in_process(create_app(settings)) as client:
        bank = Bank(client, wallet_service.url, sandbox)
        yield bank
        await bank.assert_consistent()
