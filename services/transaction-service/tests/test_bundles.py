"""Creations that came together: each has its own answer, and what is not plain is handed back untouched."""

import asyncio
import json

import pytest

from shared.http.bundle import MEDIA_TYPE, Parcel, Replies, Reply, read_replies, write_parcels
from shared.ids import new_id
from shared.testing.tokens import Person, by_gateway, service_headers
from transaction_service.testing import Bank, parcel


async def send(bank: Bank, *parcels: Parcel) -> Replies:
    response = await bank.client.post(
        "/internal/transactions",
        content=write_parcels(list(parcels)),
        headers=service_headers("api-gateway", "transaction-service") | {"Content-Type": MEDIA_TYPE},
    )
    assert response.status_code == 200
    return read_replies(response.content)


def code_of(reply: Reply | None) -> tuple[int, str | None]:
    assert reply is not None
    return reply.status, json.loads(reply.body).get("code")


async def test_a_reply_is_what_the_public_operation_would_have_answered(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    [reply] = await send(bank, parcel(alice, source, target, "25.00", key="k"))
    public = await bank.transfer(alice, source, target, "25.00", key="k")

    assert reply is not None
    assert (reply.status, reply.body) == (201, public.content)
    assert reply.headers == [("content-type", "application/json")]
    assert public.headers["Idempotent-Replayed"] == "true"
    assert await bank.balances(source, target) == [7_500, 2_500]


async def test_each_has_its_own_outcome_and_trace(bank: Bank) -> None:
    alice, bob, poor = Person(), Person(), Person()
    source, target, empty = await bank.wallet(alice, "100.00"), await bank.wallet(bob), await bank.wallet(poor)

    done, short, foreign, missing = await send(
        bank,
        parcel(alice, source, target, "25.00", request_id="request-a"),
        parcel(poor, empty, target, "1.00", request_id="request-b"),
        parcel(bob, source, target, "1.00", request_id="request-c"),
        parcel(alice, source, str(new_id()), "1.00", request_id="request-d"),
    )

    assert code_of(done) == (201, None)
    assert code_of(short) == (402, "insufficient_funds")
    assert code_of(foreign) == code_of(missing) == (404, "wallet_not_found")
    assert short is not None
    assert short.headers == [("content-type", "application/problem+json")]
    assert json.loads(short.body)["request_id"] == "request-b"
    assert json.loads(short.body)["instance"] == "/transactions/create"
    assert await bank.balances(source, target, empty) == [7_500, 2_500, 0]


async def test_each_is_on_record_with_the_address_it_came_from_alone_or_with_others(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    forged = {"X-Forwarded-For": "203.0.113.99", "X-Gateway-Token": "Bearer x.y.z"}
    public = {
        "203.0.113.9": by_gateway("203.0.113.9", "transaction-service"),
        "127.0.0.1": forged,
    }
    wish = {"amount": "1.00", "currency": "USD", "from_wallet_id": source, "to_wallet_id": target}

    replies = await send(
        bank,
        parcel(alice, source, target, "1.00", ip="203.0.113.7"),
        parcel(alice, source, target, "1.00", ip="2001:db8::7"),
        parcel(alice, source, target, "1.00"),
        parcel(alice, source, target, "5000.00", ip="203.0.113.8"),
    )
    alone = [
        await bank.client.post(
            "/transactions/create", json=wish | {"transaction_type": "transfer"}, headers=alice.headers | headers
        )
        for headers in public.values()
    ]

    bodies = [json.loads(reply.body) for reply in replies if reply] + [response.json() for response in alone]
    ids = [body.get("transaction_id") or body["id"] for body in bodies]
    expected = ["203.0.113.7", "2001:db8::7", None, "203.0.113.8", *public]
    documents = {document["subject"]: document for document in await bank.documents(*ids)}
    assert [documents[id_].get("ip") for id_ in ids] == expected
    assert [documents[id_]["type"].split(".")[1] for id_ in ids] == [*["completed"] * 3, "failed", *["completed"] * 2]
    posted = {each["subject"]: each.get("ip") for each in await bank.documents(*ids, schema="wallets")}
    assert [posted[id_] for id_ in ids if id_ in posted] == [*expected[:3], *public]


async def test_what_is_not_plain_is_handed_back_and_nothing_is_done(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    transfer = parcel(alice, source, target, "1.00")

    replies = await send(
        bank,
        parcel(alice, source, target, "NaN"),
        parcel(alice, source, target, "1.00", transaction_type="deposit"),
        parcel(alice, source, target, "1.00", metadata={"order": "1"}),
        parcel(alice, source, target, "1.00", content_type="text/plain"),
        parcel(alice, source, target, "1.00", authorization=""),
        parcel(alice, source, target, "1.00", authorization="Bearer x.y.z"),
        parcel(alice, source, target, "1.00", key=""),
        parcel(alice, source, target, "1.00", key="x" * 256),
        parcel(alice, source, target, "1.00", key="tab\there"),
        parcel(alice, source, source, "1.00"),
        transfer,
        Parcel(b"\xff", *[getattr(transfer, name) for name in transfer.__struct_fields__[1:]]),
    )

    assert [reply is None for reply in replies] == [True] * 10 + [False, True]
    assert code_of(replies[10]) == (201, None)
    assert await bank.balances(source, target) == [9_900, 100]
    assert await bank.sql(
        "select count(*) from transactions.transactions where user_id = $1 and type <> 'deposit'", alice.id
    ) == [(1,)]


async def test_one_key_in_one_bundle_has_one_effect(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    same = parcel(alice, source, target, "25.00", key="k")
    first = await send(bank, same, same, parcel(alice, source, target, "26.00", key="k"), same)
    [again] = await send(bank, same)

    assert [code_of(reply) for reply in first] == [
        (201, None),
        (409, "idempotency_key_in_use"),
        (422, "idempotency_key_reused"),
        (409, "idempotency_key_in_use"),
    ]
    assert first[1] is not None
    assert ("retry-after", "1") in first[1].headers
    assert again is not None
    assert first[0] is not None
    assert again.body == first[0].body
    assert ("idempotent-replayed", "true") in again.headers
    assert await bank.balances(source, target) == [7_500, 2_500]


async def test_bundles_and_single_requests_at_once_keep_every_cent(bank: Bank) -> None:
    people = [Person() for _ in range(4)]
    wallets = [await bank.wallet(person, "10.00") for person in people]

    async def bundle(number: int) -> Replies:
        return await send(
            bank,
            *(
                parcel(people[i % 4], wallets[i % 4], wallets[(i + number) % 4], "0.50", key=f"{number}-{i}")
                for i in range(32)
                if number % 4
            ),
        )

    replies = await asyncio.gather(
        *(bundle(number) for number in (1, 2, 3, 1, 2, 3)),
        *(bank.transfer(people[i % 4], wallets[i % 4], wallets[(i + 1) % 4], "0.25") for i in range(32)),
    )

    bundled = [reply for answer in replies if isinstance(answer, list) for reply in answer]
    assert {code_of(reply) for reply in bundled} <= {
        (201, None),
        (402, "insufficient_funds"),
        (409, "idempotency_key_in_use"),
    }
    assert sum(await bank.balances(*wallets)) == 4_000


@pytest.mark.parametrize("body", [b"", b"\xc1", b"{}", write_parcels([])[:-1] + b"\x91\x00", b"\x93" * 5000])
async def test_what_is_no_bundle_is_refused(bank: Bank, body: bytes) -> None:
    response = await bank.client.post(
        "/internal/transactions", content=body, headers=service_headers("api-gateway", "transaction-service")
    )

    assert (response.status_code, response.json()["code"]) == (422, "bundle_invalid")


async def test_it_is_for_services_only(bank: Bank) -> None:
    alice = Person()
    for headers in (
        {},
        alice.headers,
        service_headers("api-gateway", "wallet-service"),
        {"X-User-Id": str(alice.id)},
    ):
        response = await bank.client.post("/internal/transactions", content=write_parcels([]), headers=headers)

        assert response.status_code == 401
