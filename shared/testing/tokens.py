"""Tokens and headers of people and services, signed as in development."""

from dataclasses import dataclass, field
from uuid import UUID

from shared.auth import ServiceTokens, UserTokens
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
