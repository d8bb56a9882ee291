"""People who meet on the platform, with what they own, and what must not change when one meddles with another."""

import base64
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import httpx
from redis.asyncio import Redis

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from tests.platform import Platform
from user_service.__main__ import run
from user_service.settings import UserSettings

PASSWORD: Final = "SecurePass123"

# Tables with their order, what changes in them by itself (when something is looked at next, whether a session's end
# was told), and which rows count: some are left out that somebody may make by asking.
_TABLES: Final = {
    "users.users": ("id", "", ""),
    "users.sessions": ("id", "announced", ""),
    "wallets.accounts": ("id", "", ""),
    "wallets.entries": ("account_id, version", "", ""),
    "wallets.holds": ("id", "", "where account_id is not null"),
    "payments.payments": ("id", "next_check_at,updated_at", "where not user_id = any($1::uuid[])"),
    "notifications.preferences": ("user_id, kind", "", "where not user_id = any($1::uuid[])"),
    "transactions.transactions": ("id", "attempts,next_attempt_at", "where not user_id = any($1::uuid[])"),
}
_STATE: Final = " union all ".join(
    f"select '{table}', count(*), "
    f"md5(string_agg((to_jsonb(t) - '{{{changing}}}'::text[])::text, '' order by {order})) from {table} t {where}"
    for table, (order, changing, where) in _TABLES.items()
)

State = list[tuple[Any, ...]]


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
        return _id(
            await self.try_to("deposit", amount, currency, to_wallet_id=wallet_id, payment_method="credit_card")
        )

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
        """How many rows there are of money, people, sessions and transactions, and a digest of their every byte.

        The records of what some have asked for are left out.
        """
        return await self.sql(_STATE, [actor.id for actor in but_of])


async def forget_guesses(platform: Platform, redis: Redis) -> None:
    """Nobody has given a wrong password any more."""
    pattern = f"{platform.sandbox.environment['REDIS_KEY_PREFIX']}guesses:*"
    await redis.eval("for _, key in ipairs(redis.call('keys', ARGV[1])) do redis.call('del', key) end", 0, pattern)
