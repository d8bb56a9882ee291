"""What browsers hear: which pages may read answers, and what must not be done with them."""

from collections.abc import AsyncIterator

import httpx
import pytest

from api_gateway.app import create_app
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Service
from shared.settings import SettingsError, load
from shared.testing.servers import in_process
from shared.testing.tokens import Person

SHOP = "https://shop.example.com"
ALICE = Person()


@pytest.fixture
async def open_to_shop(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(settings.model_copy(update={"cors_allowed_origins": (SHOP,)}))) as client:
        yield client


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


async def test_a_listed_page_may_read_answers_and_refusals(open_to_shop: httpx.AsyncClient) -> None:
    answer = await open_to_shop.get("/wallets", headers=ALICE.headers | {"Origin": SHOP})
    refusal = await open_to_shop.get("/wallets", headers={"Origin": SHOP})

    assert (answer.status_code, refusal.status_code) == (200, 401)
    for response in (answer, refusal):
        assert response.headers["access-control-allow-origin"] == SHOP
        assert "RateLimit-Remaining" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in response.headers
        assert "Origin" in response.headers["vary"]


async def test_a_listed_page_is_told_what_it_may_send(
    open_to_shop: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    asked = {
        "Origin": SHOP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
    }

    response = await open_to_shop.options("/transactions/create", headers=asked)

    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == SHOP
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "Idempotency-Key" in response.headers["access-control-allow-headers"]
    assert not any(service.requests for service in services.values())


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "https://evil.example.com",
        SHOP + ".evil.com",
        SHOP + ":8443",
        "http://shop.example.com",
        SHOP.upper(),
        "*",
    ],
)
async def test_any_other_page_gets_no_header(open_to_shop: httpx.AsyncClient, origin: str) -> None:
    answer = await open_to_shop.get("/wallets", headers=ALICE.headers | {"Origin": origin})
    preflight = await open_to_shop.options(
        "/wallets", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
    )

    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-origin" not in preflight.headers


async def test_without_the_setting_no_page_gets_a_header(client: httpx.AsyncClient) -> None:
    answer = await client.get("/wallets", headers=ALICE.headers | {"Origin": SHOP})

    assert (answer.status_code, cors_headers(answer)) == (200, {})


@pytest.mark.parametrize(
    "origins", ["*", "null", "shop.example.com", SHOP + "/", f"{SHOP}, *", "https://*.example.com"]
)
def test_what_is_no_origin_stops_the_start(monkeypatch: pytest.MonkeyPatch, origins: str) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv("CORS_ALLOWED_ORIGINS", origins)

    with pytest.raises(SettingsError, match=r"^CORS_ALLOWED_ORIGINS: '.*' is no origin such as "):
        load(GatewaySettings)


async def test_answers_are_not_framed_sniffed_kept_or_referred_to(client: httpx.AsyncClient) -> None:
    for response in (await client.get("/wallets", headers=ALICE.headers), await client.get("/nowhere")):
        assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in response.headers
        assert "server" not in response.headers


async def test_the_documentation_runs_its_own_scripts_only(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["content-security-policy"]

    assert policy.startswith("default-src 'self'; ")
    assert "http:" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("environment", ["staging", "production"])
async def test_outside_development_browsers_have_to_come_by_tls(settings: GatewaySettings, environment: str) -> None:
    settings = settings.model_copy(update={"environment": environment})

    async with in_process(create_app(settings)) as client:
        response = await client.get("/nowhere")

    assert response.headers["strict-transport-security"] == "max-age=63072000; includeSubDomains"
