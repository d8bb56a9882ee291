"""Tokens and headers of people and services, signed as in development."""

import base64
import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from shared.auth import ServiceTokens, UserTokens
from shared.http.address import FORWARDED_FOR_HEADER, GATEWAY, GATEWAY_TOKEN_HEADER
from shared.ids import new_id
from shared.settings import Settings


@dataclass(frozen=True)
class Person:
    """Somebody with a valid access token."""

    role: str = "user"
    id: UUID = field(default_factory=new_id)
    session_id: UUID = field(default_factory=new_id)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say who calls."""
        secret = Settings(_env_file=None).jwt_secret_key.get_secret_value()
        return {"Authorization": f"Bearer {UserTokens(secret).issue(self.id, self.role, self.session_id)}"}


def service_headers(caller: str, callee: str) -> dict[str, str]:
    """Headers of a call from one service to another."""
    secret = Settings(_env_file=None).service_secret_key.get_secret_value()
    return {"Authorization": f"Bearer {ServiceTokens(secret, caller).issue(callee)}"}


def by_gateway(address: str, service: str) -> dict[str, str]:
    """Headers of a request that the gateway forwards to the service for somebody at this address."""
    return {
        FORWARDED_FOR_HEADER: address,
        GATEWAY_TOKEN_HEADER: service_headers(GATEWAY, service)["Authorization"],
    }


def access_claims(user_id: UUID, session_id: UUID, **changes: Any) -> dict[str, Any]:
    """The claims of a good access token, with changes; `...` leaves a claim out."""
    now = int(time.time())
    good: dict[str, Any] = {
        "iss": "payment-system",
        "aud": "payment-system-api",
        "sub": str(user_id),
        "typ": "access",
        "iat": now,
        "exp": now + 900,
        "jti": str(new_id()),
        "role": "user",
        "sid": str(session_id),
    }
    return {name: value for name, value in (good | changes).items() if value is not ...}


def base64url(part: bytes) -> bytes:
    """A part of a token, as RFC 7515 writes it."""
    return base64.urlsafe_b64encode(part).rstrip(b"=")
