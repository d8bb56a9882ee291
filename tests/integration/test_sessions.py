"""A session from its beginning to its end, as the whole platform sees it."""

import secrets
from typing import Any

import httpx
import pytest

from shared.testing.waiting import eventually

PASSWORD = "SecurePass123"
WITHIN_SECONDS = 1.0


async def sign_in(client: httpx.AsyncClient) -> dict[str, str]:
    """Headers of somebody new."""
    email = f"{secrets.token_hex(8)}@example.com"
    person: dict[str, Any] = {"email": email, "password": PASSWORD, "first_name": "J", "last_name": "D"}
    response = await client.post("/users/register", json=person | {"phone": "+1234567890"})
    assert response.status_code == 201, response.text
    response = await client.post("/users/login", json={"email": email, "password": PASSWORD})
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


@pytest.mark.parametrize("path", ["/users/me", "/wallets", "/transactions"])
async def test_after_logging_out_a_token_is_worth_nothing_within_a_second(
    client: httpx.AsyncClient, platform: Any, path: str
) -> None:
    headers, other = await sign_in(client), await sign_in(client)
    direct = platform.services[{"u": "user", "w": "wallet", "t": "transaction"}[path[1]] + "_service_url"]
    async with httpx.AsyncClient() as beside_the_gateway:

        async def statuses(of: dict[str, str]) -> list[int]:
            through = await client.get(path, headers=of)
            around = await beside_the_gateway.get(direct + path, headers=of)
            return [through.status_code, around.status_code]

        assert await statuses(headers) == [200, 200]

        assert (await client.post("/users/logout", headers=headers)).status_code == 204

        async def out() -> bool:
            return await statuses(headers) == [401, 401]

        await eventually(out, WITHIN_SECONDS)
        assert await statuses(other) == [200, 200]


async def test_a_closed_account_leaves_no_open_door(client: httpx.AsyncClient) -> None:
    headers = await sign_in(client)

    wrong = await client.request("DELETE", "/users/me", json={"password": "SecurePass124"}, headers=headers)

    assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong_password")
    assert (await client.get("/users/me", headers=headers)).status_code == 200
