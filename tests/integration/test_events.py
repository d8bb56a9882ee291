"""A committed change reaches Kafka, the people it concerns, and the audit."""

import json
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer

from shared.events import TOPICS, Envelope
from shared.ids import new_id
from shared.testing.waiting import eventually


class Account:
    """A registered person with a dollar wallet."""

    def __init__(self, client: httpx.AsyncClient, user_id: str, token: str, wallet_id: str) -> None:
        self.client = client
        self.user_id = user_id
        self.headers = {"Authorization": f"Bearer {token}"}
        self.wallet_id = wallet_id

    async def create(self, **body: Any) -> httpx.Response:
        """POST /transactions/create with a request id of its own."""
        return await self.client.post("/transactions/create", json=body, headers=self.headers)


async def open_account(client: httpx.AsyncClient) -> Account:
    credentials = {"email": f"{new_id()}@example.com", "password": "SecurePass123"}
    person = {"first_name": "John", "last_name": "Doe", "phone": "+1234567890"}
    assert (await client.post("/users/register", json=credentials | person)).status_code == 201
    login = (await client.post("/users/login", json=credentials)).json()
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    wallet = await client.post(
        "/wallets/create", json={"user_id": login["user"]["id"], "currency": "USD"}, headers=headers
    )
    return Account(client, login["user"]["id"], login["access_token"], wallet.json()["id"])


async def test_a_deposit_and_a_transfer_are_told_to_everybody(client: httpx.AsyncClient, platform: Any) -> None:
    alice, bob = await open_account(client), await open_account(client)
    deposit = await alice.create(
        transaction_type="deposit",
        amount=100.00,
        currency="USD",
        to_wallet_id=alice.wallet_id,
        payment_method="credit_card",
    )
    transfer = await alice.create(
        transaction_type="transfer",
        amount=30.00,
        currency="USD",
        from_wallet_id=alice.wallet_id,
        to_wallet_id=bob.wallet_id,
    )
    refused = await alice.create(
        transaction_type="transfer",
        amount=70.01,
        currency="USD",
        from_wallet_id=alice.wallet_id,
        to_wallet_id=bob.wallet_id,
    )
    assert [r.status_code for r in (deposit, transfer, refused)] == [201, 201, 402]
    ids = [deposit.json()["id"], transfer.json()["id"], refused.json()["transaction_id"]]
    expected = {
        ("users.registered.v1", alice.user_id),
        ("users.registered.v1", bob.user_id),
        ("wallets.created.v1", alice.wallet_id),
        ("wallets.created.v1", bob.wallet_id),
        ("wallets.posted.v1", ids[0]),
        ("wallets.posted.v1", ids[1]),
        ("transactions.completed.v1", ids[0]),
        ("transactions.completed.v1", ids[1]),
        ("transactions.failed.v1", ids[2]),
    }
    environment = platform.sandbox.environment

    consumed = await consume(environment, expected)

    assert [event.sequence for event in consumed] == [1] * len(expected)
    posted = next(e for e in consumed if (e.type, e.subject) == ("wallets.posted.v1", ids[1]))
    assert posted.data["entries"] == [
        entry(alice, -3_000, 7_000, 2),
        entry(bob, 3_000, 3_000, 1),
    ]
    completed = next(e for e in consumed if (e.type, e.subject) == ("transactions.completed.v1", ids[1]))
    assert completed.requestid == transfer.headers["X-Request-Id"]
    assert (completed.actor, completed.data["payee_user_id"]) == (alice.user_id, bob.user_id)
    await assert_audited(platform, consumed)
    await assert_notified(platform, consumed)


def entry(account: Account, amount: int, balance: int, version: int) -> dict[str, object]:
    return {
        "wallet_id": account.wallet_id,
        "user_id": account.user_id,
        "amount_minor": amount,
        "balance_minor": balance,
        "version": version,
    }


async def consume(environment: dict[str, str], expected: set[tuple[str, str]]) -> list[Envelope]:
    """Read all topics from their beginning until every expected event was seen."""
    consumer = AIOKafkaConsumer(
        *(environment["KAFKA_TOPIC_PREFIX"] + topic for topic in TOPICS),
        bootstrap_servers=environment["KAFKA_BOOTSTRAP_SERVERS"],
        group_id=None,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    found: dict[tuple[str, str], Envelope] = {}
    try:

        async def look() -> bool:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    event = Envelope.model_validate_json(record.value)
                    assert record.key.decode() == event.subject
                    if (event.type, event.subject) in expected:
                        found[event.type, event.subject] = event
            return found.keys() == expected

        await eventually(look, 30)
    finally:
        await consumer.stop()
    return list(found.values())


async def assert_audited(platform: Any, events: list[Envelope]) -> None:
    """Each event is one audit document, the same as what Kafka has."""
    with platform.sandbox.mongo() as mongo:
        database = mongo[platform.sandbox.environment["MONGO_DB"]]

        async def documents() -> list[dict[str, Any]]:
            ids = [str(event.id) for event in events]
            found = [
                document
                for name in database.list_collection_names()
                for document in database[name].find({"_id": {"$in": ids}})
            ]
            return found if len(found) == len(events) else []

        audited = {document["_id"]: document for document in await eventually(documents)}
    for event in events:
        document = audited[str(event.id)]
        del document["_id"], document["chain"]
        assert document.pop("ip") == "127.0.0.1"
        assert document == json.loads(event.model_dump_json())


async def assert_notified(platform: Any, events: list[Envelope]) -> None:
    """notification-service has handled what concerns people, and nothing waits in an outbox."""
    concerning = {str(e.id) for e in events if not e.type.startswith("wallets.")}
    connection = await platform.sandbox.connect()
    try:

        async def handled() -> bool:
            rows = await connection.fetch("select event_id::text from notifications.inbox")
            return concerning <= {row["event_id"] for row in rows}

        await eventually(handled, 30)

        async def drained() -> bool:
            schemas = ("users", "wallets", "transactions", "payments", "notifications")
            counts = [await connection.fetchval(f"select count(*) from {schema}.outbox") for schema in schemas]
            return not any(counts)

        await eventually(drained)
    finally:
        await connection.close()
