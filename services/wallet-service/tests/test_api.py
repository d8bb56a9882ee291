"""HTTP of wallet-service."""

import asyncio

import httpx
import pytest

from shared.ids import new_id
from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet, Rows, posting


async def test_a_new_wallet_is_empty_and_belongs_to_its_owner(client: httpx.AsyncClient) -> None:
    alice = Person()

    response = await client.post(
        "/wallets/create", json={"user_id": str(alice.id), "currency": "USD"}, headers=alice.headers
    )

    assert response.status_code == 201
    wallet = response.json()
    assert {name: wallet[name] for name in wallet if name not in {"id", "created_at"}} == {
        "user_id": str(alice.id),
        "currency": "USD",
        "status": "active",
        "balance": "0.00",
        "held": "0.00",
        "available": "0.00",
    }
    assert wallet["created_at"].endswith("Z")
    assert (await client.get(f"/wallets/{wallet['id']}", headers=alice.headers)).json() == wallet
    assert (await client.get("/wallets", headers=alice.headers)).json() == {"data": [wallet], "has_more": False}


async def test_one_wallet_a_person_and_currency_however_many_ask_at_once(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = Person()
    body = {"user_id": str(alice.id), "currency": "USD"}

    responses = await asyncio.gather(
        *(client.post("/wallets/create", json=body, headers=alice.headers) for _ in range(20))
    )

    [created] = [response.json() for response in responses if response.status_code == 201]
    conflicts = [response.json() for response in responses if response.status_code == 409]
    assert len(conflicts) == 19
    assert {(problem["code"], problem["wallet_id"]) for problem in conflicts} == {("wallet_exists", created["id"])}
    assert await rows("select count(*) from accounts where user_id = $1", alice.id) == [(1,)]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"currency": "USD"}, 422, "missing", "user_id"),
        ({"user_id": "me", "currency": "USD"}, 422, "uuid_parsing", "user_id"),
        ({"user_id": "SELF", "currency": "usd"}, 422, "currency_unknown", "currency"),
        ({"user_id": "SELF", "currency": "ZZZ"}, 422, "currency_unknown", "currency"),
        ({"user_id": "SELF", "currency": "XAU"}, 422, "currency_unknown", "currency"),
        ({"user_id": "SELF", "currency": ["USD"]}, 422, "string_type", "currency"),
        ({"user_id": "SELF", "currency": "USD", "balance": "1000000.00"}, 422, "extra_forbidden", "balance"),
        ({"user_id": "SELF", "currency": "USD", "status": "active"}, 422, "extra_forbidden", "status"),
        ({"user_id": "SELF", "currency": "US\x00"}, 422, "text_invalid", "currency"),
    ],
)
async def test_a_wrong_field_is_named_and_no_wallet_is_made(
    client: httpx.AsyncClient, rows: Rows, body: dict[str, object], status: int, code: str, field: str
) -> None:
    alice = Person()
    if body.get("user_id") == "SELF":
        body = body | {"user_id": str(alice.id)}

    response = await client.post("/wallets/create", json=body, headers=alice.headers)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    [error] = response.json()["errors"]
    assert (error["code"], error["field"]) == (code, field)
    assert await rows("select count(*) from accounts where user_id = $1", alice.id) == [(0,)]


async def test_a_wallet_for_somebody_else_needs_an_admin(client: httpx.AsyncClient, rows: Rows) -> None:
    alice, bob = Person(), Person()
    body = {"user_id": str(bob.id), "currency": "USD"}

    refused = await client.post("/wallets/create", json=body, headers=alice.headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert await rows("select count(*) from accounts where user_id = $1", bob.id) == [(0,)]

    made = await client.post("/wallets/create", json=body, headers=Person("admin").headers)
    assert (made.status_code, made.json()["user_id"]) == (201, str(bob.id))


@pytest.mark.parametrize("suffix", ["", "/balance", "/entries"])
async def test_somebody_elses_wallet_looks_like_none(
    client: httpx.AsyncClient, open_wallet: OpenWallet, suffix: str
) -> None:
    theirs, alice = await open_wallet(Person()), Person()

    foreign = await client.get(f"/wallets/{theirs}{suffix}", headers=alice.headers)
    missing = await client.get(f"/wallets/{new_id()}{suffix}", headers=alice.headers)

    assert foreign.status_code == missing.status_code == 404
    assert _told(foreign) == _told(missing)
    assert (await client.get(f"/wallets/{theirs}{suffix}", headers=Person("admin").headers)).status_code == 200
    assert (await client.get(f"/wallets/{theirs}{suffix}")).status_code == 401


def _told(response: httpx.Response) -> dict[str, object]:
    body = response.json()
    return {name: body[name] for name in body if name not in {"request_id", "instance"}}


async def test_a_system_account_is_nobodys_wallet(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    await ledger.fund(alice, await open_wallet(alice), 100)
    [(system_id,)] = await rows("select id from accounts where name = 'external:stripe:USD'")

    assert (await client.get(f"/wallets/{system_id}", headers=Person("admin").headers)).status_code == 404


async def test_amounts_have_the_currencys_decimals(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet
) -> None:
    alice = Person()
    shown = {}
    for currency in ("USD", "JPY", "KWD"):
        wallet_id = await open_wallet(alice, currency)
        await ledger.fund(alice, wallet_id, 123_456, currency)
        shown[currency] = (await client.get(f"/wallets/{wallet_id}/balance", headers=alice.headers)).json()["balance"]

    assert shown == {"USD": "1234.56", "JPY": "123456", "KWD": "123.456"}


async def test_entries_come_newest_first_in_pages(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 1_000)
    for minor in (100, 200):
        await ledger.send(posting(alice, source, target, minor))
    url = f"/wallets/{source}/entries"

    first = (await client.get(url, params={"limit": 2}, headers=alice.headers)).json()
    rest = (await client.get(url, params={"limit": 2, "starting_after": 2}, headers=alice.headers)).json()

    assert [(entry["version"], entry["amount"], entry["balance"]) for entry in first["data"]] == [
        (3, "-2.00", "7.00"),
        (2, "-1.00", "9.00"),
    ]
    assert first["has_more"] is True
    assert [(entry["version"], entry["amount"], entry["balance"]) for entry in rest["data"]] == [
        (1, "10.00", "10.00")
    ]
    assert rest["has_more"] is False


@pytest.mark.parametrize(
    "query",
    ["limit=1000000000", "limit=0", "limit=-1", "limit=$gt", "limit=1;drop", "starting_after=9223372036854775808"],
)
async def test_a_page_out_of_bounds_is_refused(
    client: httpx.AsyncClient, open_wallet: OpenWallet, query: str
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)

    response = await client.get(f"/wallets/{wallet_id}/entries?{query}", headers=alice.headers)

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]
