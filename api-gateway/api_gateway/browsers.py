"""What browsers are told: which pages may read the answers, and what must not be done with them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api_gateway.routes import METHODS

MAX_ORIGINS: Final = 100
PREFLIGHT_KEPT_SECONDS: Final = 600

_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_SENT: Final = ("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "X-Request-Id")
_READ: Final = (
    "Idempotent-Replayed",
    "Location",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "X-Request-Id",
)
_ALWAYS: Final = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
_OVER_TLS: Final = {"strict-transport-security": "max-age=63072000; includeSubDomains"}


def parse_origins(value: Any) -> Any:
    """Origins from a comma-separated setting; anything but a string is left as it is.

    Raises ValueError with a sentence that names the one that is wrong. There is no way to name all of them.
    """
    if not isinstance(value, str):
        return value
    origins = tuple(origin.strip() for origin in value.split(",") if origin.strip())
    if len(origins) > MAX_ORIGINS:
        raise ValueError(f"At most {MAX_ORIGINS} origins can be named.")
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no origin such as https://app.example.com (no path, no *).")
    return origins


def cors(origins: Sequence[str]) -> Callable[[ASGIApp], ASGIApp]:
    """Lets pages of these origins call the application, with a token in a header and never with cookies."""

    def wrap(app: ASGIApp) -> ASGIApp:
        if not origins:
            return app
        return CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=sorted(METHODS),
            allow_headers=_SENT,
            expose_headers=_READ,
            max_age=PREFLIGHT_KEPT_SECONDS,
        )

    return wrap


def security_headers(environment: str) -> dict[str, str]:
    """Of every answer; HTTPS is demanded where there is TLS in front of the gateway."""
    return _ALWAYS if environment == "development" else _ALWAYS | _OVER_TLS
