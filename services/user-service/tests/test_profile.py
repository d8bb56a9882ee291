"""One's own account: profile, password, and its end, which needs wallet-service's word."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from fastapi import FastAPI, Header, Response

from shared.auth import ServiceTokens
from shared.errors import AppError
from shared.http.problems import install_problem_handlers
from shared.settings import DEVELOPMENT_SERVICE_SECRET
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process, serving
from user_service.app import create_app
from user_service.settings import UserSettings
from user_service.testing import PASSWORD, UNCHANGED, event_of, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]

NEW = "BetterPass456"


@dataclass
class WalletService:
    """What answers in place of wallet-service: how, and who it was asked about."""

    url: str = ""
    status: int = 200
    code: str = ""
    asked: list[UUID] = field(default_factory=list)


@pytest.fixture
async def wallets() -> AsyncIterator[WalletService]:
    stand_in, app = WalletService(), FastAPI()
    install_problem_handlers(app)

    @app.post("/internal/people/{user_id}/close")
    async def close(user_id: UUID, authorization: Annotated[str, Header()]) -> Response:
        tokens = ServiceTokens(DEVELOPMENT_SERVICE_SECRET, "wallet-service")
        assert tokens.verify(authorization.removeprefix("Bearer ")) == "user-service"
        stand_in.asked.append(user_id)
        if stand_in.status != 200:
            raise AppError(stand_in.code, stand_in.status, "Not now.")
        return Response(b'{"closed": 2}', media_type="application/json")

    async with serving(app) as url:
        stand_in.url = url
        yield stand_in


@pytest.fixture
async def beside_wallets(sandbox: Sandbox, wallets: WalletService) -> AsyncIterator[httpx.AsyncClient]:
    """user-service whose wallet-service is the stand-in."""
    settings = sandbox.settings(
        UserSettings, bcrypt_rounds=4, kafka_bootstrap_servers="127.0.0.1:1", wallet_service_url=wallets.url
    )
    async with in_process(create_app(settings)) as client:
        yield client


async def told(rows: Rows) -> list[dict[str, Any]]:
    """The events since the registration and the first sign-in."""
    found = [event_of(row) for row in await rows("select payload from outbox order by position")]
    return [event for event in found if event["type"] not in {"users.registered.v1", "users.signed_in.v1"}]


# --------------------------------------------------------------------------------------------------------- profile


async def test_name_and_phone_can_be_changed_one_by_one(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()

    response = await session.call("PATCH", "/users/me", phone="+4915112345678")

    assert response.status_code == 200
    user = response.json()
    assert (user["id"], user["first_name"], user["last_name"], user["phone"]) == (
        alice.id,
        "Alice",
        "Doe",
        "+4915112345678",
    )
    assert (await session.call("GET", "/users/me")).json() == user
    response = await session.call("PATCH", "/users/me", first_name="Alicia", last_name="Roe")
    assert (response.json()["first_name"], response.json()["last_name"]) == ("Alicia", "Roe")
    first, second = await told(rows)
    assert (first["type"], first["sequence"], first["actor"]) == ("users.updated.v1", 3, alice.id)
    assert first["data"]["before"] == UNCHANGED | {"phone": "+1234567890"}
    assert second == {
        "type": "users.updated.v1",
        "sequence": 4,
        "actor": alice.id,
        "data": {
            "user_id": alice.id,
            "email": "alice@example.com",
            "phone": "+4915112345678",
            "first_name": "Alicia",
            "last_name": "Roe",
            "role": "user",
            "status": "active",
            "before": UNCHANGED | {"first_name": "Alice", "last_name": "Doe"},
        },
    }


async def test_what_is_the_same_already_is_no_change(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()

    same = await session.call("PATCH", "/users/me", first_name="Alice")
    nothing = await client.patch("/users/me", json={}, headers=session.headers)

    assert (same.status_code, nothing.status_code) == (200, 200)
    assert await told(rows) == []


@pytest.mark.parametrize(
    "change",
    [
        {"role": "admin"},
        {"role": ["admin"]},
        {"role": "Admin"},
        {"status": "active"},
        {"email": "other@example.com"},
        {"password": "BetterPass456"},
        {"id": "0190b6a0-7c1e-7000-8000-000000000000"},
        {"is_verified": True},
        {"first_name": None},
        {"first_name": ""},
        {"first_name": "a\nb"},
        {"first_name": "x" * 101},
        {"last_name": 7},
        {"phone": None},
        {"phone": "1234567890"},
        {"phone": ""},
        {"first_name": "Eve", "role": "admin"},
    ],
    ids=str,
)
async def test_nothing_else_can_be_changed(client: httpx.AsyncClient, rows: Rows, change: dict[str, Any]) -> None:
    session = await (await somebody(client)).sign_in()
    before = await rows("select * from users")

    response = await session.call("PATCH", "/users/me", **change)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert await rows("select * from users") == before
    assert await told(rows) == []


async def test_changes_at_once_leave_no_gap_in_the_events(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()

    await asyncio.gather(*(session.call("PATCH", "/users/me", first_name=f"Alice {n}") for n in range(20)))

    events = await told(rows)
    assert [event["sequence"] for event in events] == list(range(3, 23))
    [row] = await rows("select first_name from users")
    assert events[-1]["data"]["first_name"] == row["first_name"]


# -------------------------------------------------------------------------------------------------------- password


async def test_a_changed_password_ends_the_other_sessions(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    others = [await alice.sign_in() for _ in range(3)]
    session = await alice.sign_in()

    response = await session.call("POST", "/users/me/password", current_password=PASSWORD, new_password=NEW)

    assert (response.status_code, response.content) == (204, b"")
    assert await session.is_alive()
    assert (await session.try_refresh()).status_code == 200
    for other in others:
        assert not await other.is_alive()
        assert (await other.try_refresh()).status_code == 401
    assert (await alice.try_to_sign_in(PASSWORD)).status_code == 401
    assert (await alice.try_to_sign_in(NEW)).status_code == 200
    changed, ended = await told(rows)
    assert (changed["type"], changed["sequence"]) == ("users.password_changed.v1", 6)
    assert changed["data"]["email"] == "alice@example.com"
    assert (ended["type"], ended["sequence"]) == ("users.sessions_ended.v1", 7)
    assert (len(ended["data"]["session_ids"]), ended["data"]["reason"]) == (3, "password_changed")
    for row in await rows("select payload from outbox"):
        assert NEW not in row["payload"]
        assert "bcrypt" not in row["payload"]


async def test_a_password_is_changed_by_whoever_knows_it(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    before = await rows("select password_hash from users")

    response = await session.call("POST", "/users/me/password", current_password="SecurePass124", new_password=NEW)

    assert (response.status_code, response.json()["code"]) == (403, "wrong_password")
    assert await rows("select password_hash from users") == before
    assert await told(rows) == []
    assert await session.is_alive()


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (PASSWORD, "password_unchanged"),
        ("x" * 7, "string_too_short"),
        ("x" * 1025, "string_too_long"),
        ("password123", "password_common"),
        ("PassWord123", "password_common"),
        ("alice@example.com", "password_is_email"),
        ("ALICE@example.com", "password_is_email"),
    ],
)
async def test_a_new_password_has_to_be_a_good_one(
    client: httpx.AsyncClient, rows: Rows, new: str, code: str
) -> None:
    alice = await somebody(client)
    session, other = await alice.sign_in(), await alice.sign_in()

    response = await session.call("POST", "/users/me/password", current_password=PASSWORD, new_password=new)

    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert (error["field"], error["code"]) == ("new_password", code)
    assert await told(rows) == []
    assert await other.is_alive()


@pytest.mark.parametrize(
    ("email", "password", "code"),
    [
        ("user@example.com", "12345678", "password_common"),
        ("user@example.com", "iLoveYou1", "password_common"),
        ("longname@example.com", "LongName", "password_is_email"),
        ("user@example.com", "user@example.com", "password_is_email"),
    ],
)
async def test_a_password_that_is_guessed_first_cannot_be_registered(
    client: httpx.AsyncClient, rows: Rows, email: str, password: str, code: str
) -> None:
    body = {"email": email, "password": password, "first_name": "J", "last_name": "D", "phone": "+1234567890"}

    response = await client.post("/users/register", json=body)

    assert response.status_code == 422
    [error] = response.json()["errors"]
    assert (error["field"], error["code"]) == ("password", code)
    assert password not in response.text
    assert await rows("select * from users") == []


async def test_of_two_changes_at_once_from_the_same_password_one_wins(client: httpx.AsyncClient) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    candidates = [f"BetterPass45{number}" for number in range(4)]

    answers = await asyncio.gather(
        *(
            session.call("POST", "/users/me/password", current_password=PASSWORD, new_password=candidate)
            for candidate in candidates
        )
    )

    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [204, 403, 403, 403]
    for candidate, status in zip(candidates, statuses, strict=True):
        assert (await alice.try_to_sign_in(candidate)).status_code == (200 if status == 204 else 401)


async def test_no_session_begins_with_a_password_that_was_changed_meanwhile(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()

    async def sign_in() -> int:
        return (await alice.try_to_sign_in(PASSWORD)).status_code

    async def change() -> int:
        body = {"current_password": PASSWORD, "new_password": NEW}
        return (await session.call("POST", "/users/me/password", **body)).status_code

    *statuses, changed = await asyncio.gather(*(sign_in() for _ in range(3)), change())

    assert changed == 204
    assert set(statuses) <= {200, 401}
    [row] = await rows("select count(*) as live from sessions where ended_at is null")
    assert row["live"] == 1  # those that began before the change were ended by it, the others never began


# ------------------------------------------------------------------------------------------------------------- end


async def test_an_account_is_closed_with_its_wallets_for_good(
    beside_wallets: httpx.AsyncClient, wallets: WalletService, rows: Rows
) -> None:
    alice = await somebody(beside_wallets)
    session, other = await alice.sign_in(), await alice.sign_in()

    response = await session.call("DELETE", "/users/me", password=PASSWORD)

    assert (response.status_code, response.content) == (204, b"")
    assert wallets.asked == [UUID(alice.id)]
    for ended in (session, other):
        assert not await ended.is_alive()
        assert (await ended.try_refresh()).status_code == 401
    assert (await alice.try_to_sign_in()).status_code == 401
    body = {"email": alice.email, "password": NEW, "first_name": "A", "last_name": "D", "phone": "+1234567890"}
    assert (await beside_wallets.post("/users/register", json=body)).status_code == 409
    closed, ended_event = await told(rows)
    assert (closed["type"], closed["sequence"], closed["data"]["status"]) == ("users.closed.v1", 4, "closed")
    assert closed["data"]["email"] == alice.email
    assert closed["data"]["before"] == UNCHANGED | {"status": "active"}
    assert (ended_event["sequence"], ended_event["data"]["reason"]) == (5, "closed")


async def test_an_account_with_money_stays(
    beside_wallets: httpx.AsyncClient, wallets: WalletService, rows: Rows
) -> None:
    wallets.status, wallets.code = 409, "wallet_not_empty"
    session = await (await somebody(beside_wallets)).sign_in()

    response = await session.call("DELETE", "/users/me", password=PASSWORD)

    assert (response.status_code, response.json()["code"]) == (409, "wallet_not_empty")
    assert await session.is_alive()
    assert await told(rows) == []
    wallets.status = 200
    assert (await session.call("DELETE", "/users/me", password=PASSWORD)).status_code == 204


@pytest.mark.parametrize(
    ("status", "code"), [(500, "internal_error"), (503, "unavailable"), (404, "x"), (409, "busy")]
)
async def test_without_wallet_services_word_nothing_is_closed(
    beside_wallets: httpx.AsyncClient, wallets: WalletService, rows: Rows, status: int, code: str
) -> None:
    wallets.status, wallets.code = status, code
    session = await (await somebody(beside_wallets)).sign_in()

    response = await session.call("DELETE", "/users/me", password=PASSWORD)

    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert response.headers["retry-after"] == "1"
    assert await session.is_alive()
    assert await told(rows) == []


async def test_an_account_is_closed_by_whoever_knows_its_password(
    beside_wallets: httpx.AsyncClient, wallets: WalletService
) -> None:
    session = await (await somebody(beside_wallets)).sign_in()

    wrong = await session.call("DELETE", "/users/me", password="SecurePass124")
    missing = await session.call("DELETE", "/users/me")
    empty = await beside_wallets.request("DELETE", "/users/me", json={}, headers=session.headers)

    assert (wrong.status_code, wrong.json()["code"]) == (403, "wrong_password")
    assert missing.status_code in {415, 422}
    assert empty.status_code == 422
    assert wallets.asked == []
    assert await session.is_alive()
