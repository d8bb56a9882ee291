"""Which limits a request falls under."""

import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import shared.redis
from api_gateway.addresses import ClientAddresses
from api_gateway.admission import Admission
from api_gateway.limits import RateLimitedError, RateLimiter
from api_gateway.routes import METHODS
from api_gateway.settings import GatewaySettings
from shared.ids import new_id
from shared.settings import SettingsError, load
from shared.testing.valkey import OwnValkey, own_valkey

CLIENT = "203.0.113.9"
A_USER, ANOTHER = new_id(), new_id()
Admit = Callable[..., Admission]


@pytest.fixture(scope="module")
async def valkey() -> AsyncIterator[OwnValkey]:
    async with own_valkey() as valkey:
        yield valkey


@pytest.fixture
async def admission(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Admit]:
    """Makes an admission with settings like those of the environment."""
    monkeypatch.setenv("ENV_FILE", "")
    redis = shared.redis.connect(
        GatewaySettings(_env_file=None, redis_host="127.0.0.1", redis_port=valkey.port, redis_timeout_ms=5_000)
    )
    limiter = RateLimiter(redis, f"test-{secrets.token_hex(4)}:", CollectorRegistry())

    def make(**variables: Any) -> Admission:
        for name, value in variables.items():
            monkeypatch.setenv(f"RATE_LIMIT_{name.upper()}", str(value))
        settings = load(GatewaySettings)
        return Admission(limiter, ClientAddresses(exempt=settings.rate_limit_exempt_cidrs), settings)

    yield make
    await limiter.close()
    await redis.aclose()


async def admitted(admission: Admission, times: int, method: str, path: bytes, address: str = CLIENT) -> int:
    """How many of so many equal requests pass."""
    passed = 0
    for _ in range(times):
        try:
            await admission.admit(method, path, address)
        except RateLimitedError:
            continue
        passed += 1
    return passed


async def test_by_default_an_address_has_a_hundred_a_minute_wherever_it_goes(admission: Admit) -> None:
    by_default = admission()

    assert await admitted(by_default, 60, "GET", b"/wallets") == 60
    assert await admitted(by_default, 60, "GET", b"/nowhere") == 40
    assert await admitted(by_default, 1, "POST", b"/users/login") == 0
    assert await admitted(by_default, 1, "GET", b"/wallets", "203.0.113.10") == 1


async def test_a_login_has_ten_and_the_others_go_on(admission: Admit) -> None:
    by_default = admission()

    assert await admitted(by_default, 20, "POST", b"/users/login") == 10
    assert await admitted(by_default, 100, "GET", b"/wallets") == 90  # what was refused did not count here


async def test_a_refusal_is_a_429_with_the_headers_of_the_limit_that_refused(admission: Admit) -> None:
    strict = admission(login_per_minute=1)
    await strict.admit("POST", b"/users/login", CLIENT)

    with pytest.raises(RateLimitedError) as refused:
        await strict.admit("POST", b"/users/login", CLIENT)

    assert refused.value.headers["ratelimit-limit"] == "1"
    assert refused.value.headers["ratelimit-remaining"] == "0"
    assert 55 <= int(refused.value.headers["Retry-After"]) <= 60


async def test_the_strictest_of_several_limits_is_the_one_that_is_told(admission: Admit) -> None:
    several = admission(user_per_minute=5)

    verdict = await several.admit("POST", b"/users/login", CLIENT)
    assert verdict is not None
    assert (verdict.limit, verdict.remaining) == (10, 9)
    verdict = await several.admit("GET", b"/wallets", CLIENT)
    assert verdict is not None
    assert verdict.limit == 100
    assert await several.admit_user(A_USER, CLIENT, verdict) == (True, 5, 4, 60)


async def test_a_user_is_counted_across_addresses_only_when_that_is_set(admission: Admit) -> None:
    off, on = admission(), admission(user_per_minute=3)
    before = await off.admit("GET", b"/wallets", CLIENT)
    for _ in range(200):
        assert await off.admit_user(A_USER, CLIENT, before) == before

    for n in range(3):
        await on.admit_user(A_USER, f"203.0.113.{n}", None)
    with pytest.raises(RateLimitedError):
        await on.admit_user(A_USER, "198.51.100.1", None)
    assert (await on.admit_user(ANOTHER, "198.51.100.1", None)) is not None


async def test_routes_have_limits_of_their_own_beside_that_of_the_address(admission: Admit) -> None:
    routes = admission(
        per_minute=20, routes="POST /transactions/create=3, GET /wallets/*=8, GET /wallets/mine/*=5, PUT /users/me=0"
    )

    assert await admitted(routes, 5, "POST", b"/transactions/create") == 3
    assert await admitted(routes, 10, "GET", b"/wallets") == 8
    assert await admitted(routes, 1, "GET", b"/wallets/0190/balance") == 0
    assert await admitted(routes, 6, "GET", b"/wallets/mine/0190") == 5  # the most specific one counts
    assert await admitted(routes, 1, "POST", b"/wallets/create") == 1
    assert await admitted(routes, 10, "PUT", b"/users/me") == 3  # no limit of its own, but its address has one


async def test_zero_turns_a_limit_off(admission: Admit) -> None:
    off = admission(per_minute=0, login_per_minute=0)

    assert await admitted(off, 300, "POST", b"/users/login") == 300
    assert await off.admit("GET", b"/wallets", CLIENT) is None


async def test_a_login_keeps_its_limit_when_that_of_addresses_is_off(admission: Admit) -> None:
    assert await admitted(admission(per_minute=0), 20, "POST", b"/users/login") == 10


async def test_an_exempt_network_is_not_counted_at_all(admission: Admit) -> None:
    exempt = admission(exempt_cidrs="203.0.113.0/24", user_per_minute=1)

    assert await admitted(exempt, 150, "POST", b"/users/login") == 150
    assert await exempt.admit_user(A_USER, CLIENT, None) is None
    assert await exempt.admit_user(A_USER, CLIENT, None) is None
    assert await admitted(exempt, 20, "POST", b"/users/login", "198.51.100.1") == 10


async def test_health_is_never_limited_and_only_it(admission: Admit) -> None:
    strict = admission(per_minute=1)

    for method in METHODS:
        for path in (b"/health", b"/health/live", b"/health/ready"):
            assert await admitted(strict, 3, method, path) == 3
    assert await admitted(strict, 3, "GET", b"/health/") == 1


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ROUTES", "GET /wallets", "RATE_LIMIT_ROUTES: 'GET /wallets' is no limit such as 'GET /wallets/*=60'."),
        (
            "ROUTES",
            "GET /wallets=-1",
            "RATE_LIMIT_ROUTES: 'GET /wallets=-1' is no limit such as 'GET /wallets/*=60'.",
        ),
        (
            "ROUTES",
            "GET /wallets=1, BREW /users=1",
            "RATE_LIMIT_ROUTES: 'BREW /users=1' has none of the methods DELETE, GET, PATCH, POST, PUT.",
        ),
        (
            "ROUTES",
            "GET /internal/*=1",
            "RATE_LIMIT_ROUTES: 'GET /internal/*=1' has a path that is not forwarded to any service.",
        ),
        (
            "ROUTES",
            "GET /wallets/*=1,GET /wallets/* = 2",
            "RATE_LIMIT_ROUTES: 'GET /wallets/*' has more than one limit.",
        ),
        (
            "ROUTES",
            "GET /wallets=99999999",
            "RATE_LIMIT_ROUTES: 'GET /wallets=99999999' is above 10000000 a minute; 0 turns a limit off.",
        ),
        ("PER_MINUTE", "-1", "RATE_LIMIT_PER_MINUTE: Input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_limit_stops_the_start_with_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("ENV_FILE", "")
    monkeypatch.setenv(f"RATE_LIMIT_{name}", value)

    with pytest.raises(SettingsError) as stopped:
        load(GatewaySettings)

    assert str(stopped.value) == sentence
