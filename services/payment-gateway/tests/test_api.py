"""Orders at providers: each executed once."""

import asyncio
from typing import Any

import httpx
import pytest

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person, service_headers


def order(owner: Person, **change: Any) -> dict[str, Any]:
    return {
        "transaction_id": str(new_id()),
        "kind": "charge",
        "user_id": str(owner.id),
        "method": "credit_card",
        "amount_minor": 10_000,
        "currency": "USD",
    } | change


async def execute(client: httpx.AsyncClient, *orders: dict[str, Any]) -> httpx.Response:
    headers = service_headers("transaction-service", "payment-gateway")
    return await client.post("/internal/orders", json={"orders": orders}, headers=headers)


async def test_a_charge_succeeds_with_the_providers_reference(client: httpx.AsyncClient) -> None:
    alice = Person()
    charge = order(alice)

    [outcome] = (await execute(client, charge)).json()["outcomes"]

    assert outcome == {
        "transaction_id": charge["transaction_id"],
        "kind": "charge",
        "payment_id": outcome["payment_id"],
        "provider": "stripe",
        "status": "succeeded",
        "code": None,
    }
    payment = (await client.get(f"/payments/{outcome['payment_id']}", headers=alice.headers)).json()
    assert payment["provider_reference"].startswith("ch_sim_")
    assert (payment["amount"], payment["currency"], payment["status"]) == ("100.00", "USD", "succeeded")


@pytest.mark.parametrize(
    ("method", "provider"), [("paypal", "paypal"), ("debit_card", "stripe"), ("bank_account", "stripe")]
)
async def test_the_method_decides_the_provider(client: httpx.AsyncClient, method: str, provider: str) -> None:
    [outcome] = (await execute(client, order(Person(), method=method))).json()["outcomes"]

    assert (outcome["provider"], outcome["status"]) == (provider, "succeeded")


async def test_a_decline_is_final_and_has_no_reference(client: httpx.AsyncClient) -> None:
    alice = Person()
    charge = order(alice, method="pm_card_chargeDeclined")

    first, again = [(await execute(client, charge)).json()["outcomes"][0] for _ in range(2)]

    assert first == again
    assert (first["status"], first["code"]) == ("declined", "card_declined")
    payment = (await client.get(f"/payments/{first['payment_id']}", headers=alice.headers)).json()
    assert (payment["provider_reference"], payment["decline_code"]) == (None, "card_declined")


async def test_twenty_concurrent_repeats_are_one_payment(client: httpx.AsyncClient, sandbox: Sandbox) -> None:
    charge = order(Person())

    responses = await asyncio.gather(*(execute(client, charge) for _ in range(20)))

    assert len({response.text for response in responses}) == 1
    connection = await sandbox.connect()
    try:
        count = await connection.fetchval(
            "select count(*) from payments.payments where transaction_id = $1::uuid", charge["transaction_id"]
        )
    finally:
        await connection.close()
    assert count == 1


@pytest.mark.parametrize("change", [{"amount_minor": 1}, {"currency": "EUR"}, {"method": "debit_card"}])
async def test_the_same_order_with_other_terms_is_refused(client: httpx.AsyncClient, change: dict[str, Any]) -> None:
    charge = order(Person())
    await execute(client, charge)

    response = await execute(client, charge | change)

    assert (response.status_code, response.json()["code"]) == (409, "order_changed")


async def test_a_refund_stands_beside_its_charge(client: httpx.AsyncClient) -> None:
    charge = order(Person())

    outcomes = (await execute(client, charge, charge | {"kind": "refund"})).json()["outcomes"]

    assert [outcome["status"] for outcome in outcomes] == ["succeeded", "succeeded"]
    assert outcomes[0]["payment_id"] != outcomes[1]["payment_id"]


async def test_where_nothing_was_charged_a_refund_keeps_it_so(client: httpx.AsyncClient) -> None:
    charge = order(Person())

    [refund] = (await execute(client, charge | {"kind": "refund"})).json()["outcomes"]
    [late] = (await execute(client, charge)).json()["outcomes"]

    assert (refund["kind"], refund["status"], refund["code"]) == ("charge", "declined", "voided")
    assert late == refund


async def test_a_declined_charge_has_nothing_to_give_back(client: httpx.AsyncClient) -> None:
    charge = order(Person(), method="pm_card_chargeDeclined")

    outcomes = (await execute(client, charge, charge | {"kind": "refund"})).json()["outcomes"]

    assert outcomes[0] == outcomes[1]
    assert (outcomes[1]["kind"], outcomes[1]["code"]) == ("charge", "card_declined")


async def test_somebody_elses_payment_looks_like_none(client: httpx.AsyncClient) -> None:
    alice = Person()
    [outcome] = (await execute(client, order(alice))).json()["outcomes"]

    async def get(payment_id: str, person: Person) -> tuple[int, str]:
        response = await client.get(f"/payments/{payment_id}", headers=person.headers)
        return response.status_code, response.json().get("code", "")

    assert await get(outcome["payment_id"], Person()) == (404, "payment_not_found")
    assert await get(str(new_id()), Person()) == (404, "payment_not_found")
    assert (await get(outcome["payment_id"], Person("admin")))[0] == 200


async def test_orders_are_taken_from_services_only(client: httpx.AsyncClient) -> None:
    alice = Person()
    for headers in ({}, alice.headers, service_headers("transaction-service", "wallet-service")):
        response = await client.post("/internal/orders", json={"orders": [order(alice)]}, headers=headers)
        assert response.status_code == 401
