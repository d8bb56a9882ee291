"""Orders at providers: each executed once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from payment_gateway.app import create_app
from payment_gateway.settings import PaymentSettings
from payment_gateway.testing import Gateway, order
from shared.ids import new_id
from shared.testing.lines import CommitLine, losing_a_commit
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person, service_headers


@pytest.mark.parametrize(("kind", "prefix"), [("charge", "ch_sim_"), ("payout", "po_sim_")])
async def test_an_order_succeeds_with_the_providers_reference(gateway: Gateway, kind: str, prefix: str) -> None:
    alice = Person()
    wanted = order(alice, kind)

    [outcome] = await gateway.execute(wanted)

    assert outcome == {
        "transaction_id": wanted["transaction_id"],
        "kind": kind,
        "payment_id": outcome["payment_id"],
        "provider": "stripe",
        "status": "succeeded",
        "code": None,
    }
    payment = await gateway.shown(alice, outcome["payment_id"])
    assert payment["provider_reference"].startswith(prefix)
    assert (payment["kind"], payment["amount"], payment["currency"]) == (kind, "100.00", "USD")
    assert (payment["status"], payment["reversal"]) == ("succeeded", None)
    assert await gateway.events(wanted) == [(1, "payments.succeeded.v1", 10_000, payment["provider_reference"])]


async def test_what_is_done_for_somebody_is_on_record_with_their_address(gateway: Gateway) -> None:
    asked, unasked = order(Person()), order(Person())
    headers = service_headers("transaction-service", "payment-gateway")

    await gateway.client.post(
        "/internal/orders", json={"orders": [asked]}, headers=headers | {"X-Forwarded-For": "203.0.113.7"}
    )
    await gateway.execute(unasked)

    assert [await gateway.addresses(each) for each in (asked, unasked)] == [["203.0.113.7"], [None]]


@pytest.mark.parametrize("kind", ["charge", "payout"])
@pytest.mark.parametrize(
    ("method", "provider"), [("paypal", "paypal"), ("debit_card", "stripe"), ("bank_account", "stripe")]
)
async def test_the_method_decides_the_provider(gateway: Gateway, kind: str, method: str, provider: str) -> None:
    [outcome] = await gateway.execute(order(Person(), kind, method=method))

    assert (outcome["provider"], outcome["status"]) == (provider, "succeeded")


@pytest.mark.parametrize("kind", ["charge", "payout"])
@pytest.mark.parametrize(
    ("method", "code"),
    [("pm_card_chargeDeclined", "card_declined"), ("pm_card_unheardOf", "payment_method_unknown")],
)
async def test_a_decline_is_final_and_has_no_reference(gateway: Gateway, kind: str, method: str, code: str) -> None:
    alice = Person()
    wanted = order(alice, kind, method=method)

    [first] = await gateway.execute(wanted)
    [again] = await gateway.execute(wanted)

    assert first == again
    assert (first["status"], first["code"]) == ("declined", code)
    payment = await gateway.shown(alice, first["payment_id"])
    assert (payment["provider_reference"], payment["decline_code"]) == (None, code)
    assert await gateway.events(wanted) == [(1, "payments.declined.v1", 10_000, code)]


@pytest.mark.parametrize("kind", ["charge", "payout"])
async def test_fifty_identical_orders_at_once_make_one_payment_and_one_event(
    gateway: Gateway, twin: Gateway, kind: str
) -> None:
    wanted = order(Person(), kind)

    responses = await asyncio.gather(*((gateway, twin)[n % 2].post(wanted) for n in range(50)))

    assert len({response.text for response in responses}) == 1
    assert await gateway.payments(wanted) == [(kind, "succeeded", None)]
    assert len(await gateway.events(wanted)) == 1


async def test_the_same_order_twice_in_one_call_is_one_payment(gateway: Gateway) -> None:
    wanted = order(Person())

    first, again = await gateway.execute(wanted, wanted)

    assert first == again
    assert await gateway.payments(wanted) == [("charge", "succeeded", None)]


async def test_a_charge_and_a_payout_of_one_transaction_are_two_payments(gateway: Gateway) -> None:
    charge = order(Person())

    outcomes = await gateway.execute(charge, charge | {"kind": "payout"})

    assert [(outcome["kind"], outcome["status"]) for outcome in outcomes] == [
        ("charge", "succeeded"),
        ("payout", "succeeded"),
    ]


async def test_outcomes_come_in_the_orders_order(gateway: Gateway) -> None:
    orders = [order(Person(), amount_minor=n) for n in range(1, 101)]

    outcomes = await gateway.execute(*orders)

    assert [outcome["transaction_id"] for outcome in outcomes] == [wanted["transaction_id"] for wanted in orders]
    assert {outcome["status"] for outcome in outcomes} == {"succeeded"}


@pytest.mark.parametrize("change", [{"amount_minor": 1}, {"currency": "EUR"}, {"method": "debit_card"}])
async def test_an_order_with_other_terms_is_pending_and_its_neighbours_are_executed(
    gateway: Gateway, change: dict[str, Any]
) -> None:
    charge, neighbour = order(Person()), order(Person())
    [first] = await gateway.execute(charge)

    [changed, other] = await gateway.execute(charge | change, neighbour)

    assert changed == first | {"status": "pending", "code": "order_changed"}
    assert other["status"] == "succeeded"
    assert await gateway.execute(charge) == [first]
    assert len(await gateway.events(charge)) == 1


async def test_an_order_that_fails_is_pending_and_its_neighbours_are_executed(gateway: Gateway) -> None:
    alice = Person()
    failing, neighbour = order(alice, "payout"), order(Person())

    async with refusing_payments_of(gateway, alice):
        outcomes = await gateway.execute(failing, neighbour)
        assert await gateway.payments(failing) == []

    assert outcomes[0] == {
        "transaction_id": failing["transaction_id"],
        "kind": "payout",
        "payment_id": None,
        "provider": "stripe",
        "status": "pending",
        "code": "unknown",
    }
    assert outcomes[1]["status"] == "succeeded"
    assert await gateway.results(failing) == [("succeeded", None)]


@asynccontextmanager
async def refusing_payments_of(gateway: Gateway, person: Person) -> AsyncIterator[None]:
    """The database refuses to store this person's payments."""
    await gateway.sql(
        f"alter table payments.payments add constraint refused check (user_id <> '{person.id}') not valid"
    )
    try:
        yield
    finally:
        await gateway.sql("alter table payments.payments drop constraint refused")


@asynccontextmanager
async def losing(
    sandbox: Sandbox, settings: PaymentSettings, statement: bytes, *, for_good: bool
) -> AsyncIterator[tuple[Gateway, CommitLine]]:
    """A payment-gateway whose database commits `statement` and does not get to say so."""
    async with losing_a_commit(settings.postgres_host, settings.postgres_port, statement, for_good=for_good) as line:
        app = create_app(settings.model_copy(update={"postgres_port": line.port}))
        async with in_process(app) as client:
            yield Gateway(client, sandbox), line


async def test_a_database_that_is_gone_is_503_and_nothing_is_lost(
    gateway: Gateway, sandbox: Sandbox, settings: PaymentSettings
) -> None:
    orders = [order(Person()), order(Person())]

    async with losing(sandbox, settings, b"INSERT INTO payments.payments", for_good=True) as (dying, line):
        response = await dying.post(*orders)

    assert (response.status_code, response.json()["code"], line.cuts) == (503, "unavailable", 1)
    assert await gateway.results(*orders) == [("succeeded", None), ("succeeded", None)]
    assert [len(await gateway.events(wanted)) for wanted in orders] == [1, 1]


async def test_a_commit_that_was_not_heard_of_leaves_one_order_unknown_and_happens_once(
    gateway: Gateway, sandbox: Sandbox, settings: PaymentSettings
) -> None:
    orders = [order(Person()), order(Person())]

    async with losing(sandbox, settings, b"UPDATE payments.payments SET status", for_good=False) as (deaf, line):
        results = await deaf.results(*orders)

    assert line.cuts == 1
    assert sorted(results, key=str) == [("pending", "unknown"), ("succeeded", None)]
    assert await gateway.results(*orders) == [("succeeded", None), ("succeeded", None)]
    assert [len(await gateway.events(wanted)) for wanted in orders] == [1, 1]


@pytest.mark.parametrize(
    "change",
    [{"kind": "charge", "original_id": str(new_id())}, {"kind": "refund", "cancel": True}, {"kind": "dispute"}],
)
async def test_what_makes_no_sense_is_refused(gateway: Gateway, change: dict[str, Any]) -> None:
    wanted = order(Person(), **change)

    response = await gateway.post(wanted)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")
    assert await gateway.payments(wanted) == []


async def test_somebody_elses_payment_looks_like_none(gateway: Gateway) -> None:
    alice = Person()
    [outcome] = await gateway.execute(order(alice))

    async def get(payment_id: str, person: Person) -> tuple[int, str]:
        response = await gateway.client.get(f"/payments/{payment_id}", headers=person.headers)
        return response.status_code, response.json().get("code", "")

    assert await get(outcome["payment_id"], Person()) == (404, "payment_not_found")
    assert await get(str(new_id()), Person()) == (404, "payment_not_found")
    assert (await get(outcome["payment_id"], Person("admin")))[0] == 200


async def test_orders_are_taken_from_services_only(gateway: Gateway) -> None:
    alice = Person()
    wanted = order(alice)
    for headers in ({}, alice.headers, service_headers("transaction-service", "wallet-service")):
        response = await gateway.client.post("/internal/orders", json={"orders": [wanted]}, headers=headers)
        assert response.status_code == 401
    assert await gateway.payments(wanted) == []
