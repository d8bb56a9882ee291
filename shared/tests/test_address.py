"""Whom a request comes from: the peer, unless the gateway proves to speak for somebody."""

import httpx
import pytest
from fastapi import FastAPI

from shared.auth import ServiceTokens, UserTokens
from shared.http.address import client_address_of, plain_address
from shared.ids import new_id

SECRET = "a-secret-of-thirty-two-bytes-or-more"


def proof(caller: str = "api-gateway", callee: str = "user-service", secret: str = SECRET) -> str:
    return f"Bearer {ServiceTokens(secret, caller).issue(callee)}"


@pytest.fixture
def client() -> httpx.AsyncClient:
    app, address = FastAPI(), client_address_of(ServiceTokens(SECRET, "user-service"))

    async def show(found: str = address) -> str:
        return found

    app.get("/address")(show)
    transport = httpx.ASGITransport(app=app, client=("198.51.100.1", 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://service")


async def address(client: httpx.AsyncClient, headers: list[tuple[str, str]]) -> str:
    response = await client.get("/address", headers=headers)
    assert response.status_code == 200, response.text
    found: str = response.json()
    return found


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
async def test_what_the_gateway_says_is_believed(client: httpx.AsyncClient, forwarded: str, expected: str) -> None:
    assert await address(client, [("X-Forwarded-For", forwarded), ("X-Gateway-Token", proof())]) == expected


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("X-Forwarded-For", "203.0.113.7")],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", "")],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", "x.y.z")],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof("wallet-service"))],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof(callee="wallet-service"))],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof(secret="another-secret-of-32-bytes-or-more"))],
        [("X-Forwarded-For", "203.0.113.7"), ("Authorization", proof())],
        [
            ("X-Forwarded-For", "203.0.113.7"),
            ("X-Gateway-Token", f"Bearer {UserTokens(SECRET).issue(new_id(), 'admin', new_id())}"),
        ],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof()), ("X-Gateway-Token", proof())],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-For", "203.0.113.8"), ("X-Gateway-Token", proof())],
        [("X-Forwarded-For", "203.0.113.7, 203.0.113.8"), ("X-Gateway-Token", proof())],
        [("X-Forwarded-For", "localhost"), ("X-Gateway-Token", proof())],
        [("X-Forwarded-For", ""), ("X-Gateway-Token", proof())],
        [("X-Gateway-Token", proof())],
        [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof().removeprefix("Bearer "))],
        [("X-Real-Ip", "203.0.113.7"), ("Forwarded", "for=203.0.113.7"), ("X-Gateway-Token", proof())],
    ],
)
async def test_everything_else_leaves_it_at_the_peer(
    client: httpx.AsyncClient, headers: list[tuple[str, str]]
) -> None:
    assert await address(client, headers) == "198.51.100.1"


@pytest.mark.parametrize(
    "text", ["", "unknown", "testclient", "1.2.3", "1.2.3.4.5", "203.0.113.7/24", "::g", "0x7f.1"]
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert plain_address(text) == ""
