"""The whole platform: six services on sockets of their own, reached through the gateway."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx
import pytest

from api_gateway.app import create_app as create_gateway
from api_gateway.settings import GatewaySettings
from notification_service.app import create_app as create_notification_service
from notification_service.settings import NotificationSettings
from payment_gateway.app import create_app as create_payment_gateway
from payment_gateway.settings import PaymentSettings
from shared.testing.sandbox import Sandbox, sandbox_on
from shared.testing.servers import serving
from transaction_service.app import create_app as create_transaction_service
from transaction_service.settings import TransactionSettings
from user_service.app import create_app as create_user_service
from user_service.settings import UserSettings
from wallet_service.app import create_app as create_wallet_service
from wallet_service.settings import WalletSettings


@dataclass(frozen=True)
class Platform:
    """Where everything is."""

    gateway: str
    services: dict[str, str]
    sandbox: Sandbox


@pytest.fixture(scope="session")
async def platform(engines: dict[str, str]) -> AsyncIterator[Platform]:
    async with sandbox_on(engines) as sandbox, AsyncExitStack() as stack:
        settings = sandbox.settings
        users = await stack.enter_async_context(serving(create_user_service(settings(UserSettings, bcrypt_rounds=4))))
        wallets = await stack.enter_async_context(
            serving(create_wallet_service(settings(WalletSettings, user_service_url=users)))
        )
        payments = await stack.enter_async_context(
            serving(create_payment_gateway(settings(PaymentSettings, user_service_url=users)))
        )
        transactions = await stack.enter_async_context(
            serving(
                create_transaction_service(
                    settings(
                        TransactionSettings,
                        user_service_url=users,
                        wallet_service_url=wallets,
                        payment_gateway_url=payments,
                    )
                )
            )
        )
        notifications = await stack.enter_async_context(
            serving(create_notification_service(settings(NotificationSettings)))
        )
        urls = {
            "user_service_url": users,
            "wallet_service_url": wallets,
            "transaction_service_url": transactions,
            "payment_gateway_url": payments,
            "notification_service_url": notifications,
        }
        gateway = await stack.enter_async_context(serving(create_gateway(settings(GatewaySettings, **urls))))
        yield Platform(gateway, urls, sandbox)


@pytest.fixture(scope="session")
async def client(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=platform.gateway, timeout=30) as client:
        yield client
