"""Refunds: never more given back than was charged."""

import asyncio
from typing import Any

import pytest

from payment_gateway.testing import Gateway, order, refund_of
from shared.ids import new_id
from shared.testing.tokens import Person


async def test_a_refund_stands_beside_its_charge(gateway: Gateway) -> None:
    charge = order(Person())

    outcomes = await gateway.execute(charge, charge | {"kind": "refund"})

    assert [outcome["status"] for outcome in outcomes] == ["succeeded", "succeeded"]
    assert outcomes[0]["payment_id"] != outcomes[1]["payment_id"]


async def test_where_nothing_was_charged_a_refund_keeps_it_so(gateway: Gateway) -> None:
    charge = order(Person())

    [refund] = await gateway.execute(charge | {"kind": "refund", "original_id": charge["transaction_id"]})
    [late] = await gateway.execute(charge)

    assert (refund["kind"], refund["status"], refund["code"]) == ("charge", "declined", "voided")
    assert late == refund
    assert await gateway.events(charge) == []


async def test_a_declined_charge_has_nothing_to_give_back(gateway: Gateway) -> None:
    charge = order(Person(), method="pm_card_chargeDeclined")

    outcomes = await gateway.execute(charge, charge | {"kind": "refund"})

    assert outcomes[0] == outcomes[1]
    assert (outcomes[1]["kind"], outcomes[1]["code"]) == ("charge", "card_declined")


async def test_a_charge_is_given_back_in_parts_up_to_what_was_charged(gateway: Gateway) -> None:
    alice = Person()
    charge = order(alice)
    await gateway.execute(charge)
    parts = [refund_of(charge, 4_000), refund_of(charge, 6_000), refund_of(charge, 1)]

    outcomes = await gateway.execute(*parts)

    assert [(outcome["kind"], outcome["status"], outcome["code"]) for outcome in outcomes] == [
        ("refund", "succeeded", None),
        ("refund", "succeeded", None),
        ("refund", "declined", "refund_exceeds_charge"),
    ]
    assert await gateway.execute(*parts) == outcomes
    shown = await gateway.shown(alice, outcomes[0]["payment_id"])
    assert (shown["kind"], shown["amount"], shown["transaction_id"]) == (
        "refund",
        "40.00",
        parts[0]["transaction_id"],
    )
    assert await gateway.events(parts[0]) == [(1, "payments.succeeded.v1", 4_000, shown["provider_reference"])]
    assert await gateway.events(parts[2]) == [(1, "payments.declined.v1", 1, "refund_exceeds_charge")]
    assert await gateway.given_back(charge) == 10_000


async def test_what_was_given_back_in_part_is_not_given_back_whole(gateway: Gateway) -> None:
    charge = order(Person())
    await gateway.execute(charge, refund_of(charge, 1))

    [refund] = await gateway.execute(charge | {"kind": "refund"})

    assert (refund["kind"], refund["status"], refund["code"]) == ("refund", "declined", "refund_exceeds_charge")
    assert await gateway.given_back(charge) == 1


@pytest.mark.parametrize(
    ("amounts", "succeed"),
    [
        ([5_000, 5_000], 2),
        ([5_000, 5_000, 5_000], 2),
        ([5_001, 5_001], 1),
        ([10_000] * 10, 1),
        ([3_000] * 20, 3),
    ],
)
async def test_refunds_at_once_never_give_back_more_than_was_charged(
    gateway: Gateway, twin: Gateway, amounts: list[int], succeed: int
) -> None:
    charge = order(Person())
    await gateway.execute(charge)
    refunds = [refund_of(charge, amount) for amount in amounts]

    outcomes = await asyncio.gather(*((gateway, twin)[n % 2].results(refund) for n, refund in enumerate(refunds)))

    found = sorted((outcome for [outcome] in outcomes), key=str)
    expected: list[tuple[str, str | None]] = [("succeeded", None)] * succeed
    expected += [("declined", "refund_exceeds_charge")] * (len(amounts) - succeed)
    assert found == sorted(expected, key=str)
    assert await gateway.given_back(charge) == succeed * amounts[0]


async def test_fifty_identical_refunds_at_once_make_one_refund_and_one_event(gateway: Gateway, twin: Gateway) -> None:
    charge = order(Person())
    await gateway.execute(charge)
    refund = refund_of(charge, 10_000)

    responses = await asyncio.gather(*((gateway, twin)[n % 2].post(refund) for n in range(50)))

    assert len({response.text for response in responses}) == 1
    assert await gateway.results(refund) == [("succeeded", None)]
    assert len(await gateway.events(refund)) == 1


@pytest.mark.parametrize(
    "change", [{"original_id": str(new_id())}, {"user_id": str(new_id())}, {"currency": "EUR"}, {"method": "paypal"}]
)
async def test_a_refund_without_a_charge_of_this_person_method_and_currency_is_declined(
    gateway: Gateway, change: dict[str, Any]
) -> None:
    charge = order(Person())
    await gateway.execute(charge)
    refund = refund_of(charge, 100, **change)

    assert await gateway.results(refund, refund) == [("declined", "charge_not_found")] * 2

    assert await gateway.given_back(charge) == 0
    assert await gateway.events(refund) == [(1, "payments.declined.v1", 100, "charge_not_found")]


@pytest.mark.parametrize("method", ["pm_card_chargeDeclined", "pm_usBankAccount_processing"])
async def test_only_a_charge_that_succeeded_is_given_back(gateway: Gateway, method: str) -> None:
    charge = order(Person(), method=method)

    [_, refund] = await gateway.results(charge, refund_of(charge, 100))

    assert refund == ("declined", "charge_not_found")


async def test_a_refund_of_another_charge_than_before_is_pending(gateway: Gateway) -> None:
    charge, other = (order(Person()) for _ in range(2))
    await gateway.execute(charge, other)
    refund = refund_of(charge, 100)
    [first] = await gateway.execute(refund)

    [changed] = await gateway.execute(refund | {"original_id": other["transaction_id"]})

    assert changed == first | {"status": "pending", "code": "order_changed"}
    assert (await gateway.given_back(charge), await gateway.given_back(other)) == (100, 0)
