"""Which requests are forwarded, where to, and which of them need no access token."""

import re
from dataclasses import dataclass
from typing import Final

OWN: Final = "api-gateway"


@dataclass(frozen=True, slots=True)
class Route:
    """The paths under one first segment; `path` is how metrics call them."""

    service: str
    path: str


METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
PUBLIC: Final = frozenset({("POST", b"/users/register"), ("POST", b"/users/login"), ("POST", b"/users/refresh")})
STREAM: Final = b"/stream"  # how the paths of server-sent events end
CREATE: Final = ("POST", b"/transactions/create")

_ROUTES: Final = {
    segment.encode(): Route(service, f"/{segment}/*")
    for segment, service in {
        "users": "user-service",
        "wallets": "wallet-service",
        "transactions": "transaction-service",
        "payments": "payment-gateway",
        "notifications": "notification-service",
    }.items()
}
_OWN_PATH: Final = re.compile(
    rb"/|/health(?:/live|/ready)?|/openapi\.json|/docs(?:/assets/[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)?"
)
_FORWARDED_PATH: Final = re.compile(rb"/(%s)(?:/[A-Za-z0-9_-]+)*" % b"|".join(_ROUTES))


def find_route(raw_path: bytes) -> Route | None:
    """The route of a path as it came, undecoded; None for every path that is spelled in any unusual way."""
    match = _FORWARDED_PATH.fullmatch(raw_path)
    return _ROUTES[match[1]] if match else None


def is_own(raw_path: bytes) -> bool:
    """True for a path, as it came, that the gateway itself answers to the public."""
    return _OWN_PATH.fullmatch(raw_path) is not None


def owner_of(path: str) -> str:
    """The service that answers a path of an OpenAPI document; what is forwarded to nobody is the gateway's own."""
    route = _ROUTES.get(path.split("/")[1].encode())
    return route.service if route else OWN
