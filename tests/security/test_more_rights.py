"""More rights: nobody makes themself an admin, a merchant, an owner or rich by saying so."""

from typing import Any, Final

import httpx
import pytest

from shared.ids import new_id
from tests.security.people import PASSWORD, Actor, Books, newcomer, registration, signed_in

ROLES: Final[list[Any]] = [
    "admin",
    "Admin",
    "ADMIN",
    " admin",
    "admin ",
    "admin\u0000",
    "аdmin",
    "root",
    "",
    ["admin"],
    ["user", "admin"],
    {"admin": True},
    {"$ne": "user"},
    True,
    1,
    None,
]
EXTRA: Final[dict[str, Any]] = {
    "id": "01900000-0000-7000-8000-000000000001",
    "user_id": "01900000-0000-7000-8000-000000000002",
    "status": "active",
    "is_admin": True,
    "is_verified": True,
    "permissions": ["*"],
    "password_hash": "x",
    "balance": "1000000.00",
    "created_at": "2020-01-01T00:00:00Z",
    "__proto__": {"role": "admin"},
    "constructor": {"prototype": {"role": "admin"}},
    "role ": "admin",
    "Role": "admin",
}


def assert_field_refused(response: httpx.Response, field: str) -> None:
    assert response.status_code == 422, response.text
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize("role", ROLES, ids=repr)
async def test_nobody_registers_as_more_than_a_merchant(client: httpx.AsyncClient, books: Books, role: Any) -> None:
    before = await books.state()

    assert_field_refused(await client.post("/users/register", json=registration(role=role)), "role")

    assert await books.state() == before


async def test_a_role_that_comes_twice_is_refused(client: httpx.AsyncClient, books: Books) -> None:
    before = await books.state()
    body = (
        b'{"email":"x@example.com","password":"SecurePass123","first_name":"J","last_name":"D","phone":"+1234567890"'
    )
    for roles in (
        b',"role":"user","role":"admin"}',
        b',"role":"admin","role":"user"}',
        b',"role":"user","r\\u006fle":"admin"}',
    ):
        response = await client.post(
            "/users/register", content=body + roles, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 400

    assert await books.state() == before


@pytest.mark.parametrize("name", EXTRA)
async def test_nobody_registers_with_what_is_not_theirs_to_say(
    client: httpx.AsyncClient, books: Books, name: str
) -> None:
    before = await books.state()

    response = await client.post("/users/register", json=registration(**{name: EXTRA[name]}))

    assert_field_refused(response, name)
    assert await books.state() == before


@pytest.mark.parametrize(
    "change",
    [
        *({"role": role} for role in ("admin", "merchant", ["admin"])),
        *({name: value} for name, value in EXTRA.items()),
        {"email": "admin@example.com"},
        {"password": "AnotherPass789"},
        {"first_name": "Jane", "role": "admin"},
        {"first_name": None},
        {"first_name": ["Jane"]},
    ],
    ids=repr,
)
async def test_nobody_changes_by_patch_what_is_not_theirs_to_change(
    alice: Actor, books: Books, change: dict[str, Any]
) -> None:
    before = await books.state()

    response = await alice.call("PATCH", "/users/me", change)

    assert response.status_code == 422
    assert await books.state() == before
    assert (await alice.call("GET", "/users")).status_code == 403
    await signed_in(alice.client, alice.email)


async def test_a_query_says_nothing_about_rights(client: httpx.AsyncClient, alice: Actor, books: Books) -> None:
    body = registration()
    response = await client.post("/users/register?role=admin&is_admin=true", json=body)
    patched = await alice.call("PATCH", "/users/me?role=admin", {"first_name": "Jane"})

    assert (response.json()["role"], patched.json()["role"]) == ("user", "user")
    assert await books.sql("select role from users.users where email = $1", body["email"]) == [("user",)]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/users/me"),
        ("POST", "/users/me"),
        ("PATCH", "/users/{id}"),
        ("PUT", "/users/{id}"),
        ("DELETE", "/users/{id}"),
        ("POST", "/users/{id}/promote"),
        ("POST", "/users/{id}/role"),
        ("POST", "/users"),
        ("POST", "/users/create-admin"),
        ("PATCH", "/wallets/{id}"),
        ("PUT", "/wallets/{id}/balance"),
        ("POST", "/wallets/{id}/entries"),
        ("DELETE", "/wallets/{id}"),
        ("PATCH", "/transactions/{id}"),
        ("DELETE", "/transactions/{id}"),
        ("POST", "/payments/{id}"),
    ],
)
async def test_there_is_no_way_around_what_there_is(
    alice: Actor, admin: Actor, books: Books, method: str, path: str
) -> None:
    """Not even for an admin."""
    before = await books.state()
    for actor in (alice, admin):
        body = {"role": "admin", "balance": "1.00", "status": "completed", "password": PASSWORD}
        response = await actor.call(method, path.replace("{id}", alice.id), body)
        assert response.status_code in {404, 405}

    assert await books.state() == before


@pytest.mark.parametrize("role", ["user", "merchant"])
async def test_what_is_an_admins_is_closed_to_everybody_else(
    client: httpx.AsyncClient, alice: Actor, admin: Actor, books: Books, role: str
) -> None:
    somebody = await newcomer(client, role=role)
    wallet_id = await alice.wallet()
    before = await books.state()
    for method, path in (
        ("GET", "/users"),
        ("GET", "/users?role=admin"),
        ("GET", f"/users/{admin.id}"),
        ("GET", f"/users/{somebody.id}"),
        ("GET", f"/users/{new_id()}"),
        ("POST", f"/users/{admin.id}/disable"),
        ("POST", f"/users/{somebody.id}/enable"),
        ("POST", f"/users/{new_id()}/disable"),
    ):
        response = await somebody.call(method, path)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    for wish in ("freeze", "unfreeze", "close"):
        assert (await somebody.call("POST", f"/wallets/{wallet_id}/{wish}")).status_code == 404

    assert await books.state() == before


async def test_an_admin_moves_nobodys_money(alice: Actor, admin: Actor, books: Books) -> None:
    shop = await newcomer(admin.client, role="merchant")
    source, target, shops = await alice.wallet(), await admin.wallet("CHF"), await shop.wallet()
    await alice.deposit(source)
    before = await books.state(admin)
    refused = [
        await admin.try_to("transfer", "1.00", from_wallet_id=source, to_wallet_id=target),
        await admin.try_to("payment", "1.00", from_wallet_id=source, to_wallet_id=shops),
        await admin.try_to("withdrawal", "1.00", from_wallet_id=source, payment_method="bank_account"),
        await admin.try_to("deposit", "1.00", to_wallet_id=source, payment_method="credit_card"),
    ]

    assert [response.status_code for response in refused] == [404] * 4
    assert await books.state(admin) == before


async def test_a_payment_goes_to_merchants_alone(alice: Actor, client: httpx.AsyncClient, books: Books) -> None:
    """Who is none does not become one by how a wallet is asked for."""
    bob = await newcomer(client)
    source = await alice.wallet()
    await alice.deposit(source)
    for extra in (
        {"merchant": True},
        {"role": "merchant"},
        {"type": "merchant"},
        {"balance": "5.00"},
        {"status": "x"},
    ):
        response = await bob.call("POST", "/wallets/create", {"user_id": bob.id, "currency": "USD"} | extra)
        assert response.status_code == 422
    target = await bob.wallet()
    before = await books.state(alice)

    response = await alice.try_to("payment", "1.00", from_wallet_id=source, to_wallet_id=target)

    assert (response.status_code, response.json()["code"]) == (422, "not_a_merchant")
    assert await books.state(alice) == before


async def test_an_admin_cannot_be_locked_out_by_their_own_hand(admin: Actor, books: Books) -> None:
    before = await books.state()

    response = await admin.call("POST", f"/users/{admin.id}/disable")

    assert (response.status_code, response.json()["code"]) == (409, "own_account")
    assert await books.state() == before
