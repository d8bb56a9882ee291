"""The audit says from which address somebody has acted, and what was before."""

import json
from collections.abc import AsyncIterator
from ipaddress import IPv4Network
from typing import Any, Final

import httpx
import pytest

from ledger_reconciler.audit import walk
from ledger_reconciler.settings import ReconcilerSettings
from shared.events import TOPICS, UserSignedIn
from shared.testing.tokens import service_headers
from shared.testing.topics import records_of
from shared.testing.waiting import eventually
from tests.platform import UNHINDERED, Platform
from tests.security.people import Actor, new_admin, newcomer
from user_service.settings import UserSettings

ALICE: Final = "203.0.113.7"
FORGED: Final = "203.0.113.99"
PEER: Final = "127.0.0.1"  # whoever calls from here without a proxy between
LIMIT_SECONDS: Final = 60.0


@pytest.fixture
async def proxied(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """Calls of Alice's, that a proxy of ours hands on to the gateway."""
    networks = (IPv4Network(f"{PEER}/32"),)
    async with (
        platform.another_gateway(trusted_proxy_cidrs=networks, **UNHINDERED) as url,
        httpx.AsyncClient(base_url=url, timeout=30, headers={"X-Forwarded-For": f"{FORGED}, {ALICE}"}) as client,
    ):
        yield client


async def audited(admin: Actor, segment: str, subject: str, *types: str) -> dict[str, dict[str, Any]]:
    """The latest event of each of these types, once all of them are in the audit."""

    async def look() -> dict[str, dict[str, Any]]:
        response = await admin.call("GET", f"/{segment}/audit?subject={subject}&limit=100")
        assert response.status_code == 200, response.text
        found = {each["type"]: each for each in reversed(response.json()["data"])}
        return found if found.keys() >= set(types) else {}

    return await eventually(look, LIMIT_SECONDS)


async def test_whoever_acts_through_the_gateway_is_on_record_with_their_address(
    client: httpx.AsyncClient, proxied: httpx.AsyncClient, platform: Platform
) -> None:
    admin, bob = await new_admin(client, platform.sandbox), await newcomer(client)
    alice = await newcomer(proxied)
    source, target = await alice.wallet(), await bob.wallet()
    deposit = await alice.deposit(source)
    transfer = await alice.transfer(source, target)
    assert (await alice.call("PATCH", "/users/me", {"phone": "+4915112345678"})).status_code == 200
    assert (await admin.call("POST", f"/wallets/{source}/freeze", **{"X-Forwarded-For": FORGED})).status_code == 200

    person = await audited(admin, "users", alice.id, "users.registered.v1", "users.updated.v1")
    assert {each["ip"] for each in person.values()} == {ALICE}
    before = person["users.updated.v1"]["data"]["before"]
    assert {name: value for name, value in before.items() if value is not None} == {"phone": "+1234567890"}
    wallet = await audited(admin, "wallets", source, "wallets.created.v1", "wallets.frozen.v1")
    assert [wallet[f"wallets.{what}.v1"]["ip"] for what in ("created", "frozen")] == [ALICE, PEER]
    assert wallet["wallets.frozen.v1"]["data"]["before"] == {"status": "active"}
    for transaction in (deposit, transfer):
        found = await audited(admin, "transactions", transaction, "transactions.completed.v1")
        posted = await audited(admin, "wallets", transaction, "wallets.posted.v1")
        assert [each["ip"] for each in (*found.values(), *posted.values())] == [ALICE, ALICE]
        assert {each["actor"] for each in (*found.values(), *posted.values())} == {alice.id}

    async def charges() -> list[str | None]:
        response = await admin.call("GET", "/payments/audit?type=payments.succeeded.v1&limit=100")
        return [each["ip"] for each in response.json()["data"] if each["data"]["transaction_id"] == deposit]

    assert await eventually(charges, LIMIT_SECONDS) == [ALICE]  # what a neighbour has done for her
    [side] = [e for e in posted["wallets.posted.v1"]["data"]["entries"] if e["wallet_id"] == source]
    assert side["balance_minor"] - side["amount_minor"] == 10_000  # what was there before


async def test_no_event_says_it_but_those_of_sessions(
    proxied: httpx.AsyncClient, client: httpx.AsyncClient, platform: Platform
) -> None:
    admin, alice = await new_admin(client, platform.sandbox), await newcomer(proxied)
    deposit = await alice.deposit(await alice.wallet())
    await audited(admin, "transactions", deposit, "transactions.completed.v1")
    settings = platform.sandbox.settings(UserSettings)

    async def published() -> list[bytes]:
        records = [await records_of(settings, settings.kafka_topic_prefix + topic) for topic in TOPICS]
        values = [record.value for topic in records for record in topic]
        return values if any(deposit.encode() in value for value in values) else []

    telling = [value for value in await eventually(published, LIMIT_SECONDS) if ALICE.encode() in value]

    assert telling
    assert {json.loads(value)["type"] for value in telling} == {UserSignedIn.type}


@pytest.mark.parametrize("service", ["gateway", "transaction-service"])
async def test_an_address_that_somebody_makes_up_is_on_no_record(
    client: httpx.AsyncClient, platform: Platform, service: str
) -> None:
    """Neither through the gateway, where no proxy is trusted, nor at a service's own port."""
    admin, alice = await new_admin(client, platform.sandbox), await newcomer(client)
    source, target = await alice.wallet(), await (await newcomer(client)).wallet()
    await alice.deposit(source)
    forged = {
        "X-Forwarded-For": FORGED,
        "X-Real-IP": FORGED,
        "Forwarded": f"for={FORGED}",
        "X-Gateway-Token": service_headers("user-service", "transaction-service")["Authorization"],
    }
    wish = {"transaction_type": "transfer", "amount": "1.00", "currency": "USD"}
    wish |= {"from_wallet_id": source, "to_wallet_id": target}

    response = await client.post(
        f"{platform.direct(service) or platform.gateway}/transactions/create",
        json=wish,
        headers=alice.headers | forged,
    )

    assert response.status_code == 201, response.text
    transfer = response.json()["id"]
    for segment, kind in (("transactions", "transactions.completed.v1"), ("wallets", "wallets.posted.v1")):
        found = await audited(admin, segment, transfer, kind)
        assert found[kind]["ip"] == PEER


async def test_an_address_that_was_altered_is_named(
    proxied: httpx.AsyncClient, client: httpx.AsyncClient, platform: Platform
) -> None:
    admin, alice = await new_admin(client, platform.sandbox), await newcomer(proxied)
    deposit = await alice.deposit(await alice.wallet())
    found = await audited(admin, "transactions", deposit, "transactions.completed.v1")
    event = found["transactions.completed.v1"]
    settings = platform.sandbox.settings(ReconcilerSettings)

    async def findings() -> dict[str, str | None]:
        return {each.schema: each.finding for each in await walk(settings)}

    assert set((await findings()).values()) == {None}
    named = f"the document at position {event['position']} was altered: event {event['id']}"
    with platform.sandbox.mongo() as mongo:
        audit = mongo[settings.mongo_db]["transactions_audit"]
        for change in ({"$set": {"ip": FORGED}}, {"$unset": {"ip": ""}}, {"$set": {"ip": None}}):
            audit.update_one({"_id": event["id"]}, change)
            assert str((await findings())["transactions"]).startswith(named)
        document = audit.find_one({"_id": event["id"]})
        assert document is not None
        audit.replace_one({"_id": event["id"]}, document | {"ip": ALICE})
    assert set((await findings()).values()) == {None}
