"""What wallet-service does when user-service tells of a person, and when it asks for their wallets to be closed."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import pytest

from shared.events import Envelope
from shared.ids import new_id
from shared.kafka import EventProducer
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually
from wallet_service.testing import LedgerClient, OpenWallet, Outbox, Rows, posting

OUTSIDE = "external:stripe:USD"


class UserSettings(DatabaseSettings):
    """user-service's, as far as its topic goes."""

    service = "user-service"
    schema_name = "users"


class Users:
    """Tells of people as user-service does, and waits until wallet-service has heard it."""

    def __init__(self, producer: EventProducer, rows: Rows) -> None:
        self._producer = producer
        self._rows = rows

    async def tell(self, person: Person, kind: str, sequence: int, event_id: UUID | None = None, **data: Any) -> None:
        event = Envelope(
            id=event_id or new_id(),
            source="users",
            type=f"users.{kind}.v1",
            subject=str(person.id),
            time=datetime.now(UTC),
            sequence=sequence,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            requestid="request-0123456789",
            actor=str(person.id),
            data={"user_id": str(person.id), "role": person.role, "email": "alice@example.com"} | data,
        )
        await self.send(person.id, event.model_dump_json().encode())

    async def send(self, key: UUID, value: bytes) -> None:
        await self._producer.send([("users.events", str(key).encode(), value)])

    async def heard(self, person: Person, sequence: int) -> None:
        async def known() -> bool:
            return await self.known(person) != [] and (await self.known(person))[0][2] >= sequence

        await eventually(known, limit_seconds=30)

    async def known(self, person: Person) -> list[tuple[Any, ...]]:
        return await self._rows("select role, status, sequence from people where user_id = $1", person.id)


@pytest.fixture(scope="module")
async def users(sandbox: Sandbox, rows: Rows) -> AsyncIterator[Users]:
    producer = EventProducer(sandbox.settings(UserSettings))
    yield Users(producer, rows)
    await producer.close()


async def create(client: httpx.AsyncClient, caller: Person, owner: Person, currency: str = "USD") -> httpx.Response:
    body = {"user_id": str(owner.id), "currency": currency}
    return await client.post("/wallets/create", json=body, headers=caller.headers)


async def pays(ledger: LedgerClient, open_wallet: OpenWallet, wallet_id: str) -> str | None:
    """Why a payment to the wallet is refused, or None."""
    payer = Person()
    source = await open_wallet(payer, minor=100)
    [outcome] = await ledger.send(posting(payer, source, wallet_id, 10, action="pay"))
    return str(outcome["code"]) if outcome["code"] else None


# ------------------------------------------------------------------------------------------------ merchants


async def test_a_wallet_that_an_admin_opens_for_a_merchant_takes_payments(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, users: Users
) -> None:
    shop, user = Person("merchant"), Person()
    for person in (shop, user):
        await users.tell(person, "registered", 1)
        await users.heard(person, 1)

    opened = [await create(client, Person("admin"), person) for person in (shop, user)]

    assert [response.status_code for response in opened] == [201, 201]
    assert await pays(ledger, open_wallet, opened[0].json()["id"]) is None
    assert await pays(ledger, open_wallet, opened[1].json()["id"]) == "not_merchant"


async def test_a_wallet_takes_payments_from_when_its_owner_is_known_to_be_a_merchant(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, users: Users
) -> None:
    shop = Person("merchant")
    as_user = Person("user", shop.id)  # a token from before
    wallet_id = (await create(client, as_user, shop)).json()["id"]
    assert await pays(ledger, open_wallet, wallet_id) == "not_merchant"

    await users.tell(shop, "registered", 1)
    await users.heard(shop, 1)

    assert await pays(ledger, open_wallet, wallet_id) is None


async def test_a_wallet_opened_while_its_owner_is_heard_of_takes_payments(
    client: httpx.AsyncClient, users: Users, rows: Rows
) -> None:
    shops = [Person("merchant") for _ in range(20)]

    await asyncio.gather(
        *(users.tell(shop, "registered", 1) for shop in shops),
        *(create(client, Person("user", shop.id), shop) for shop in shops),
    )
    for shop in shops:
        await users.heard(shop, 1)

    found = await rows("select merchant from accounts where user_id = any($1)", [shop.id for shop in shops])
    assert found == [(True,)] * 20


# ------------------------------------------------------------------------------------------------ who may open one


@pytest.mark.parametrize("status", ["disabled", "closed"])
async def test_nobody_opens_a_wallet_for_a_person_who_is_disabled_or_closed(
    client: httpx.AsyncClient, users: Users, rows: Rows, status: str
) -> None:
    alice = Person()
    await users.tell(alice, "registered", 1)
    await users.tell(alice, status, 2)
    await users.heard(alice, 2)

    refused = [await create(client, caller, alice) for caller in (alice, Person("admin"))]

    assert [(response.status_code, response.json()["code"]) for response in refused] == [(409, f"user_{status}")] * 2
    assert await rows("select count(*) from accounts where user_id = $1", alice.id) == [(0,)]


async def test_whoever_is_enabled_again_opens_wallets_again(client: httpx.AsyncClient, users: Users) -> None:
    alice = Person()
    for sequence, kind in enumerate(("registered", "disabled", "enabled"), start=1):
        await users.tell(alice, kind, sequence)
    await users.heard(alice, 3)

    assert (await create(client, alice, alice)).status_code == 201


async def test_an_admin_opens_no_wallet_for_somebody_of_whom_nothing_is_known(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    nobody, admin = Person(), Person("admin")

    refused = await create(client, admin, nobody)

    assert (refused.status_code, refused.json()["code"]) == (404, "user_not_found")
    assert await rows("select count(*) from accounts where user_id = $1", nobody.id) == [(0,)]
    assert (await create(client, admin, admin)).status_code == 201


async def test_whoever_has_opened_a_wallet_is_known(client: httpx.AsyncClient, open_wallet: OpenWallet) -> None:
    alice = Person()
    await open_wallet(alice)

    assert (await create(client, Person("admin"), alice, "EUR")).status_code == 201


# ------------------------------------------------------------------------------------------------ the events


async def test_the_newest_event_counts_in_whatever_order_they_come(users: Users) -> None:
    alice, sentinel = Person(), Person()
    await users.tell(alice, "enabled", 3)
    await users.tell(alice, "disabled", 2)
    await users.tell(alice, "registered", 1)
    await users.tell(sentinel, "registered", 1)
    await users.tell(alice, "closed", 4)
    await users.heard(alice, 4)
    await users.heard(sentinel, 1)

    assert await users.known(alice) == [("user", "closed", 4)]


async def test_an_event_is_handled_once(users: Users, rows: Rows) -> None:
    alice, event_id = Person(), new_id()
    await users.tell(alice, "registered", 1, event_id)
    await users.tell(alice, "disabled", 5, event_id)  # would count, were it another event
    await users.tell(alice, "enabled", 2)
    await users.heard(alice, 2)

    assert await users.known(alice) == [("user", "active", 2)]
    assert await rows("select count(*) from inbox where event_id = $1", event_id) == [(1,)]


async def test_what_is_unknown_or_makes_no_sense_is_passed_over_and_holds_nothing_up(
    users: Users, rows: Rows
) -> None:
    alice, unknown = Person(), new_id()
    await users.send(alice.id, b"{")
    await users.tell(alice, "registered", 1, user_id="nobody")
    await users.tell(alice, "renamed", 7, unknown)
    await users.tell(alice, "disabled", 2)
    await users.heard(alice, 2)

    assert await users.known(alice) == [("user", "disabled", 2)]
    assert await rows("select count(*) from inbox where event_id = $1", unknown) == [(0,)]


async def test_a_person_who_is_closed_leaves_no_empty_wallet_open(
    client: httpx.AsyncClient, open_wallet: OpenWallet, users: Users, outbox: Outbox, rows: Rows
) -> None:
    alice = Person()
    empty, full, frozen = [await open_wallet(alice, *more) for more in (("USD",), ("EUR", 100), ("GBP",))]
    await client.post(f"/wallets/{frozen}/freeze", headers=Person("admin").headers)

    await users.tell(alice, "closed", 2)
    await users.heard(alice, 2)

    found = await rows("select id::text, status from accounts where user_id = $1", alice.id)
    assert set(found) == {(empty, "closed"), (full, "active"), (frozen, "frozen")}
    [_, closed] = await outbox.of(empty)
    assert (closed.type, closed.sequence, closed.actor) == ("wallets.closed.v1", 2, str(alice.id))
    assert (closed.trace[0], closed.ip) == ("request-0123456789", None)  # an event says nothing of an address
    assert closed.data["before"] == {"status": "active"}
    assert [event.type for event in await outbox.of(full)] == ["wallets.created.v1"]
    seen = await client.get(f"/wallets/{empty}", headers=alice.headers)
    assert seen.json()["status"] == "closed"


# ------------------------------------------------------------------------------------------------ closing all


async def close_all(client: httpx.AsyncClient, person: Person, caller: str = "user-service") -> httpx.Response:
    headers = service_headers(caller, "wallet-service") | {"X-Forwarded-For": "203.0.113.7"}
    return await client.post(f"/internal/people/{person.id}/close", headers=headers)


async def test_all_wallets_of_a_person_are_closed_together_and_once(
    client: httpx.AsyncClient, open_wallet: OpenWallet, outbox: Outbox, rows: Rows
) -> None:
    alice, bob = Person(), Person()
    wallets = [await open_wallet(alice, currency) for currency in ("USD", "EUR", "JPY")]
    bobs = await open_wallet(bob)

    first, again = await close_all(client, alice), await close_all(client, alice)

    assert (first.status_code, first.json()) == (200, {"closed": 3})
    assert (again.status_code, again.json()) == (200, {"closed": 0})
    assert set(await rows("select status from accounts where user_id = $1", alice.id)) == {("closed",)}
    for wallet_id in wallets:
        events = await outbox.of(wallet_id)
        assert [event.type for event in events] == ["wallets.created.v1", "wallets.closed.v1"]
        assert (events[1].actor, events[1].ip) == ("user-service", "203.0.113.7")
        assert (await client.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()["status"] == "closed"
    assert (await client.get(f"/wallets/{bobs}", headers=bob.headers)).json()["status"] == "active"


async def test_a_person_without_wallets_has_none_to_close(client: httpx.AsyncClient) -> None:
    response = await close_all(client, Person())

    assert (response.status_code, response.json()) == (200, {"closed": 0})


@pytest.mark.parametrize(
    ("why", "code"), [("money", "wallet_not_empty"), ("held", "wallet_not_empty"), ("frozen", "wallet_frozen")]
)
async def test_one_wallet_that_cannot_be_closed_keeps_all_open(
    client: httpx.AsyncClient,
    ledger: LedgerClient,
    open_wallet: OpenWallet,
    outbox: Outbox,
    rows: Rows,
    why: str,
    code: str,
) -> None:
    alice = Person()
    before = await outbox.count()
    empty = await open_wallet(alice, "EUR")
    other = await open_wallet(alice, "USD", 0 if why == "frozen" else 100)
    if why == "held":
        await ledger.send(posting(alice, other, OUTSIDE, 100, action="hold"))
    if why == "frozen":
        await client.post(f"/wallets/{other}/freeze", headers=Person("admin").headers)
    told = await outbox.count()
    state = await rows("select * from accounts where user_id = $1 order by id", alice.id)

    response = await close_all(client, alice)

    assert (response.status_code, response.json()["code"]) == (409, code)
    assert await rows("select * from accounts where user_id = $1 order by id", alice.id) == state
    assert await outbox.count() == told > before
    assert (await client.get(f"/wallets/{empty}", headers=alice.headers)).json()["status"] == "active"


async def test_only_user_service_closes_a_persons_wallets(
    client: httpx.AsyncClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    await open_wallet(alice)

    other = await close_all(client, alice, "transaction-service")
    user = await client.post(f"/internal/people/{alice.id}/close", headers=alice.headers)
    nobody = await client.post(f"/internal/people/{alice.id}/close")

    assert [response.status_code for response in (other, user, nobody)] == [403, 401, 401]
    assert await rows("select status from accounts where user_id = $1", alice.id) == [("active",)]


async def test_who_is_paid_while_leaving_keeps_all_wallets_or_is_not_paid(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    payer = Person()
    source = await open_wallet(payer, minor=1_000)
    people = [Person() for _ in range(12)]
    wallets = [[await open_wallet(person, currency) for currency in ("USD", "EUR")] for person in people]

    paid, closed = await asyncio.gather(
        asyncio.gather(*(ledger.send(posting(payer, source, dollars, 1)) for dollars, _ in wallets)),
        asyncio.gather(*(close_all(client, person) for person in people)),
    )

    for person, [outcome], response in zip(people, paid, closed, strict=True):
        found = await rows("select status, balance_minor from accounts where user_id = $1 order by id", person.id)
        if outcome["status"] == "applied":
            assert (response.status_code, found) == (409, [("active", 1), ("active", 0)])
        else:
            assert outcome["code"] == "closed"
            assert (response.status_code, found) == (200, [("closed", 0), ("closed", 0)])
