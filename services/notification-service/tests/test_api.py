"""What people see of their notifications, and choose."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from notification_service.app import create_app
from notification_service.domain import Kind
from notification_service.settings import NotificationSettings
from notification_service.testing import HOST, Post, completed_event, contact_event, sign_in_event
from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person, by_gateway
from shared.testing.waiting import eventually

NOWHERE = 1  # a port that nobody listens on


@pytest.fixture(scope="module")
async def client(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    settings = sandbox.settings(NotificationSettings, smtp_host=HOST, smtp_port=NOWHERE)
    async with in_process(create_app(settings)) as client:
        yield client


async def listed(client: httpx.AsyncClient, person: Person, **query: Any) -> tuple[list[dict[str, Any]], bool]:
    response = await client.get("/notifications", params=query, headers=person.headers)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["data"], body["has_more"]


async def test_what_waits_is_seen_with_its_reason(client: httpx.AsyncClient, post: Post) -> None:
    alice = Person()
    event = completed_event("deposit", alice.id)
    await post.happened(contact_event(alice.id), event)

    async def tried() -> bool:
        return all(each["reason"] for each in (await listed(client, alice))[0])

    await eventually(tried)
    found, has_more = await listed(client, alice)

    deposit = next(each for each in found if each["kind"] == "deposit")
    assert not has_more
    assert {name: deposit[name] for name in ("channel", "state", "reason", "sent_at", "read_at")} == {
        "channel": "email",
        "state": "pending",
        "reason": "smtp_unavailable",
        "sent_at": None,
        "read_at": None,
    }
    assert (deposit["title"], deposit["transaction_id"]) == ("You deposited 50.00 USD", event.subject)
    assert deposit["attempts"] >= 1
    assert "facts" not in deposit


async def test_pages_walk_through_all_of_ones_own_and_nobody_elses(client: httpx.AsyncClient, post: Post) -> None:
    alice, bob = Person(), Person()
    for _ in range(5):
        await post.happened(completed_event("transfer", alice.id, bob.id))
    mine, _ = await listed(client, alice)
    ids = [each["id"] for each in mine]
    assert len(ids) == 5
    assert {each["kind"] for each in mine} == {"money_sent"}

    def ids_of(page: tuple[list[dict[str, Any]], bool]) -> tuple[list[str], bool]:
        return [each["id"] for each in page[0]], page[1]

    assert ids_of(await listed(client, alice, limit=2)) == (ids[:2], True)
    assert ids_of(await listed(client, alice, limit=2, starting_after=ids[1])) == (ids[2:4], True)
    assert ids_of(await listed(client, alice, limit=2, starting_after=ids[3])) == (ids[4:], False)
    assert ids_of(await listed(client, alice, limit=2, ending_before=ids[4])) == (ids[2:4], True)
    foreign = await client.get("/notifications", params={"starting_after": ids[0]}, headers=bob.headers)
    missing = await client.get("/notifications", params={"starting_after": str(new_id())}, headers=bob.headers)
    assert (foreign.status_code, foreign.json()["code"]) == (404, "notification_not_found")
    assert missing.json()["code"] == foreign.json()["code"]


async def test_a_notification_is_read_once_and_by_its_owner(client: httpx.AsyncClient, post: Post) -> None:
    alice, bob = Person(), Person()
    await post.happened(completed_event("deposit", alice.id))
    [[mine], _] = await listed(client, alice)
    path = f"/notifications/{mine['id']}/read"

    refused = await client.post(path, headers=bob.headers)
    first = await client.post(path, headers=alice.headers)
    again = await client.post(path, headers=alice.headers)

    assert refused.status_code == 404
    assert first.status_code == again.status_code == 200
    assert first.json()["read_at"] is not None
    assert again.json()["read_at"] == first.json()["read_at"]
    assert (await listed(client, bob))[0] == []


async def test_preferences_are_defaults_until_they_are_chosen(client: httpx.AsyncClient) -> None:
    alice = Person()

    body = (await client.get("/notifications/preferences", headers=alice.headers)).json()

    assert [each["kind"] for each in body["data"]] == list(Kind)
    assert all(each["email"] for each in body["data"])
    assert {each["kind"] for each in body["data"] if each["sms"]} == {"new_device", "password_changed", "withdrawal"}
    assert {each["kind"] for each in body["data"] if each["always"]} == {"new_device", "password_changed"}


async def test_what_is_chosen_counts_for_the_next_event_and_for_oneself(
    client: httpx.AsyncClient, post: Post
) -> None:
    alice, bob = Person(), Person()
    chosen = [
        {"kind": "deposit", "email": False, "sms": True},
        {"kind": "new_device", "email": True, "sms": False},
    ]
    response = await client.put("/notifications/preferences", json={"preferences": chosen}, headers=alice.headers)
    assert response.status_code == 200, response.text
    seen = await client.get("/notifications/preferences", headers=alice.headers)
    assert seen.json() == response.json()
    assert {
        (each["kind"], each["email"], each["sms"])
        for each in seen.json()["data"]
        if each["kind"] in ("deposit", "new_device")
    } == {("deposit", False, True), ("new_device", True, False)}

    await post.happened(*(completed_event("deposit", each.id) for each in (alice, bob)), sign_in_event(alice.id))

    def shown(rows: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {(each["kind"], each["channel"], each["state"]) for each in rows}

    assert shown((await listed(client, alice))[0]) == {
        ("deposit", "email", "skipped"),
        ("deposit", "sms", "pending"),
        ("new_device", "email", "pending"),
        ("new_device", "sms", "skipped"),
    }
    assert shown((await listed(client, bob))[0]) == {("deposit", "email", "pending")}

    await client.put("/notifications/preferences", json={"preferences": []}, headers=alice.headers)
    back = await client.get("/notifications/preferences", headers=alice.headers)
    assert back.json() == (await client.get("/notifications/preferences", headers=bob.headers)).json()


ON = {"kind": "deposit", "email": True, "sms": True}


async def test_a_choice_is_told_with_what_counted_before_and_where_it_came_from(
    client: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    alice, admin = Person(), Person("admin")
    chosen = [{"kind": "deposit", "email": True, "sms": True}, {"kind": "refund", "email": True, "sms": False}]

    async def choose(*preferences: dict[str, Any]) -> None:
        headers = alice.headers | by_gateway("203.0.113.7", "notification-service")
        response = await client.put("/notifications/preferences", json={"preferences": preferences}, headers=headers)
        assert response.status_code == 200

    await choose(*chosen)  # of which one is the default
    await choose(*chosen)
    await choose()

    async def told() -> list[dict[str, Any]]:
        response = await client.get(f"/notifications/audit?subject={alice.id}", headers=admin.headers)
        found: list[dict[str, Any]] = response.json()["data"]
        return found[::-1] if len(found) == 2 else []

    first, second = await eventually(told)
    on, off = chosen[0], {"kind": "deposit", "email": True, "sms": False}
    assert first["data"] == {"user_id": str(alice.id), "preferences": [on], "before": [off]}
    assert second["data"] == {"user_id": str(alice.id), "preferences": [off], "before": [on]}
    for number, event in enumerate((first, second), 1):
        assert (event["type"], event["sequence"]) == ("notifications.preferences_changed.v1", number)
        assert (event["subject"], event["actor"], event["ip"]) == (str(alice.id), str(alice.id), "203.0.113.7")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"preferences": [{"kind": "new_device", "email": False, "sms": True}]}, "preferences.0.email"),
        ({"preferences": [ON, {"kind": "password_changed", "email": False, "sms": True}]}, "preferences.1.email"),
        ({"preferences": [ON, ON]}, "preferences.1.kind"),
        ({"preferences": [ON | {"kind": "advertisements"}]}, "preferences.0.kind"),
        ({"preferences": [ON | {"email": "yes"}]}, "preferences.0.email"),
        ({"preferences": [ON | {"email": 1}]}, "preferences.0.email"),
        ({"preferences": [ON | {"push": True}]}, "preferences.0.push"),
        ({"preferences": [{"kind": "deposit", "email": True}]}, "preferences.0.sms"),
        ({"preferences": {}}, "preferences"),
        ({"preferences": [ON] * 1000}, "preferences"),
        ({"preferences": [], "user_id": "x"}, "user_id"),
        ({}, "preferences"),
    ],
)
async def test_a_wrong_choice_changes_nothing_and_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], field: str
) -> None:
    alice = Person()
    await client.put("/notifications/preferences", json={"preferences": [ON]}, headers=alice.headers)
    before = await client.get("/notifications/preferences", headers=alice.headers)

    response = await client.put("/notifications/preferences", json=body, headers=alice.headers)

    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["field"] == field
    assert (await client.get("/notifications/preferences", headers=alice.headers)).json() == before.json()


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=1e9",
        "starting_after=1",
        "cursor=x",
        f"starting_after={new_id()}&ending_before={new_id()}",
    ],
)
async def test_a_wrong_page_is_refused(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/notifications?{query}", headers=Person().headers)

    assert response.status_code == 422


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/notifications"),
        ("GET", "/notifications/preferences"),
        ("PUT", "/notifications/preferences"),
        ("POST", f"/notifications/{new_id()}/read"),
    ],
)
async def test_nobody_comes_in_without_a_token(client: httpx.AsyncClient, method: str, path: str) -> None:
    assert (await client.request(method, path, json={"preferences": []})).status_code == 401
