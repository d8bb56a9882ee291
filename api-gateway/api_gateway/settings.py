"""What api-gateway is told from outside."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from api_gateway.addresses import Network, parse_networks
from api_gateway.browsers import parse_origins
from api_gateway.route_limits import MAX_PER_MINUTE, RouteLimit, parse_route_limits
from shared.settings import ServiceUrl, Settings


def _nobody_in_particular(networks: tuple[Network, ...]) -> tuple[Network, ...]:
    if any(network.prefixlen == 0 for network in networks):
        raise ValueError("A network of all addresses would let everybody choose an address; name the proxies' own.")
    return networks


PerMinute = Annotated[int, Field(ge=0, le=MAX_PER_MINUTE)]
Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(parse_networks)]
Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_origins)]
RouteLimits = Annotated[tuple[RouteLimit, ...], NoDecode, BeforeValidator(parse_route_limits)]


class GatewaySettings(Settings):
    """Read from the environment and the root `.env`."""

    service: ClassVar[str] = "api-gateway"

    forward_timeout_seconds: float = Field(default=10.0, gt=0, le=10)

    rate_limit_per_minute: PerMinute = 100
    rate_limit_login_per_minute: PerMinute = 10
    rate_limit_user_per_minute: PerMinute = 0
    rate_limit_routes: RouteLimits = ()
    rate_limit_exempt_cidrs: Networks = ()
    trusted_proxy_cidrs: Annotated[Networks, AfterValidator(_nobody_in_particular)] = ()

    cors_allowed_origins: Origins = ()

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
