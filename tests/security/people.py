"""People who meet on the platform, with what they own, and what must not change when one meddles with another."""

import base64
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import httpx

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from user_service.__main__ import run
from user_service.settings import UserSettings

PASSWORD: Final = "SecurePass123"

# Without what changes by itself: when something is looked at next, and whether a session's end was told.
_STATE: Final = {
    "users": "select * from users.users order by id",
    "sessions": "select (to_jsonb(s) - 'announced')::text from users.sessions s order by id",
    "wallets": "select * from wallets.accounts order by id",
    "entries": "select * from wallets.entries order by account_id, version",
    "holds": "select * from wallets.holds where account_id is not null order by id",
    "payments": "select (to_jsonb(p) - '{next_check_at,updated_at}'::text[])::text "
    "from payments.payments p where not user_id = any($1::uuid[]) order by id",
    "transactions": "select (to_jsonb(t) - '{attempts,next_attempt_at}'::text[])::text "
    "from transactions.transactions t where not user_id = any($1::uuid[]) order by id",
}

State = dict[str, list[Any]]


@dataclass(frozen=True)
class Actor:
    """Somebody who is signed in."""

    client: httpx.AsyncClient
    id: str
    email: str
    access: str
    refresh: str

    @property
    def headers(self) -> dict[str, str]:
        """Headers that say who calls."""
        return {"Authorization": f"Bearer {self.access}"}

    @property
    def session_id(self) -> str:
        """The session that the tokens belong to."""
        claims = self.access.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(claims + "=="))["sid"])

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """A request of theirs; with a body it is JSON."""
        return await self.client.request(method, path, json=body, headers=self.headers | headers)

    async def wallet(self, currency: str = "USD") -> str:
        """The id of a new wallet of theirs."""
        return _id(await self.call("POST", "/wallets/create", {"user_id": self.id, "currency": currency}))

    async def deposit(self, wallet_id: str, amount: str = "100.00", currency: str = "USD") -> str:
        """The id of a deposit that is done."""
        return _id(await self.try_to("deposit", amount, currency, to_wallet_id=wallet_id, payment_method="credit_card"))

    async def transfer(self, source: str, target: str, amount: str = "1.00") -> str:
        """The id of a transfer that is done."""
        return _id(await self.try_to("transfer", amount, from_wallet_id=source, to_wallet_id=target))

    async def try_to(self, kind: str, amount: Any, currency: str = "USD", **more: Any) -> httpx.Response:
        """Create a transaction."""
        body = {"transaction_type": kind, "amount": amount, "currency": currency} | more
        return await self.call("POST", "/transactions/create", body)


def _id(response: httpx.Response, status: int = 201) -> str:
    assert response.status_code == status, response.text
    return str(response.json()["id"])


def registration(**changes: Any) -> dict[str, Any]:
    """What somebody new sends to register."""
    return {
        "email": f"{secrets.token_hex(8)}@example.com",
        "password": PASSWORD,
        "first_name": "John",
        "last_name": "Doe",
        "phone": "+1234567890",
    } | changes


async def newcomer(client: httpx.AsyncClient, **changes: Any) -> Actor:
    """Register somebody and sign them in."""
    wanted = registration(**changes)
    response = await client.post("/users/register", json=wanted)
    assert response.status_code == 201, response.text
    return await signed_in(client, wanted["email"], wanted["password"])


async def signed_in(client: httpx.AsyncClient, email: str, password: str = PASSWORD) -> Actor:
    """Somebody's new session."""
    response = await client.post("/users/login", json={"email": email, "password": password})
    assert response.status_code == 200, response.text
    answer = response.json()
    return Actor(client, answer["user"]["id"], email, answer["access_token"], answer["refresh_token"])


async def new_admin(client: httpx.AsyncClient, sandbox: Sandbox) -> Actor:
    """An admin, who is made as `make create-admin` makes one: never by the API."""
    email = f"admin-{new_id()}@example.com"
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4)
    await run(settings, {"EMAIL": email, "PASSWORD": PASSWORD})
    return await signed_in(client, email)


class Books:
    """What is written in the databases, seen from outside of all services."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection

    async def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Rows of a query as the owner of everything."""
        return [tuple(row) for row in await self._connection.fetch(query, *arguments)]

    async def state(self, *but_of: Actor) -> State:
        """Money, people, sessions and transactions, to the byte; without the records of what some have asked for."""
        ids = [actor.id for actor in but_of]
        return {name: await self.sql(query, *([ids] if "$1" in query else [])) for name, query in _STATE.items()}


def without_ids(problem: httpx.Response) -> dict[str, Any]:
    """A problem document without what is different in every answer: the request, and the record of it."""
    body: dict[str, Any] = problem.json()
    return {name: value for name, value in body.items() if name not in {"instance", "request_id", "transaction_id"}}
