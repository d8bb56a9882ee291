"""A session that has ended is over everywhere within a second, however long its access token would still count."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import httpx
import pytest

from shared.testing.waiting import eventually
from tests.platform import Platform
from tests.security.people import PASSWORD, Actor, Books, newcomer, signed_in

WITHIN_SECONDS: Final = 1.0
PLACES: Final = {
    "user-service": "/users/me",
    "wallet-service": "/wallets",
    "transaction-service": "/transactions",
    "payment-gateway": "/payments/01980000-0000-7000-8000-000000000001",
}

End = Callable[[Actor, Actor], Awaitable[httpx.Response]]


async def log_out(ending: Actor, _: Actor) -> httpx.Response:
    return await ending.call("POST", "/users/logout")


async def revoke(ending: Actor, _: Actor) -> httpx.Response:
    other = await signed_in(ending.client, ending.email)
    return await other.call("DELETE", f"/users/sessions/{ending.session_id}")


async def change_password(ending: Actor, _: Actor) -> httpx.Response:
    other = await signed_in(ending.client, ending.email)
    body = {"current_password": PASSWORD, "new_password": "BetterPass456"}
    return await other.call("POST", "/users/me/password", body)


async def disable(ending: Actor, admin: Actor) -> httpx.Response:
    return await admin.call("POST", f"/users/{ending.id}/disable")


async def reuse_a_refresh_token(ending: Actor, _: Actor) -> httpx.Response:
    """Two rotations later, whoever comes with the first token has copied it."""
    token = ending.refresh
    for _number in range(2):
        answer = await ending.client.post("/users/refresh", json={"refresh_token": token})
        assert answer.status_code == 200
        token = answer.json()["refresh_token"]
    return await ending.client.post("/users/refresh", json={"refresh_token": ending.refresh})


ENDS: Final[dict[str, tuple[End, int]]] = {
    "logging out": (log_out, 204),
    "ending it from another session": (revoke, 204),
    "changing the password in another session": (change_password, 204),
    "being disabled": (disable, 200),
    "using a refresh token again": (reuse_a_refresh_token, 401),
}


async def statuses(platform: Platform, actor: Actor) -> set[int]:
    """What the token gets at the gateway and at each service's own port."""
    targets = [url + path for service, path in PLACES.items() for url in (platform.gateway, platform.direct(service))]
    answers = await asyncio.gather(*(actor.client.get(target, headers=actor.headers) for target in targets))
    return {answer.status_code for answer in answers}


@pytest.mark.parametrize("end", ENDS)
async def test_a_live_token_stops_everywhere_within_a_second(
    platform: Platform, admin: Actor, alice: Actor, books: Books, end: str
) -> None:
    ending, expected = ENDS[end]
    wallet_id, target = await alice.wallet(), await (await newcomer(alice.client)).wallet()
    await alice.deposit(wallet_id)
    assert await statuses(platform, alice) == {200, 404}

    response = await ending(alice, admin)
    ended_at = time.monotonic()
    assert response.status_code == expected, response.text

    async def is_out() -> bool:
        return await statuses(platform, alice) == {401}

    await eventually(is_out, WITHIN_SECONDS)
    assert time.monotonic() - ended_at < WITHIN_SECONDS + 0.5
    before = await books.state()
    refused = [
        await alice.try_to("transfer", "1.00", from_wallet_id=wallet_id, to_wallet_id=target),
        await alice.call("POST", f"/wallets/{wallet_id}/close"),
        await alice.call("PATCH", "/users/me", {"first_name": "Jane"}),
        await alice.client.post("/users/refresh", json={"refresh_token": alice.refresh}),
    ]
    assert [answer.status_code for answer in refused] == [401] * 4
    assert await books.state() == before


async def test_others_are_not_logged_out_with_somebody(platform: Platform, alice: Actor) -> None:
    other = await signed_in(alice.client, alice.email)
    bob = await newcomer(alice.client)

    await alice.call("POST", "/users/logout")

    async def is_out() -> bool:
        return await statuses(platform, alice) == {401}

    await eventually(is_out, WITHIN_SECONDS)
    assert await statuses(platform, other) == await statuses(platform, bob) == {200, 404}


async def test_whoever_is_disabled_gets_in_by_no_door(alice: Actor, admin: Actor, books: Books) -> None:
    assert (await disable(alice, admin)).status_code == 200
    before = await books.state()

    login = await alice.client.post("/users/login", json={"email": alice.email, "password": PASSWORD})
    refresh = await alice.client.post("/users/refresh", json={"refresh_token": alice.refresh})
    again = await alice.client.post(
        "/users/register",
        json={
            "email": alice.email,
            "password": PASSWORD,
            "first_name": "J",
            "last_name": "D",
            "phone": "+1234567890",
        },
    )

    assert (login.status_code, login.json()["code"]) == (401, "invalid_credentials")
    assert (refresh.status_code, again.status_code) == (401, 409)
    assert await books.state() == before
