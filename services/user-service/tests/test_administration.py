"""What admins may do, and nobody else."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from shared.ids import new_id
from shared.testing.tokens import service_headers
from user_service.testing import UNCHANGED, Session, Somebody, event_of, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]


@pytest.fixture
async def admin(nobody: None, client: httpx.AsyncClient, rows: Rows) -> Session:
    root = await somebody(client, "root")
    await rows("update users set role = 'admin' where email = 'root@example.com'")
    return await root.sign_in()


async def told(rows: Rows, user: Somebody) -> list[dict[str, Any]]:
    found = await rows("select payload from outbox where key = $1 order by position", user.id)
    return [event_of(row) for row in found][1:]


async def test_an_admin_sees_anybody(client: httpx.AsyncClient, admin: Session) -> None:
    alice = await somebody(client)

    response = await admin.call("GET", f"/users/{alice.id}")

    assert response.status_code == 200
    assert (response.json()["id"], response.json()["email"]) == (alice.id, "alice@example.com")
    missing = await admin.call("GET", f"/users/{new_id()}")
    assert (missing.status_code, missing.json()["code"]) == (404, "user_not_found")


@pytest.mark.parametrize("role", ["user", "merchant"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/users"),
        ("GET", "/users/{id}"),
        ("POST", "/users/{id}/disable"),
        ("POST", "/users/{id}/enable"),
    ],
)
async def test_nobody_else_may_and_learns_nothing(
    client: httpx.AsyncClient, rows: Rows, role: str, method: str, path: str
) -> None:
    alice, eve = await somebody(client), await somebody(client, "eve", role=role)
    session = await eve.sign_in()
    before = await rows("select * from users order by id")

    answers = []
    for user_id in (alice.id, eve.id, str(new_id())):
        response = await session.call(method, path.format(id=user_id))
        body = response.json()
        answers.append((response.status_code, body["code"], body["detail"]))

    assert answers == [(403, "forbidden", "Your role does not allow this.")] * 3
    assert await rows("select * from users order by id") == before
    for headers in ({}, service_headers("wallet-service", "user-service")):
        response = await client.request(method, path.format(id=alice.id), headers=headers)
        assert response.status_code == 401


async def test_a_disabled_user_is_out_at_once_and_in_again_when_enabled(
    client: httpx.AsyncClient, rows: Rows, admin: Session
) -> None:
    alice = await somebody(client)
    sessions = [await alice.sign_in() for _ in range(2)]

    response = await admin.call("POST", f"/users/{alice.id}/disable")

    assert (response.status_code, response.json()["status"]) == (200, "disabled")
    for session in sessions:
        assert not await session.is_alive()
        assert (await session.try_refresh()).status_code == 401
    assert (await alice.try_to_sign_in()).status_code == 401
    assert await admin.is_alive()

    response = await admin.call("POST", f"/users/{alice.id}/enable")
    assert (response.status_code, response.json()["status"]) == (200, "active")
    assert not await sessions[0].is_alive()
    assert (await sessions[0].try_refresh()).status_code == 401
    assert await (await alice.sign_in()).is_alive()
    disabled, ended, enabled = (await told(rows, alice))[2:5]
    assert (disabled["type"], disabled["sequence"], disabled["actor"]) == ("users.disabled.v1", 4, admin.user_id)
    assert (disabled["data"]["email"], disabled["data"]["status"]) == ("alice@example.com", "disabled")
    assert (ended["type"], len(ended["data"]["session_ids"])) == ("users.sessions_ended.v1", 2)
    assert (enabled["type"], enabled["data"]["status"]) == ("users.enabled.v1", "active")
    assert disabled["data"]["before"] == UNCHANGED | {"status": "active"}
    assert enabled["data"]["before"] == UNCHANGED | {"status": "disabled"}
    rows_of_alice = await rows("select payload::jsonb ->> 'type' as type, ip from outbox where key = $1", alice.id)
    assert {(row["type"], row["ip"]) for row in rows_of_alice} >= {
        ("users.disabled.v1", "203.0.113.7"),
        ("users.enabled.v1", "203.0.113.7"),
    }


async def test_disabling_twice_is_told_once(client: httpx.AsyncClient, rows: Rows, admin: Session) -> None:
    alice = await somebody(client)

    answers = await asyncio.gather(*(admin.call("POST", f"/users/{alice.id}/disable") for _ in range(5)))

    assert {answer.status_code for answer in answers} == {200}
    assert [event["type"] for event in await told(rows, alice)] == ["users.disabled.v1"]


async def test_an_admin_cannot_shut_themself_out(client: httpx.AsyncClient, admin: Session) -> None:
    response = await admin.call("POST", f"/users/{admin.user_id}/disable")

    assert (response.status_code, response.json()["code"]) == (409, "own_account")
    assert await admin.is_alive()


@pytest.mark.parametrize("action", ["disable", "enable"])
async def test_a_closed_account_stays_closed(
    client: httpx.AsyncClient, rows: Rows, admin: Session, action: str
) -> None:
    alice = await somebody(client)
    await rows("update users set status = 'closed' where email = 'alice@example.com'")

    response = await admin.call("POST", f"/users/{alice.id}/{action}")

    assert (response.status_code, response.json()["code"]) == (409, "user_closed")
    assert [row["status"] for row in await rows("select status from users where id = $1", UUID(alice.id))] == [
        "closed"
    ]
    missing = await admin.call("POST", f"/users/{new_id()}/{action}")
    assert (missing.status_code, missing.json()["code"]) == (404, "user_not_found")


async def test_the_list_goes_both_ways_newest_first(client: httpx.AsyncClient, admin: Session) -> None:
    people = [await somebody(client, f"user-{number}") for number in range(5)]
    newest_first = [person.id for person in reversed(people)] + [admin.user_id]

    async def page(**query: Any) -> tuple[list[str], bool]:
        response = await client.get("/users", params=query, headers=admin.headers)
        assert response.status_code == 200, response.text
        return [user["id"] for user in response.json()["data"]], response.json()["has_more"]

    assert await page() == (newest_first, False)
    assert await page(limit=4) == (newest_first[:4], True)
    assert await page(limit=2, starting_after=newest_first[1]) == (newest_first[2:4], True)
    assert await page(limit=4, starting_after=newest_first[1]) == (newest_first[2:], False)
    assert await page(limit=2, ending_before=newest_first[4]) == (newest_first[2:4], True)
    assert await page(limit=4, ending_before=newest_first[4]) == (newest_first[:4], False)
    assert await page(starting_after=newest_first[0], ending_before=newest_first[4]) == (newest_first[1:4], False)


async def test_the_list_is_filtered(client: httpx.AsyncClient, rows: Rows, admin: Session) -> None:
    alice, shop = await somebody(client), await somebody(client, "shop", role="merchant")
    await admin.call("POST", f"/users/{alice.id}/disable")

    async def found(**query: str) -> list[str]:
        response = await client.get("/users", params=query, headers=admin.headers)
        assert response.status_code == 200, response.text
        return [user["id"] for user in response.json()["data"]]

    assert await found(email="ALICE@Example.com") == [alice.id]
    assert await found(role="merchant") == [shop.id]
    assert await found(role="admin") == [admin.user_id]
    assert await found(status="disabled") == [alice.id]
    assert await found(role="merchant", status="disabled") == []
    assert await found(email="nobody@example.com") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=1000000000", "limit"),
        ("role=root", "role"),
        ("status=gone", "status"),
        ("email=alice", "email"),
        ("email[$ne]=x", "email[$ne]"),
        ("starting_after=1%20or%201=1", "starting_after"),
        ("starting_after=01900000-0000-7000-8000-000000000001", "starting_after"),
        ("ending_before=01900000-0000-7000-8000-000000000001", "ending_before"),
        ("password_hash=x", "password_hash"),
    ],
)
async def test_a_query_of_another_shape_is_refused(
    client: httpx.AsyncClient, admin: Session, query: str, field: str
) -> None:
    response = await client.get(f"/users?{query}", headers=admin.headers)

    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert error["field"] == field


async def test_what_services_ask_about_sessions_is_answered_to_services_alone(
    client: httpx.AsyncClient, admin: Session
) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    [shown] = (await session.call("GET", "/users/sessions")).json()["data"]
    path, asking = f"/internal/sessions/{shown['id']}", service_headers("api-gateway", "user-service")

    assert (await client.get(path, headers=asking)).json() == {"ended": False}
    assert (await client.get(f"/internal/sessions/{new_id()}", headers=asking)).json() == {"ended": False}
    await session.call("POST", "/users/logout")
    assert (await client.get(path, headers=asking)).json() == {"ended": True}
    for headers in ({}, admin.headers, service_headers("api-gateway", "wallet-service")):
        assert (await client.get(path, headers=headers)).status_code == 401
    assert path not in (await client.get("/openapi.json")).text
