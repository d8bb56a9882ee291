"""Guessing passwords: by account, by address, by many, at once, and without Redis; the owner gets in all the same."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import asyncpg
import httpx
import pytest

from shared.redis import connect
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually
from user_service.app import create_app
from user_service.guesses import (
    ACCOUNT,
    MAX_AT_ONCE,
    MAX_COUNTED_ALONE,
    NETWORK,
    PAIR,
    Guesses,
    Limit,
    _Counters,
)
from user_service.passwords import Passwords
from user_service.settings import UserSettings
from user_service.testing import HOME, PASSWORD, Somebody, by_gateway, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]


@pytest.fixture
def evil() -> str:
    """An address that no other test has guessed from."""
    return f"198.18.{secrets.randbelow(256)}.{secrets.randbelow(256)}"


@pytest.fixture(params=["redis", "without redis"])
async def users(
    request: pytest.FixtureRequest, sandbox: Sandbox, client: httpx.AsyncClient
) -> AsyncIterator[httpx.AsyncClient]:
    """user-service with Redis, and one that has to do without it."""
    if request.param == "redis":
        yield client
        return
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4, redis_port=1, kafka_bootstrap_servers="127.0.0.1:1")
    async with in_process(create_app(settings)) as alone:
        yield alone


async def guess(client: httpx.AsyncClient, email: str, address: str) -> int:
    body = {"email": email, "password": "wrong-password"}
    return (await client.post("/users/login", json=body, headers=by_gateway(address))).status_code


def assert_told_to_wait(response: httpx.Response, seconds: int) -> None:
    assert (response.status_code, response.json()["code"]) == (429, "too_many_attempts")
    assert seconds - 60 < int(response.headers["retry-after"]) <= seconds
    assert "access_token" not in response.text


def test_the_limits() -> None:
    assert (PAIR.attempts, PAIR.seconds) == (10, 900)
    assert (NETWORK.attempts, NETWORK.seconds) == (20, 900)
    assert (ACCOUNT.attempts, ACCOUNT.seconds) == (100, 3600)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_after_ten_guesses_at_an_account_an_address_has_to_wait(
    users: httpx.AsyncClient, rows: Rows, known: bool, evil: str
) -> None:
    alice = await somebody(users) if known else Somebody(users, "", "nobody@example.com")

    statuses = [await guess(users, alice.email, evil) for _ in range(10)]
    refused = await alice.try_to_sign_in(PASSWORD, address=evil)  # even with the right one

    assert statuses == [401] * 10
    assert_told_to_wait(refused, 900)
    assert await rows("select * from sessions") == []
    if known:
        assert (await alice.try_to_sign_in(address=HOME)).status_code == 200


async def test_after_twenty_guesses_at_any_accounts_an_address_has_to_wait(
    users: httpx.AsyncClient, evil: str
) -> None:
    alice = await somebody(users)

    statuses = [await guess(users, f"user-{number}@example.com", evil) for number in range(20)]

    assert statuses == [401] * 20
    assert_told_to_wait(await alice.try_to_sign_in(address=evil), 900)
    assert (await alice.try_to_sign_in(address=HOME)).status_code == 200


async def test_after_a_hundred_guesses_from_anywhere_only_the_owners_places_are_heard(
    users: httpx.AsyncClient,
) -> None:
    alice, bob = await somebody(users), await somebody(users, "bob")
    await alice.sign_in(HOME)
    guesses = [guess(users, alice.email, f"10.0.{number // 5}.1") for number in range(100)]

    assert set(await asyncio.gather(*guesses)) == {401}

    assert_told_to_wait(await alice.try_to_sign_in(address="10.1.0.1"), 3600)
    assert (await alice.try_to_sign_in(address=HOME)).status_code == 200
    assert (await bob.try_to_sign_in(address="10.1.0.1")).status_code == 200


async def test_a_right_password_is_no_guess(users: httpx.AsyncClient) -> None:
    alice = await somebody(users)

    for _ in range(25):
        assert (await alice.try_to_sign_in(address=HOME)).status_code == 200
    for _ in range(10):
        assert await guess(users, alice.email, HOME) == 401
    assert await guess(users, alice.email, HOME) == 429


async def test_guesses_at_once_get_no_further(users: httpx.AsyncClient, evil: str) -> None:
    alice = await somebody(users)

    statuses = await asyncio.gather(*(guess(users, alice.email, evil) for _ in range(60)))

    assert (statuses.count(401), statuses.count(429)) == (10, 50)


async def test_a_whole_network_of_ipv6_is_one(users: httpx.AsyncClient) -> None:
    alice = await somebody(users)

    statuses = [await guess(users, alice.email, f"2001:db8:1:2::{number}") for number in range(11)]

    assert statuses == [401] * 10 + [429]
    assert await guess(users, alice.email, "2001:db8:1:3::1") == 401


async def test_a_forged_address_does_not_help(users: httpx.AsyncClient) -> None:
    alice = await somebody(users)
    body = {"email": alice.email, "password": "wrong-password"}

    statuses = []
    for number in range(11):
        headers = {
            "X-Forwarded-For": f"10.2.0.{number}",
            "X-Gateway-Token": "forged",
            "X-Real-IP": f"10.2.0.{number}",
        }
        statuses.append((await users.post("/users/login", json=body, headers=headers)).status_code)

    assert statuses == [401] * 10 + [429]


@pytest.mark.parametrize("path", ["/users/me/password", "/users/me"])
async def test_a_stolen_token_does_not_let_guess_the_password(users: httpx.AsyncClient, path: str) -> None:
    session = await (await somebody(users)).sign_in()

    async def attempt(password: str) -> int:
        if path == "/users/me":
            return (await session.call("DELETE", path, password=password)).status_code
        body = {"current_password": password, "new_password": "BetterPass456"}
        return (await session.call("POST", path, **body)).status_code

    assert [await attempt("wrong-password") for _ in range(10)] == [403] * 10
    assert await attempt(PASSWORD) == 429
    assert await session.is_alive()


async def test_two_processes_count_together(sandbox: Sandbox, client: httpx.AsyncClient, evil: str) -> None:
    alice = await somebody(client)
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4, kafka_bootstrap_servers="127.0.0.1:1")
    async with in_process(create_app(settings)) as other:
        guesses = [guess(process, alice.email, evil) for process in (client, other) for _ in range(10)]
        statuses = await asyncio.gather(*guesses)

    assert (statuses.count(401), statuses.count(429)) == (10, 10)


async def test_counters_end_and_hold_no_address_in_clear(
    sandbox: Sandbox, client: httpx.AsyncClient, evil: str
) -> None:
    await guess(client, "alice@example.com", evil)

    async with connect(sandbox.settings(UserSettings)) as redis:
        prefix = f"{sandbox.environment['REDIS_KEY_PREFIX']}guesses:"
        keys = [key async for key in redis.scan_iter(match=f"{prefix}*")]
        lives = [await redis.pttl(key) for key in keys]
    assert len(keys) == 3
    assert all(0 < life <= 3_600_000 for life in lives)
    assert not any(b"alice" in key for key in keys)


async def test_one_address_does_not_fill_the_queue_of_hashes(
    sandbox: Sandbox, client: httpx.AsyncClient, evil: str
) -> None:
    """While one address guesses with all its might, somebody else logs in without waiting for all of it."""
    settings = sandbox.settings(UserSettings, bcrypt_rounds=10, kafka_bootstrap_servers="127.0.0.1:1")
    async with in_process(create_app(settings)) as slow:
        alice = await somebody(slow)
        order: list[str] = []

        async def one_guess(number: int) -> None:
            await guess(slow, f"user-{number}@example.com", evil)
            order.append("guess")

        guessing = [asyncio.create_task(one_guess(number)) for number in range(20)]

        async def begun() -> bool:
            return bool(order)

        await eventually(begun)
        await alice.sign_in(HOME)
        order.append("login")
        await asyncio.gather(*guessing)

    assert MAX_AT_ONCE == 4
    assert order.index("login") < 14


async def test_what_was_counted_without_redis_still_counts_when_it_is_back(sandbox: Sandbox) -> None:
    settings = sandbox.settings(UserSettings)
    guesses = Guesses(settings)
    key = [(f"{settings.redis_key_prefix}guesses:{secrets.token_hex(8)}", Limit("any", 10, 60))]
    for _ in range(7):
        guesses._alone.add(key)
    assert [await guesses._count(key) for _ in range(3)] == [(0, False)] * 3

    wait_ms, alone = await guesses._count(key)

    assert 0 < wait_ms <= 60_000
    assert alone is False
    await guesses.close()


def test_the_counters_of_one_process_are_bounded_and_the_oldest_go_first() -> None:
    counters, limit = _Counters(size=3), Limit("any", 1, 60)
    for key in "abcd":
        counters.add([(key, limit)])

    assert counters.wait([("b", limit)]) > 0
    assert counters.wait([("a", limit)]) == 0
    assert len(counters._counts) == 3
    assert MAX_COUNTED_ALONE == 20_000


def test_a_counter_begins_anew_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    counters, limit, now = _Counters(size=3), Limit("any", 2, 60), time.monotonic()
    for _ in range(2):
        assert counters.wait([("a", limit)]) == 0
        counters.add([("a", limit)])
    assert 0 < counters.wait([("a", limit)]) <= 60_000
    counters.give_back(["a"])
    assert counters.wait([("a", limit)]) == 0
    counters.add([("a", limit)])
    assert counters.wait([("a", limit)]) > 0

    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert counters.wait([("a", limit)]) == 0
    counters.add([("a", limit)])
    assert counters.count("a") == 1


# ------------------------------------------------------------------------------------------------- time and cost


async def test_a_wrong_password_takes_the_same_time_whoever_it_is_for() -> None:
    """Known with the present cost, known with an earlier one, unknown: the same work."""
    passwords, earlier = Passwords(rounds=9), Passwords(rounds=6)
    stored = {
        "unknown": None,
        "known": await passwords.hash(PASSWORD),
        "earlier": await earlier.hash(PASSWORD),
    }
    spent: dict[str, list[float]] = {name: [] for name in stored}
    for _ in range(10):
        for name, value in stored.items():
            began = time.thread_time()
            assert passwords._verify("wrong-password", value) is False
            spent[name].append(time.thread_time() - began)
    passwords.close()
    earlier.close()

    least = [min(values) for values in spent.values()]
    assert max(least) < 1.25 * min(least), spent


async def test_a_hash_is_made_anew_at_the_login_after_the_cost_has_risen(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    settings = sandbox.settings(UserSettings, bcrypt_rounds=5, kafka_bootstrap_servers="127.0.0.1:1")
    async with in_process(create_app(settings)) as dearer:
        body = {"email": alice.email, "password": PASSWORD}
        answers = await asyncio.gather(*(dearer.post("/users/login", json=body) for _ in range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        [row] = await rows("select password_hash, password_version from users")
        assert row["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
        assert row["password_version"] == 1
        assert (await dearer.post("/users/login", json=body | {"password": "wrong-password"})).status_code == 401
    assert await session.is_alive()
    assert (await alice.try_to_sign_in()).status_code == 200  # and the cheaper process makes nothing cheaper
    [row] = await rows("select password_hash from users")
    assert row["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
