"""Whom a request comes from: the peer, unless the gateway or a neighbour proves to speak for somebody."""

from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from shared.auth import ServiceTokens, UserTokens
from shared.http.address import plain_address
from shared.http.context import current_context
from shared.http.edge import Edge
from shared.ids import new_id
from shared.metrics import HttpMetrics

SECRET = "a-secret-of-thirty-two-bytes-or-more"
PEER = ("198.51.100.1", 4711)


def proof(caller: str = "api-gateway", callee: str = "user-service", secret: str = SECRET) -> str:
    return f"Bearer {ServiceTokens(secret, caller).issue(callee)}"


async def show(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(current_context().trace.ip)(scope, receive, send)


def client_from(peer: Any, tokens: ServiceTokens | None) -> httpx.AsyncClient:
    edge = Edge(show, HttpMetrics(CollectorRegistry()), trust_deadline=True, tokens=tokens)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=edge, client=peer), base_url="http://service")


@pytest.fixture
def client() -> httpx.AsyncClient:
    return client_from(PEER, ServiceTokens(SECRET, "user-service"))


async def address(
    client: httpx.AsyncClient, headers: list[tuple[str, str]], method: str = "POST", path: str = "/users/login"
) -> str | None:
    response = await client.request(method, path, headers=headers)
    assert response.status_code == 200, response.text
    found: str | None = response.json()
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
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert await address(client, headers, method) == "198.51.100.1"


async def test_a_peer_without_an_address_is_nobody() -> None:
    tokens = ServiceTokens(SECRET, "user-service")
    for peer in (("", 0), ("testclient", 0)):
        assert await address(client_from(peer, tokens), [("X-Forwarded-For", "203.0.113.7")]) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("X-Forwarded-For", "203.0.113.7")], "203.0.113.7"),
        ([("X-Forwarded-For", "::ffff:203.0.113.7")], "203.0.113.7"),
        ([], None),
        ([("X-Forwarded-For", "")], None),
        ([("X-Forwarded-For", "nobody")], None),
        ([("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-For", "203.0.113.8")], None),
    ],
)
async def test_a_neighbour_says_for_whom_it_is_at_work_or_for_nobody(
    client: httpx.AsyncClient, headers: list[tuple[str, str]], expected: str | None
) -> None:
    """Its own address is nobody's; without a token the call gets no further."""
    assert await address(client, headers, path="/internal/orders") == expected


async def test_who_only_looks_is_not_asked_where_from(client: httpx.AsyncClient) -> None:
    told = [("X-Forwarded-For", "203.0.113.7"), ("X-Gateway-Token", proof())]

    assert await address(client, told, "GET") is None
    assert await address(client_from(PEER, None), told) is None


@pytest.mark.parametrize(
    "text", ["", "unknown", "testclient", "1.2.3", "1.2.3.4.5", "203.0.113.7/24", "::g", "0x7f.1"]
)
def test_what_is_no_address_is_none(text: str) -> None:
    assert plain_address(text) == ""
