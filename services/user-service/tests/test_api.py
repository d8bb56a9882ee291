"""Registration, login and profiles over HTTP and a real PostgreSQL."""

import asyncio
import io
import json
import re
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from shared.auth import UserTokens
from shared.settings import README_JWT_SECRET
from shared.testing.tokens import Person, service_headers

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]

JSON = {"Content-Type": "application/json"}
PASSWORD = "SecurePass123"

# As curl sends them when the README's samples are pasted into a shell.
README_REGISTER = b"""{
    "email": "user@example.com",
    "password": "SecurePass123",
    "first_name": "John",
    "last_name": "Doe",
    "phone": "+1234567890",
    "role": "user"
  }"""
README_LOGIN = b"""{
    "email": "user@example.com",
    "password": "SecurePass123"
  }"""


def somebody(**changes: Any) -> dict[str, Any]:
    """A registration, with changes; `...` leaves a field out."""
    fields = {
        "email": "user@example.com",
        "password": "SecurePass123",
        "first_name": "John",
        "last_name": "Doe",
        "phone": "+1234567890",
        "role": "user",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


async def register(client: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    # A body of our own making: httpx cannot encode a lone surrogate, an attacker can.
    return await client.post("/users/register", content=json.dumps(somebody(**changes)).encode(), headers=JSON)


async def registered(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    response = await register(client, **changes)
    assert response.status_code == 201, response.text
    user: dict[str, Any] = response.json()
    return user


async def log_in(
    client: httpx.AsyncClient, email: str = "user@example.com", password: str = PASSWORD
) -> httpx.Response:
    return await client.post("/users/login", json={"email": email, "password": password})


async def token_of(client: httpx.AsyncClient) -> dict[str, str]:
    response = await log_in(client)
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


async def assert_nobody(rows: Rows) -> None:
    assert await rows("select * from users") == []
    assert await rows("select * from outbox") == []


def assert_invalid(response: httpx.Response, field: str, code: str | None = None) -> None:
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "validation_failed"
    [error] = problem["errors"]
    assert error["field"] == field
    assert code is None or error["code"] == code


# --------------------------------------------------------------------------------------------------- registration


async def test_the_readmes_registration_makes_a_user(client: httpx.AsyncClient, rows: Rows) -> None:
    before = datetime.now(UTC)
    response = await client.post("/users/register", content=README_REGISTER, headers=JSON)

    assert response.status_code == 201
    user = response.json()
    assert user.keys() == {"id", "email", "first_name", "last_name", "phone", "role", "status", "created_at"}
    assert UUID(user["id"]).version == 7
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", user["created_at"])
    assert abs(datetime.fromisoformat(user["created_at"]) - before) < timedelta(minutes=1)
    assert {name: value for name, value in user.items() if name not in {"id", "created_at"}} == {
        "email": "user@example.com",
        "first_name": "John",
        "last_name": "Doe",
        "phone": "+1234567890",
        "role": "user",
        "status": "active",
    }
    [row] = await rows("select * from users")
    assert (str(row["id"]), row["email"], row["role"], row["status"]) == (
        user["id"],
        "user@example.com",
        "user",
        "active",
    )
    assert row["password_hash"].startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert response.headers["cache-control"] == "no-store"


async def test_a_role_that_is_not_given_is_user_and_merchant_may_be_chosen(client: httpx.AsyncClient) -> None:
    assert (await registered(client, role=...))["role"] == "user"
    assert (await registered(client, email="shop@example.com", role="merchant"))["role"] == "merchant"


@pytest.mark.parametrize(
    "role",
    [
        "admin",
        "Admin",
        "ADMIN",
        " admin",
        "admin\n",
        "ａdmin",
        ["admin"],
        ["user"],
        {"role": "admin"},
        "",
        None,
        True,
        0,
    ],
    ids=repr,
)
async def test_nobody_becomes_an_admin_by_asking(client: httpx.AsyncClient, rows: Rows, role: Any) -> None:
    response = await register(client, role=role)

    assert_invalid(response, "role")
    await assert_nobody(rows)


@pytest.mark.parametrize(
    "field",
    ["is_admin", "is_verified", "status", "id", "balance", "password_hash", "created_at", "Role", "", "__proto__"],
)
async def test_a_field_that_is_unknown_is_refused(client: httpx.AsyncClient, rows: Rows, field: str) -> None:
    response = await register(client, **{field: "active"})

    assert_invalid(response, field or "body", "extra_forbidden")
    await assert_nobody(rows)


async def test_two_roles_in_one_body_are_refused(client: httpx.AsyncClient, rows: Rows) -> None:
    body = README_REGISTER.replace(b'"role": "user"', b'"role": "user", "role": "admin"')

    response = await client.post("/users/register", content=body, headers=JSON)

    assert (response.status_code, response.json()["code"]) == (400, "json_invalid")
    await assert_nobody(rows)


@pytest.mark.parametrize("field", ["email", "password", "first_name", "last_name", "phone"])
@pytest.mark.parametrize("value", [..., None, "", 7, True, ["x"], {"$ne": ""}, "\x00", "\ud800"], ids=repr)
async def test_a_field_that_is_missing_or_of_another_type_is_named(
    client: httpx.AsyncClient, rows: Rows, field: str, value: Any
) -> None:
    response = await register(client, **{field: value})

    assert_invalid(response, field)
    await assert_nobody(rows)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("USER@EXAMPLE.COM", "user@example.com"),
        ("User.Name+tag@Example.Com", "user.name+tag@example.com"),
        ("user@EXÄMPLE.com", "user@exämple.com"),
        ("user@xn--exmple-cua.com", "user@exämple.com"),
        ("u\u0308ser@example.com", "üser@example.com"),
    ],
)
async def test_an_address_has_one_canonical_form(
    client: httpx.AsyncClient, rows: Rows, given: str, stored: str
) -> None:
    assert (await registered(client, email=given))["email"] == stored
    assert (await log_in(client, email=given)).json()["user"]["email"] == stored

    taken = await register(client, email=stored)

    assert taken.status_code == 409
    assert [row["email"] for row in await rows("select email from users")] == [stored]


@pytest.mark.parametrize(
    "email",
    [
        "user",
        "user@",
        "@example.com",
        "user@localhost",
        "user@@example.com",
        "user@example..com",
        "user@-example.com",
        "user name@example.com",
        " user@example.com",
        "user@example.com ",
        "user@example.com\n",
        "user@example.com\r\nBcc: all@example.com",
        "user@[127.0.0.1]",
        "John <user@example.com>",
        "user@example.com,other@example.com",
        "user@exa\u202emple.com",
        "us\u0000er@example.com",
        "' or 1=1 --@example.com",
        "a" * 65 + "@example.com",
        "a@" + "b" * 250 + ".com",
    ],
    ids=lambda email: ascii(email)[:40],
)
async def test_what_is_no_address_is_refused(client: httpx.AsyncClient, rows: Rows, email: str) -> None:
    assert_invalid(await register(client, email=email), "email")
    await assert_nobody(rows)


@pytest.mark.parametrize("email", ["user@example.com", "User@Example.com", "USER@EXAMPLE.COM"])
async def test_a_second_registration_with_the_same_address_is_a_conflict(
    client: httpx.AsyncClient, rows: Rows, email: str
) -> None:
    first = await registered(client)

    response = await register(client, email=email, password="AnotherPass456", first_name="Eve", role="merchant")

    assert (response.status_code, response.json()["code"]) == (409, "email_taken")
    assert first["id"] not in response.text
    [row] = await rows("select id, first_name, role from users")
    assert (str(row["id"]), row["first_name"], row["role"]) == (first["id"], "John", "user")
    assert len(await rows("select * from outbox")) == 1
    assert (await log_in(client, password="AnotherPass456")).status_code == 401
    assert (await log_in(client)).status_code == 200


async def test_of_twenty_registrations_at_once_one_succeeds(client: httpx.AsyncClient, rows: Rows) -> None:
    emails = ["user@example.com", "USER@example.com", "User@Example.COM", "user@EXAMPLE.com"] * 5

    responses = await asyncio.gather(*(register(client, email=email) for email in emails))

    assert sorted(response.status_code for response in responses) == [201] + [409] * 19
    [winner] = [response.json()["id"] for response in responses if response.status_code == 201]
    assert [str(row["id"]) for row in await rows("select id from users")] == [winner]
    assert [row["key"] for row in await rows("select key from outbox")] == [winner]


@pytest.mark.parametrize("length", [8, 72, 73, 1024])
@pytest.mark.parametrize("letter", ["x", "é", "😀"])
async def test_every_character_of_a_password_counts(client: httpx.AsyncClient, length: int, letter: str) -> None:
    password = letter * length
    await registered(client, password=password)

    assert (await log_in(client, password=password)).status_code == 200
    for wrong in (password[:-1], password[:-1] + "y", "y" + password[1:], password[:72] + "y"):
        response = await log_in(client, password=wrong)
        assert (response.status_code, response.json()["code"]) == (401, "invalid_credentials")


@pytest.mark.parametrize(
    ("password", "code"),
    [
        ("x" * 7, "string_too_short"),
        ("😀" * 7, "string_too_short"),
        ("x" * 1025, "string_too_long"),
        ("", "string_too_short"),
    ],
    ids=["7", "7-emoji", "1025", "0"],
)
async def test_a_password_has_eight_to_1024_characters(
    client: httpx.AsyncClient, rows: Rows, password: str, code: str
) -> None:
    response = await register(client, password=password)

    assert_invalid(response, "password", code)
    await assert_nobody(rows)


async def test_a_password_of_blanks_is_not_trimmed(client: httpx.AsyncClient) -> None:
    await registered(client, password=" SecurePass123 ")

    assert (await log_in(client, password=" SecurePass123 ")).status_code == 200
    assert (await log_in(client, password="SecurePass123")).status_code == 401


@pytest.mark.parametrize("phone", ["+1234567", "+1234567890", "+123456789012345", "+4915112345678"])
async def test_a_phone_number_is_in_e164(client: httpx.AsyncClient, phone: str) -> None:
    assert (await registered(client, phone=phone))["phone"] == phone


@pytest.mark.parametrize(
    "phone",
    [
        "1234567890",
        "+123456",
        "+1234567890123456",
        "+0123456789",
        "++1234567890",
        "+1 234 567 890",
        "+1-234-567-890",
        "+1234567890 ",
        "+1234567890\n",
        "+1234567890;ext=1",
        "+١٢٣٤٥٦٧٨٩٠",
        "＋1234567890",
        "+12345x7890",
        "001234567890",
    ],
    ids=ascii,
)
async def test_what_is_no_phone_number_is_refused(client: httpx.AsyncClient, rows: Rows, phone: str) -> None:
    assert_invalid(await register(client, phone=phone), "phone", "string_pattern_mismatch")
    await assert_nobody(rows)


@pytest.mark.parametrize("name", ["J", "José", "Мария", "李", "O'Brien", "van der Berg-Smith", "x" * 100, "😀"])
async def test_a_name_is_kept_as_it_is_written(client: httpx.AsyncClient, name: str) -> None:
    user = await registered(client, first_name=name, last_name=name)

    assert (user["first_name"], user["last_name"]) == (name, name)


@pytest.mark.parametrize("field", ["first_name", "last_name"])
@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\r\nb", "a\tb", "\x1b[31mred", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "\n", "x" * 101],
    ids=lambda name: ascii(name)[:20],
)
async def test_a_name_is_one_line_of_a_hundred_characters(
    client: httpx.AsyncClient, rows: Rows, field: str, name: str
) -> None:
    assert_invalid(await register(client, **{field: name}), field)
    await assert_nobody(rows)


async def test_text_that_looks_like_sql_or_markup_is_only_text(client: httpx.AsyncClient, rows: Rows) -> None:
    name = "'); drop table users; --<script>{{7*7}}"

    user = await registered(client, first_name=name)

    assert user["first_name"] == name
    assert [row["first_name"] for row in await rows("select first_name from users")] == [name]


# ---------------------------------------------------------------------------------------------------------- events


async def test_a_registration_stores_its_event_with_the_persons_contact(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    headers = JSON | {
        "X-Request-Id": "registration-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    response = await client.post("/users/register", content=README_REGISTER, headers=headers)
    user_id = response.json()["id"]

    [row] = await rows("select * from outbox")
    assert (row["topic"], row["key"]) == ("users.events", user_id)
    event = json.loads(row["payload"])
    assert event.pop("id") == str(row["event_id"])
    assert datetime.fromisoformat(event.pop("time")).tzinfo is not None
    assert event == {
        "specversion": "1.0",
        "source": "users",
        "type": "users.registered.v1",
        "subject": user_id,
        "datacontenttype": "application/json",
        "sequence": 1,
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "requestid": "registration-1",
        "actor": user_id,
        "data": {
            "user_id": user_id,
            "email": "user@example.com",
            "phone": "+1234567890",
            "first_name": "John",
            "last_name": "Doe",
            "role": "user",
            "status": "active",
        },
    }


async def test_a_registration_whose_event_cannot_be_stored_leaves_no_user(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    await rows("revoke insert on outbox from user_service")
    try:
        response = await register(client)
    finally:
        await rows("grant insert on outbox to user_service")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    await assert_nobody(rows)
    assert (await register(client)).status_code == 201


async def test_a_registration_whose_user_cannot_be_stored_leaves_no_event(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    await rows("revoke insert on users from user_service")
    try:
        response = await register(client)
    finally:
        await rows("grant insert on users to user_service")

    assert (response.status_code, response.json()["code"]) == (500, "internal_error")
    await assert_nobody(rows)


# ----------------------------------------------------------------------------------------------------------- login


async def test_the_readmes_login_answers_an_access_token(client: httpx.AsyncClient) -> None:
    user = await registered(client)

    response = await client.post("/users/login", content=README_LOGIN, headers=JSON)

    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (body["token_type"], body["expires_in"], body["user"]) == ("Bearer", 900, user)
    principal = UserTokens(README_JWT_SECRET).verify(body["access_token"])
    assert (str(principal.user_id), principal.role) == (user["id"], "user")
    assert response.headers["cache-control"] == "no-store"


async def test_a_token_carries_the_role(client: httpx.AsyncClient) -> None:
    user = await registered(client, role="merchant")

    token = (await log_in(client)).json()["access_token"]

    principal = UserTokens(README_JWT_SECRET).verify(token)
    assert (str(principal.user_id), principal.role) == (user["id"], "merchant")


async def test_wrong_unknown_and_disabled_are_the_same_answer(client: httpx.AsyncClient, rows: Rows) -> None:
    await registered(client)
    wrong = await log_in(client, password="SecurePass124")
    unknown = await log_in(client, email="nobody@example.com")
    await rows("update users set status = 'disabled'")
    disabled = await log_in(client)
    await rows("update users set status = 'closed'")
    closed = await log_in(client)

    answers = []
    for response in (wrong, unknown, disabled, closed):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        body = response.json()
        assert body.pop("request_id") == response.headers["x-request-id"]
        answers.append((body, sorted(response.headers.keys())))
    assert answers == [answers[0]] * 4
    assert answers[0][0]["code"] == "invalid_credentials"


@pytest.mark.parametrize(
    "password", ["securepass123", "SECUREPASS123", "SecurePass123 ", " SecurePass123", "SecurePass12"]
)
async def test_a_password_that_is_almost_right_is_wrong(client: httpx.AsyncClient, password: str) -> None:
    await registered(client)

    assert (await log_in(client, password=password)).status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"email": "user@example.com"},
        {"password": "SecurePass123"},
        {"email": {"$ne": ""}, "password": "SecurePass123"},
        {"email": "user@example.com", "password": {"$ne": ""}},
        {"email": "user@example.com", "password": ["SecurePass123"]},
        {"email": "user@example.com", "password": "x" * 1025},
        {"email": "user@example.com", "password": "SecurePass123", "role": "admin"},
        {"email": "user@example.com' or '1'='1", "password": "SecurePass123"},
    ],
)
async def test_a_login_of_another_shape_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await registered(client)

    response = await client.post("/users/login", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert "access_token" not in response.text


# --------------------------------------------------------------------------------------------------------- profile


async def test_the_profile_is_the_callers(client: httpx.AsyncClient) -> None:
    user = await registered(client)
    await registered(client, email="other@example.com")

    response = await client.get("/users/me", headers=await token_of(client))

    assert (response.status_code, response.json()) == (200, user)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer x.y.z"},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"X-User-Id": "0190b6a0-7c1e-7000-8000-000000000000"},
        service_headers("wallet-service", "user-service"),
        service_headers("wallet-service", "payment-system-api"),
    ],
    ids=["none", "empty", "scheme", "blank", "garbage", "basic", "forged-id", "service", "service-as-user"],
)
async def test_without_a_token_of_ones_own_there_is_no_profile(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    user = await registered(client)

    response = await client.get("/users/me", headers=headers)

    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert user["email"] not in response.text


async def test_two_authorization_headers_are_none(client: httpx.AsyncClient) -> None:
    await registered(client)
    mine = (await token_of(client))["Authorization"]

    response = await client.get("/users/me", headers=[("Authorization", mine), ("Authorization", mine)])

    assert response.status_code == 401


async def test_the_token_of_a_user_who_is_gone_counts_no_more(client: httpx.AsyncClient, rows: Rows) -> None:
    await registered(client)
    headers = await token_of(client)
    await rows("truncate users, sessions")

    gone = await client.get("/users/me", headers=headers)
    never = await client.get("/users/me", headers=Person().headers)

    for response in (gone, never):
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


@pytest.mark.parametrize("status", ["disabled", "closed"])
async def test_the_token_of_a_user_who_was_disabled_counts_no_more(
    client: httpx.AsyncClient, rows: Rows, status: str
) -> None:
    await registered(client)
    headers = await token_of(client)
    await rows("update users set status = $1", status)

    assert (await client.get("/users/me", headers=headers)).status_code == 401


# ------------------------------------------------------------------------------------------------ logs and health


async def test_no_password_hash_or_token_is_ever_logged(
    client: httpx.AsyncClient, rows: Rows, log: io.StringIO
) -> None:
    password, wrong = "correct-horse-7f3a", "battery-staple-9c1d"
    await registered(client, password=password)
    token = (await log_in(client, password=password)).json()["access_token"]
    await log_in(client, password=wrong)
    await register(client, password=wrong)
    await register(client, password=wrong, role="admin")
    await client.post("/users/login", content=b'{"password": "%s"' % wrong.encode(), headers=JSON)
    await client.get("/users/me", headers={"Authorization": f"Bearer {token}"})
    await client.get("/users/me", headers={"Authorization": f"Bearer {token}x"})
    [row] = await rows("select password_hash from users")
    for table in ("outbox", "users"):
        await rows(f"revoke insert on {table} from user_service")
        failed = await register(client, password=wrong, email="other@example.com")
        await rows(f"grant insert on {table} to user_service")
        assert failed.status_code == 500

    text = log.getvalue()
    assert text.count("unexpected error") == 2
    for secret in (password, wrong, token, row["password_hash"], "$bcrypt-sha256$"):
        assert secret not in text
    for line in text.splitlines():
        assert json.loads(line)["service"] == "user-service"


async def test_without_kafka_and_mongodb_the_service_works_on_and_says_so(client: httpx.AsyncClient) -> None:
    response = await client.get("/health")

    assert response.status_code == 200
    assert response.json() == {
        "status": "degraded",
        "dependencies": {"postgres": "up", "redis": "up", "kafka": "down", "mongodb": "down"},
    }


async def test_the_documentation_names_every_operation_and_its_errors(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    for path, method, statuses in (
        ("/users/register", "post", {"201", "400", "409", "413", "415", "422", "503"}),
        ("/users/login", "post", {"200", "400", "401", "413", "415", "422", "429", "503"}),
        ("/users/refresh", "post", {"200", "400", "401", "413", "415", "422", "503"}),
        ("/users/logout", "post", {"204", "401", "503"}),
        ("/users/sessions", "get", {"200", "401", "503"}),
        ("/users/sessions/{session_id}", "delete", {"204", "401", "404", "422", "503"}),
        ("/users/me", "patch", {"200", "400", "401", "413", "415", "422", "503"}),
        ("/users/me", "delete", {"204", "400", "401", "403", "409", "413", "415", "422", "429", "503"}),
        ("/users/me/password", "post", {"204", "400", "401", "403", "413", "415", "422", "429", "503"}),
        ("/users", "get", {"200", "401", "403", "422", "503"}),
        ("/users/{user_id}", "get", {"200", "401", "403", "404", "422", "503"}),
        ("/users/{user_id}/disable", "post", {"200", "401", "403", "404", "409", "503"}),
        ("/users/{user_id}/enable", "post", {"200", "401", "403", "404", "409", "503"}),
        ("/users/me", "get", {"200", "401", "422", "503"}),
    ):
        assert document["paths"][path][method]["responses"].keys() >= statuses
    assert (await client.get("/docs")).status_code == 200
