"""People as tests play them: who they are, where they come from, and what they hold."""

import json
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import httpx

from shared.events import UserBefore
from shared.testing import tokens

PASSWORD: Final = "SecurePass123"  # noqa: S105 - of people who do not exist
HOME: Final = "203.0.113.7"
UNCHANGED: Final = dict.fromkeys(UserBefore.model_fields)


def by_gateway(address: str) -> dict[str, str]:
    """Headers of a request that the gateway forwards for somebody at this address."""
    return tokens.by_gateway(address, "user-service")


@dataclass(frozen=True)
class Session:
    """A sign-in as its owner has it."""

    client: httpx.AsyncClient
    user_id: str
    access: str
    refresh: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say who calls."""
        return {"Authorization": f"Bearer {self.access}"} | by_gateway(HOME)

    async def call(self, method: str, path: str, **body: Any) -> httpx.Response:
        """A request of the owner's; with fields it has a body."""
        if not body:
            return await self.client.request(method, path, headers=self.headers)
        return await self.client.request(method, path, json=body, headers=self.headers)

    async def is_alive(self) -> bool:
        """Whether its access token counts in user-service."""
        response = await self.call("GET", "/users/me")
        assert response.status_code in {200, 401}, response.text
        return response.status_code == 200

    async def try_refresh(self) -> httpx.Response:
        """Exchange the refresh token."""
        return await self.client.post("/users/refresh", json={"refresh_token": self.refresh})

    async def refreshed(self) -> "Session":
        """The session with its next tokens."""
        response = await self.try_refresh()
        assert response.status_code == 200, response.text
        tokens = response.json()
        return replace(self, access=tokens["access_token"], refresh=tokens["refresh_token"])


@dataclass(frozen=True)
class Somebody:
    """A registered person."""

    client: httpx.AsyncClient
    id: str
    email: str
    password: str = PASSWORD

    async def try_to_sign_in(
        self, password: str | None = None, address: str = HOME, agent: str = "tests/1.0"
    ) -> httpx.Response:
        """Log in from an address with a user agent."""
        body = {"email": self.email, "password": password or self.password}
        headers = by_gateway(address) | {"User-Agent": agent}
        return await self.client.post("/users/login", json=body, headers=headers)

    async def sign_in(self, address: str = HOME, agent: str = "tests/1.0") -> Session:
        """A new session."""
        response = await self.try_to_sign_in(None, address, agent)
        assert response.status_code == 200, response.text
        answer = response.json()
        return Session(self.client, self.id, answer["access_token"], answer["refresh_token"])


async def somebody(client: httpx.AsyncClient, name: str = "alice", **changes: Any) -> Somebody:
    """Register a person."""
    fields = {
        "email": f"{name}@example.com",
        "password": PASSWORD,
        "first_name": name.title(),
        "last_name": "Doe",
        "phone": "+1234567890",
    } | changes
    response = await client.post("/users/register", json=fields)
    assert response.status_code == 201, response.text
    return Somebody(client, response.json()["id"], fields["email"], fields["password"])


def event_of(row: Any) -> dict[str, Any]:
    """Type, sequence, actor and data of an event in an outbox row."""
    event = json.loads(row["payload"])
    assert UUID(event["subject"])
    return {name: event[name] for name in ("type", "sequence", "actor", "data")}
