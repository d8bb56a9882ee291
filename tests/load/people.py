"""People with money, made by the public API as anybody else would be."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from infrastructure.embedded.errors import EmbeddedError
from tests.load.generator import KEY

CURRENCY = "USD"
FUNDS = "1000000.00"
AMOUNT = "0.01"
PASSWORD = "correct horse battery 9"
AT_ONCE = 16
CALL_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a wallet that has `FUNDS` in it."""

    token: str
    wallet_id: str


async def settle(port: int, count: int) -> tuple[Person, list[Person]]:
    """A merchant, and `count` people."""
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS)
    turns = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", timeout=timeout) as session:

        async def one(number: int) -> Person:
            async with turns:
                return await _person(session, number)

        merchant, *people = await asyncio.gather(*map(one, range(count + 1)))
    return merchant, people


async def _person(session: aiohttp.ClientSession, number: int) -> Person:
    """Number 0 is a merchant."""
    names = {"first_name": "Load", "last_name": "Test", "phone": f"+1555{number:07d}"}
    credentials = {"email": f"load-{number}@example.com", "password": PASSWORD}
    role = "user" if number else "merchant"
    user = await _call(session, "/users/register", {**credentials, **names, "role": role})
    login = await _call(session, "/users/login", credentials, expected=200)
    token = str(login["access_token"])
    wallet = await _call(session, "/wallets/create", {"user_id": user["id"], "currency": CURRENCY}, token)
    deposit = {
        "transaction_type": "deposit",
        "amount": FUNDS,
        "currency": CURRENCY,
        "to_wallet_id": wallet["id"],
        "payment_method": "credit_card",
    }
    await _call(session, "/transactions/create", deposit, token)
    return Person(token, str(wallet["id"]))


async def _call(
    session: aiohttp.ClientSession, path: str, body: dict[str, Any], token: str = "", expected: int = 201
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.post(path, json=body, headers=headers) as response:
        if response.status != expected:
            raise EmbeddedError(f"{path} answered {response.status}: {await response.text()}")
        answer: dict[str, Any] = await response.json()
    return answer


def spread(people: Sequence[Person], requests: int, *, keys: bool) -> list[bytes]:
    """Anybody pays anybody."""
    chance = random.Random(1)  # noqa: S311 - a load, not a secret
    return [_transfer(*chance.sample(people, 2), keys=keys) for _ in range(requests)]


def hot(people: Sequence[Person], merchant: Person, requests: int, *, keys: bool) -> list[bytes]:
    """Everybody pays one merchant."""
    chance = random.Random(1)  # noqa: S311 - as above
    return [_transfer(chance.choice(people), merchant, keys=keys) for _ in range(requests)]


def reads(people: Sequence[Person]) -> list[bytes]:
    """Everybody looks at their balance."""
    return [
        (
            f"GET /wallets/{each.wallet_id}/balance HTTP/1.1\r\nHost: load\r\n"
            f"Authorization: Bearer {each.token}\r\n\r\n"
        ).encode()
        for each in people
    ]


def _transfer(payer: Person, payee: Person, *, keys: bool) -> bytes:
    body = (
        f'{{"transaction_type": "transfer", "amount": {AMOUNT}, "currency": "{CURRENCY}", '
        f'"from_wallet_id": "{payer.wallet_id}", "to_wallet_id": "{payee.wallet_id}", '
        '"description": "Payment for services"}'
    ).encode()
    key = f"Idempotency-Key: {KEY.decode()}\r\n" if keys else ""
    head = (
        f"POST /transactions/create HTTP/1.1\r\nHost: load\r\nAuthorization: Bearer {payer.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{key}\r\n"
    )
    return head.encode() + body
