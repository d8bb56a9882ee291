"""The whole platform: six services on sockets of their own, reached through the gateway."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI

from api_gateway.app import create_app as create_gateway
from api_gateway.settings import GatewaySettings
from infrastructure.embedded import ports
from notification_service.app import create_app as create_notification_service
from notification_service.settings import NotificationSettings
from payment_gateway.app import create_app as create_payment_gateway
from payment_gateway.settings import PaymentSettings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import HOST, serving
from transaction_service.app import create_app as create_transaction_service
from transaction_service.settings import TransactionSettings
from user_service.app import create_app as create_user_service
from user_service.settings import UserSettings
from wallet_service.app import create_app as create_wallet_service
from wallet_service.settings import WalletSettings

UNHINDERED: Final = {"rate_limit_per_minute": 1_000_000, "rate_limit_login_per_minute": 1_000_000}


@dataclass(frozen=True)
class Platform:
    """Where everything is; `services` by the names that the gateway's settings have for their URLs."""

    gateway: str
    services: dict[str, str]
    sandbox: Sandbox

    def direct(self, service: str) -> str:
        """The URL of a service by its name, around the gateway; empty for the gateway itself."""
        name = service.replace("-", "_")
        return self.services.get(f"{name}_url", "")

    @asynccontextmanager
    async def another_gateway(self, **settings: Any) -> AsyncIterator[str]:
        """One more gateway before the same services, with these settings; yields its URL."""
        async with serving(
            create_gateway(self.sandbox.settings(GatewaySettings, **self.services, **settings))
        ) as url:
            yield url


@asynccontextmanager
async def platform_on(
    sandbox: Sandbox, *, users: dict[str, Any] | None = None, gateway: dict[str, Any] | None = None, **common: Any
) -> AsyncIterator[Platform]:
    """All services on this sandbox for the length of the block.

    `common` settings are everybody's; `users` and `gateway` are those of user-service and of the gateway. The
    gateway's limits are on and far away, unless it is told others.
    """
    async with AsyncExitStack() as stack:

        async def serve(app: FastAPI) -> str:
            return await stack.enter_async_context(serving(app))

        def settings(kind: Any, **values: Any) -> Any:
            return sandbox.settings(kind, **common, **values)

        wallets_port = ports.choose([])  # the two call each other
        own = {"bcrypt_rounds": 4, "wallet_service_url": f"http://{HOST}:{wallets_port}"} | (users or {})
        user_service = await serve(create_user_service(settings(UserSettings, **own)))
        wallet_settings = settings(WalletSettings, user_service_url=user_service)
        wallets = await stack.enter_async_context(serving(create_wallet_service(wallet_settings), wallets_port))
        payments = await serve(create_payment_gateway(settings(PaymentSettings, user_service_url=user_service)))
        urls = {
            "user_service_url": user_service,
            "wallet_service_url": wallets,
            "payment_gateway_url": payments,
        }
        urls["transaction_service_url"] = await serve(
            create_transaction_service(settings(TransactionSettings, **urls))
        )
        urls["notification_service_url"] = await serve(create_notification_service(settings(NotificationSettings)))
        entrance = await serve(create_gateway(settings(GatewaySettings, **urls, **(UNHINDERED | (gateway or {})))))
        yield Platform(entrance, urls, sandbox)
