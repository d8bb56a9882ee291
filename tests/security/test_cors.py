"""Browsers: which pages may read an answer, and what none may do."""

from collections.abc import AsyncIterator
from typing import Final

import httpx
import pytest

from tests.platform import Platform
from tests.security.people import PASSWORD, Actor

LISTED: Final = "https://app.example.com"
UNLISTED: Final = (
    "https://evil.example",
    "null",
    "http://app.example.com",
    "https://app.example.com.evil.example",
    "https://evil.example/https://app.example.com",
    "https://app.example.com:8443",
    "https://APP.example.com",
    "https://sub.app.example.com",
    "https://app.example.com@evil.example",
    "https://appXexample.com",
    "*",
    "",
    "file://",
)


@pytest.fixture(scope="module")
async def listing(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that lists one origin."""
    settings = {"cors_allowed_origins": LISTED, "rate_limit_per_minute": 0, "rate_limit_login_per_minute": 0}
    async with (
        platform.another_gateway(**settings) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-allow")}


async def answers(client: httpx.AsyncClient, alice: Actor, origin: str) -> list[httpx.Response]:
    """A preflight, a read, a refusal, a login, and what belongs to nobody."""
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    login = {"email": alice.email, "password": PASSWORD}
    return [
        await client.options("/transactions/create", headers={"Origin": origin} | preflight),
        await client.get("/wallets", headers={"Origin": origin} | alice.headers),
        await client.get("/wallets", headers={"Origin": origin}),
        await client.post("/users/login", json=login, headers={"Origin": origin}),
        await client.get("/nowhere", headers={"Origin": origin}),
        await client.get("/openapi.json", headers={"Origin": origin}),
    ]


@pytest.mark.parametrize("origin", UNLISTED)
async def test_a_page_of_another_origin_reads_nothing(listing: httpx.AsyncClient, alice: Actor, origin: str) -> None:
    for response in await answers(listing, alice, origin):
        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-credentials" not in response.headers


async def test_a_listed_page_reads_answers_and_sends_no_cookies(listing: httpx.AsyncClient, alice: Actor) -> None:
    for response in await answers(listing, alice, LISTED):
        assert response.headers["access-control-allow-origin"] == LISTED
        assert "access-control-allow-credentials" not in response.headers
        assert "Origin" in response.headers["vary"]
        assert "*" not in cors_headers(response).values()


async def test_an_answer_to_one_page_is_not_kept_for_another(listing: httpx.AsyncClient, alice: Actor) -> None:
    """Without an origin the answer varies by it, too; otherwise a cache would hand it on without the header."""
    with_origin = await listing.get("/openapi.json", headers={"Origin": LISTED})
    login = {"email": alice.email, "password": PASSWORD}
    private = await listing.post("/users/login", json=login, headers={"Origin": LISTED})

    assert "Origin" in with_origin.headers["vary"]
    assert private.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("origin", [LISTED, "https://evil.example", "null"])
async def test_by_default_no_page_reads_anything(client: httpx.AsyncClient, alice: Actor, origin: str) -> None:
    for response in await answers(client, alice, origin):
        assert cors_headers(response) == {}


async def test_no_answer_sets_a_cookie_or_may_be_framed(client: httpx.AsyncClient, alice: Actor) -> None:
    for response in [*await answers(client, alice, LISTED), await client.get("/docs")]:
        assert "set-cookie" not in response.headers
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
