"""HTTP of wallet-service."""

import asyncio

import httpx
import pytest

from shared.ids import new_id
from shared.testing.problems import without_ids
from shared.testing.tokens import Person, by_gateway, service_headers
from wallet_service.testing import LedgerClient, OpenWallet, Outbox, Rows, posting

OUTSIDE = "external:stripe:USD"


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

    await rows("insert into people values ($1, 'user', 'active', 1)", bob.id)
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
    assert without_ids(foreign) == without_ids(missing)
    assert (await client.get(f"/wallets/{theirs}{suffix}", headers=Person("admin").headers)).status_code == 200
    assert (await client.get(f"/wallets/{theirs}{suffix}")).status_code == 401


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


# ------------------------------------------------------------------------------------------------ freeze and close


async def told(outbox: Outbox, wallet_id: str) -> list[tuple[int, str]]:
    return [(event.sequence, event.type) for event in await outbox.of(wallet_id)]


async def test_a_change_is_on_record_with_the_address_that_the_gateway_names(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, admin = Person(), Person("admin")
    wallet_id = await open_wallet(alice)
    forged = {
        "X-Forwarded-For": "203.0.113.99",
        "X-Gateway-Token": service_headers("user-service", "wallet-service")["Authorization"],
    }

    await client.post(
        f"/wallets/{wallet_id}/freeze", headers=admin.headers | by_gateway("203.0.113.7", "wallet-service")
    )
    await client.post(f"/wallets/{wallet_id}/unfreeze", headers=admin.headers | forged)

    assert [event.ip for event in await outbox.of(wallet_id)] == ["127.0.0.1", "203.0.113.7", "127.0.0.1"]


async def test_an_admin_freezes_and_unfreezes_a_wallet(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, admin = Person(), Person("admin")
    wallet_id = await open_wallet(alice)
    before = (await client.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()

    frozen = await client.post(f"/wallets/{wallet_id}/freeze", headers=admin.headers)
    seen = await client.get(f"/wallets/{wallet_id}", headers=alice.headers)
    unfrozen = await client.post(f"/wallets/{wallet_id}/unfreeze", headers=admin.headers)

    assert (frozen.status_code, unfrozen.status_code) == (200, 200)
    assert frozen.json() == seen.json() == before | {"status": "frozen"}
    assert unfrozen.json() == before
    events = await outbox.of(wallet_id)
    assert [(event.sequence, event.type) for event in events] == [
        (1, "wallets.created.v1"),
        (2, "wallets.frozen.v1"),
        (3, "wallets.unfrozen.v1"),
    ]
    for event, status_before in zip(events[1:], ("active", "frozen"), strict=True):
        assert event.actor == str(admin.id)
        assert event.data == {
            "wallet_id": wallet_id,
            "user_id": str(alice.id),
            "currency": "USD",
            "before": {"status": status_before},
        }


async def test_a_frozen_wallet_receives_and_does_not_pay(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet
) -> None:
    alice, bob, admin = Person(), Person(), Person("admin")
    mine, theirs = await open_wallet(alice, minor=100), await open_wallet(bob, minor=100)
    await client.post(f"/wallets/{mine}/freeze", headers=admin.headers)

    outcomes = await ledger.send(
        posting(bob, theirs, mine, 30),
        posting(alice, OUTSIDE, mine, 5),
        posting(alice, mine, theirs, 1),
        posting(alice, mine, OUTSIDE, 1, action="hold"),
    )
    balance = (await client.get(f"/wallets/{mine}/balance", headers=alice.headers)).json()["balance"]
    await client.post(f"/wallets/{mine}/unfreeze", headers=admin.headers)
    [paid] = await ledger.send(posting(alice, mine, theirs, 135))

    assert [outcome["code"] for outcome in outcomes] == [None, None, "frozen", "frozen"]
    assert balance == "1.35"
    assert paid["status"] == "applied"


@pytest.mark.parametrize(
    ("verbs", "last_event"),
    [
        (["freeze", "freeze"], (2, "wallets.frozen.v1")),
        (["unfreeze"], (1, "wallets.created.v1")),
        (["freeze", "unfreeze", "unfreeze"], (3, "wallets.unfrozen.v1")),
        (["close", "close"], (2, "wallets.closed.v1")),
    ],
    ids=["freeze", "unfreeze-active", "unfreeze", "close"],
)
async def test_asking_again_changes_nothing_and_tells_nothing(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox, verbs: list[str], last_event: tuple[int, str]
) -> None:
    wallet_id = await open_wallet(Person())

    responses = [await client.post(f"/wallets/{wallet_id}/{verb}", headers=Person("admin").headers) for verb in verbs]

    assert [response.status_code for response in responses] == [200] * len(verbs)
    assert (await told(outbox, wallet_id))[-1] == last_event
    assert responses[-1].json() == responses[max(0, len(verbs) - 2)].json() or len(verbs) == 1


async def test_of_many_who_freeze_at_once_one_does(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    wallet_id = await open_wallet(Person())
    admin = Person("admin")

    responses = await asyncio.gather(
        *(client.post(f"/wallets/{wallet_id}/freeze", headers=admin.headers) for _ in range(10))
    )

    assert {(response.status_code, response.json()["status"]) for response in responses} == {(200, "frozen")}
    assert await told(outbox, wallet_id) == [(1, "wallets.created.v1"), (2, "wallets.frozen.v1")]


@pytest.mark.parametrize("role", ["user", "merchant"])
@pytest.mark.parametrize("verb", ["freeze", "unfreeze"])
async def test_only_an_admin_freezes_and_unfreezes(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox, rows: Rows, verb: str, role: str
) -> None:
    owner = Person(role)
    wallet_id = await open_wallet(owner)
    if verb == "unfreeze":
        await client.post(f"/wallets/{wallet_id}/freeze", headers=Person("admin").headers)
    before = await told(outbox, wallet_id), await rows("select * from accounts where id = $1::uuid", wallet_id)

    response = await client.post(f"/wallets/{wallet_id}/{verb}", headers=owner.headers)

    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert (
        await told(outbox, wallet_id),
        await rows("select * from accounts where id = $1::uuid", wallet_id),
    ) == before


@pytest.mark.parametrize("verb", ["freeze", "unfreeze", "close"])
async def test_a_strangers_order_is_answered_as_for_a_wallet_that_is_not_there(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox, verb: str
) -> None:
    theirs, stranger, admin = await open_wallet(Person()), Person(), Person("admin")

    foreign = await client.post(f"/wallets/{theirs}/{verb}", headers=stranger.headers)
    missing = await client.post(f"/wallets/{new_id()}/{verb}", headers=stranger.headers)
    missing_for_admin = await client.post(f"/wallets/{new_id()}/{verb}", headers=admin.headers)
    anonymous = await client.post(f"/wallets/{theirs}/{verb}")

    assert foreign.status_code == missing.status_code == missing_for_admin.status_code == 404
    assert without_ids(foreign) == without_ids(missing) == without_ids(missing_for_admin)
    assert anonymous.status_code == 401
    assert await told(outbox, theirs) == [(1, "wallets.created.v1")]


@pytest.mark.parametrize("verb", ["freeze", "unfreeze", "close"])
async def test_nobody_freezes_or_closes_a_system_account(
    client: httpx.AsyncClient, open_wallet: OpenWallet, rows: Rows, verb: str
) -> None:
    await open_wallet(Person(), minor=100)
    [(system_id,)] = await rows("select id from accounts where name = $1", OUTSIDE)

    response = await client.post(f"/wallets/{system_id}/{verb}", headers=Person("admin").headers)

    assert response.status_code == 404
    assert await rows("select status from accounts where id = $1", system_id) == [("active",)]


@pytest.mark.parametrize("who", ["owner", "admin"])
async def test_an_empty_wallet_is_closed_takes_no_money_and_opens_again(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox, who: str
) -> None:
    alice, bob = Person(), Person()
    caller = alice if who == "owner" else Person("admin")
    wallet_id, theirs = await open_wallet(alice), await open_wallet(bob, minor=100)
    await ledger.send(posting(bob, theirs, wallet_id, 40))
    await ledger.send(posting(alice, wallet_id, theirs, 40))

    closed = await client.post(f"/wallets/{wallet_id}/close", headers=caller.headers)
    outcomes = await ledger.send(posting(bob, theirs, wallet_id, 1), posting(alice, OUTSIDE, wallet_id, 1))
    again = await client.post(
        "/wallets/create", json={"user_id": str(alice.id), "currency": "USD"}, headers=caller.headers
    )
    [paid] = await ledger.send(posting(bob, theirs, wallet_id, 1))

    assert (closed.status_code, closed.json()["status"]) == (200, "closed")
    assert [outcome["code"] for outcome in outcomes] == ["closed", "closed"]
    assert (again.status_code, again.json()) == (201, closed.json() | {"status": "active"})
    assert paid["status"] == "applied"
    assert await told(outbox, wallet_id) == [
        (1, "wallets.created.v1"),
        (2, "wallets.closed.v1"),
        (3, "wallets.reopened.v1"),
    ]
    events = (await outbox.of(wallet_id))[1:]
    assert [event.actor for event in events] == [str(caller.id)] * 2
    assert [event.data["before"] for event in events] == [{"status": "active"}, {"status": "closed"}]


async def test_of_many_who_reopen_a_wallet_at_once_one_does(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)
    body = {"user_id": str(alice.id), "currency": "USD"}

    responses = await asyncio.gather(
        *(client.post("/wallets/create", json=body, headers=alice.headers) for _ in range(10))
    )

    assert sorted(response.status_code for response in responses) == [201] + [409] * 9
    assert len(await told(outbox, wallet_id)) == 3


@pytest.mark.parametrize(
    ("held", "balance"), [(0, "1.00"), (60, "1.00"), (100, "1.00")], ids=["free", "held-in-part", "all-held"]
)
async def test_a_wallet_with_money_is_not_closed(
    client: httpx.AsyncClient,
    ledger: LedgerClient,
    open_wallet: OpenWallet,
    outbox: Outbox,
    rows: Rows,
    held: int,
    balance: str,
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=100)
    if held:
        await ledger.send(posting(alice, wallet_id, OUTSIDE, held, action="hold"))

    response = await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)

    problem = response.json()
    assert (response.status_code, problem["code"]) == (409, "wallet_not_empty")
    assert (problem["balance"], problem["currency"]) == (balance, "USD")
    assert await rows("select status, held_minor from accounts where id = $1::uuid", wallet_id) == [("active", held)]
    assert await told(outbox, wallet_id) == [(1, "wallets.created.v1")]


async def test_a_frozen_wallet_is_not_closed_even_by_an_admin(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, admin = Person(), Person("admin")
    wallet_id = await open_wallet(alice)
    await client.post(f"/wallets/{wallet_id}/freeze", headers=admin.headers)

    responses = [
        await client.post(f"/wallets/{wallet_id}/close", headers=person.headers) for person in (alice, admin)
    ]

    assert [(response.status_code, response.json()["code"]) for response in responses] == [(409, "wallet_frozen")] * 2
    assert len(await told(outbox, wallet_id)) == 2


@pytest.mark.parametrize("verb", ["freeze", "unfreeze"])
async def test_a_closed_wallet_is_neither_frozen_nor_unfrozen(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox, verb: str
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)

    response = await client.post(f"/wallets/{wallet_id}/{verb}", headers=Person("admin").headers)

    assert (response.status_code, response.json()["code"]) == (409, "wallet_closed")
    assert len(await told(outbox, wallet_id)) == 2


async def test_a_frozen_wallet_is_not_opened_again_by_asking_for_one(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await client.post(f"/wallets/{wallet_id}/freeze", headers=Person("admin").headers)

    response = await client.post(
        "/wallets/create", json={"user_id": str(alice.id), "currency": "USD"}, headers=alice.headers
    )

    assert (response.status_code, response.json()["code"]) == (409, "wallet_exists")
    seen = (await client.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()
    assert seen["status"] == "frozen"
    assert len(await told(outbox, wallet_id)) == 2


async def test_a_wallet_that_is_closed_while_money_arrives_is_empty_or_open(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    bob = Person()
    source = await open_wallet(bob, minor=1_000)
    owners = [Person() for _ in range(12)]
    wallets = [await open_wallet(owner) for owner in owners]

    await asyncio.gather(
        *(ledger.send(posting(bob, source, wallet_id, 1)) for wallet_id in wallets),
        *(
            client.post(f"/wallets/{wallet_id}/close", headers=owner.headers)
            for owner, wallet_id in zip(owners, wallets, strict=True)
        ),
    )

    found = await rows("select status, balance_minor from accounts where id = any($1::uuid[])", wallets)
    assert set(found) <= {("closed", 0), ("active", 1)}


async def test_what_is_held_is_shown_and_not_available(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    await ledger.send(posting(alice, wallet_id, OUTSIDE, 400, action="hold"))

    balance = (await client.get(f"/wallets/{wallet_id}/balance", headers=alice.headers)).json()
    wallet = (await client.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()

    amounts = {"balance": "10.00", "held": "4.00", "available": "6.00"}
    assert balance == {"wallet_id": wallet_id, "currency": "USD"} | amounts
    assert {name: wallet[name] for name in amounts} == amounts
