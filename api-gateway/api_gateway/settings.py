"""What api-gateway is told from outside."""

from typing import ClassVar

from pydantic import Field

from shared.settings import ServiceUrl, Settings


class GatewaySettings(Settings):
    """Read from the environment and the root `.env`."""

    service: ClassVar[str] = "api-gateway"

    forward_timeout_seconds: float = Field(default=10.0, gt=0, le=10)

    wallet_service_url: ServiceUrl = "http://localhost:8002"
    transaction_service_url: ServiceUrl = "http://localhost:8003"
    payment_gateway_url: ServiceUrl = "http://localhost:8004"
    notification_service_url: ServiceUrl = "http://localhost:8005"

    def service_urls(self) -> dict[str, str]:
        """The base URL of each service by its name.

        `localhost` becomes 127.0.0.1, where services listen: a resolver that names ::1 first would cost every new
        connection a refusal.
        """
        urls = {
            "user-service": self.user_service_url,
            "wallet-service": self.wallet_service_url,
            "transaction-service": self.transaction_service_url,
            "payment-gateway": self.payment_gateway_url,
            "notification-service": self.notification_service_url,
        }
        return {service: url.replace("//localhost", "//127.0.0.1", 1) for service, url in urls.items()}
