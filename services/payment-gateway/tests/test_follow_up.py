"""What waits for a provider is followed up, and what comes back is recorded: each once."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from payment_gateway.testing import Gateway, order, refund_of
from shared.ids import new_id
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

pytestmark = pytest.mark.usefixtures("twin")  # two workers at once

both_kinds = pytest.mark.parametrize("kind", ["charge", "payout"])


async def reversals(gateway: Gateway, wanted: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Status, reversal and what came back, once nothing more is expected of the payment."""

    async def look() -> list[tuple[Any, ...]]:
        return await gateway.sql(
            "select status, reversal, reversed_minor, reversed_at is not null from payments.payments "
            "where transaction_id = $1::uuid and kind = $2 and next_check_at is null",
            wanted["transaction_id"],
            wanted["kind"],
        )

    return await eventually(look)


@both_kinds
@pytest.mark.parametrize(
    ("method", "ended"),
    [
        ("pm_usBankAccount_success", ("succeeded", None)),
        ("pm_usBankAccount_noAccount", ("declined", "no_account")),
        ("pm_usBankAccount_accountClosed", ("declined", "account_closed")),
    ],
)
async def test_a_bank_account_is_pending_first_and_settles_by_itself(
    gateway: Gateway, kind: str, method: str, ended: tuple[str, str | None]
) -> None:
    wanted = order(Person(), kind, method=method)

    assert await gateway.results(wanted) == [("pending", None)]

    assert await gateway.ended(wanted) == ended
    assert await gateway.results(wanted) == [ended]
    [(sequence, kind_of_event, amount, _)] = await gateway.events(wanted)
    assert (sequence, kind_of_event, amount) == (1, f"payments.{ended[0]}.v1", 10_000)


async def test_workers_and_fifty_live_requests_end_a_payment_once(gateway: Gateway, twin: Gateway) -> None:
    wanted = order(Person(), method="pm_usBankAccount_success")

    async def ask(asked: Gateway) -> None:
        async def succeeded() -> bool:
            return await asked.results(wanted) == [("succeeded", None)]

        await eventually(succeeded)

    await asyncio.gather(*(ask((gateway, twin)[n % 2]) for n in range(50)))

    assert await gateway.payments(wanted) == [("charge", "succeeded", None)]
    assert len(await gateway.events(wanted)) == 1


async def test_what_a_crash_left_between_commit_and_provider_is_ended(gateway: Gateway) -> None:
    wanted = order(Person(), "payout")
    await gateway.sql(
        "insert into payments.payments "
        "(id, transaction_id, kind, user_id, provider, method, amount_minor, currency, next_check_at) "
        "values ($1, $2::uuid, 'payout', $3::uuid, 'stripe', 'credit_card', 10000, 'USD', now())",
        new_id(),
        wanted["transaction_id"],
        wanted["user_id"],
    )

    assert await gateway.ended(wanted) == ("succeeded", None)
    assert len(await gateway.events(wanted)) == 1


async def test_what_waits_long_is_asked_for_at_most_once_a_minute_and_at_least_every_minute(gateway: Gateway) -> None:
    wanted = order(Person(), method="pm_usBankAccount_processing")
    await gateway.execute(wanted)
    await gateway.sql(
        "update payments.payments set created_at = now() - interval '12 hours', next_check_at = now() "
        "where transaction_id = $1::uuid",
        wanted["transaction_id"],
    )

    async def planned() -> list[tuple[Any, ...]]:
        # A worker's lease is shorter than the shortest wait.
        return await gateway.sql(
            "select next_check_at - now() from payments.payments "
            "where transaction_id = $1::uuid and next_check_at > now() + interval '20 s'",
            wanted["transaction_id"],
        )

    [(wait,)] = await eventually(planned)
    assert timedelta(seconds=20) < wait <= timedelta(seconds=60)
    assert await gateway.payments(wanted) == [("charge", "pending", None)]
    assert await gateway.events(wanted) == []


async def test_a_disputed_charge_stays_succeeded_and_says_what_was_taken(gateway: Gateway) -> None:
    alice = Person()
    charge = order(alice, method="pm_card_createDispute")

    [outcome] = await gateway.execute(charge)

    assert outcome["status"] == "succeeded"
    assert await reversals(gateway, charge) == [("succeeded", "disputed", 10_000, True)]
    payment = await gateway.shown(alice, outcome["payment_id"])
    assert (payment["status"], payment["reversal"]) == ("succeeded", "disputed")
    assert await gateway.events(charge) == [
        (1, "payments.succeeded.v1", 10_000, payment["provider_reference"]),
        (2, "payments.disputed.v1", 10_000, payment["provider_reference"]),
    ]


async def test_a_returned_payout_stays_succeeded_and_says_what_came_back(gateway: Gateway) -> None:
    alice = Person()
    payout = order(alice, "payout", method="pm_usBankAccount_payoutReturned")

    [outcome] = await gateway.execute(payout)

    assert outcome["status"] == "succeeded"
    assert await reversals(gateway, payout) == [("succeeded", "returned", 10_000, True)]
    payment = await gateway.shown(alice, outcome["payment_id"])
    assert (payment["kind"], payment["status"], payment["reversal"]) == ("payout", "succeeded", "returned")
    assert await gateway.events(payout) == [
        (1, "payments.succeeded.v1", 10_000, payment["provider_reference"]),
        (2, "payments.returned.v1", 10_000, payment["provider_reference"]),
    ]


@pytest.mark.parametrize(
    ("kind", "method"), [("payout", "pm_card_createDispute"), ("charge", "pm_usBankAccount_payoutReturned")]
)
async def test_a_payout_is_not_disputed_and_a_charge_not_returned(gateway: Gateway, kind: str, method: str) -> None:
    wanted = order(Person(), kind, method=method)

    assert await gateway.results(wanted) == [("succeeded", None)]
    assert await reversals(gateway, wanted) == [("succeeded", None, None, False)]


async def test_a_dispute_takes_what_was_not_given_back(gateway: Gateway) -> None:
    charge = order(Person(), method="pm_card_createDispute")
    refund = refund_of(charge, 3_000)

    assert await gateway.results(charge, refund) == [("succeeded", None)] * 2

    assert await reversals(gateway, charge) == [("succeeded", "disputed", 7_000, True)]
    assert [event[:3] for event in await gateway.events(charge)] == [
        (1, "payments.succeeded.v1", 10_000),
        (2, "payments.disputed.v1", 7_000),
    ]


@pytest.mark.parametrize(("refund_ends", "taken"), [("succeeded", 7_000), ("declined", 10_000)])
async def test_a_dispute_that_meets_a_refund_under_way_is_decided_after_it(
    gateway: Gateway, refund_ends: str, taken: int
) -> None:
    """The refund is one that a provider has not answered yet."""
    charge, waiting = order(Person(), method="pm_card_createDispute"), new_id()
    await gateway.sql(
        "insert into payments.payments "
        "  (id, transaction_id, original_id, kind, user_id, provider, method, amount_minor, currency) values "
        "  ($1, $2, $3::uuid, 'refund', $4::uuid, 'stripe', 'pm_card_createDispute', 3000, 'USD')",
        new_id(),
        waiting,
        charge["transaction_id"],
        charge["user_id"],
    )
    await gateway.execute(charge)

    async def asked_again() -> list[tuple[Any, ...]]:
        return await gateway.sql(
            "select 1 from payments.payments where transaction_id = $1::uuid and reversal is null "
            "and next_check_at is not null and created_at < now() - interval '1 second'",
            charge["transaction_id"],
        )

    assert await eventually(asked_again) == [(1,)]
    await gateway.sql(
        "update payments.payments set status = $2, provider_reference = $3, decline_code = $4 "
        "where transaction_id = $1",
        waiting,
        refund_ends,
        "re_1" if refund_ends == "succeeded" else None,
        None if refund_ends == "succeeded" else "charge_disputed",
    )

    assert await reversals(gateway, charge) == [("succeeded", "disputed", taken, True)]


async def test_where_everything_was_given_back_there_is_nothing_to_dispute(gateway: Gateway) -> None:
    charge = order(Person(), method="pm_card_createDispute")

    assert await gateway.results(charge, refund_of(charge, 10_000)) == [("succeeded", None)] * 2

    assert await reversals(gateway, charge) == [("succeeded", None, None, False)]
    assert [event[:2] for event in await gateway.events(charge)] == [(1, "payments.succeeded.v1")]


async def test_a_disputed_charge_is_not_given_back(gateway: Gateway) -> None:
    charge = order(Person(), method="pm_card_createDispute")
    await gateway.execute(charge)
    await reversals(gateway, charge)

    outcomes = await gateway.results(refund_of(charge, 1), charge | {"kind": "refund"})

    assert outcomes == [("declined", "charge_disputed")] * 2
    assert await gateway.given_back(charge) == 0


async def test_a_dispute_and_refunds_at_once_take_no_more_than_was_charged(gateway: Gateway, twin: Gateway) -> None:
    charges = [order(Person(), method="pm_card_createDispute") for _ in range(8)]
    await gateway.execute(*charges)

    async def refund_until_disputed(charge: dict[str, Any]) -> None:
        async def declined() -> bool:
            return (await twin.results(refund_of(charge, 10)))[0][0] == "declined"

        await eventually(declined)

    await asyncio.gather(*map(refund_until_disputed, charges))

    for charge in charges:
        [(_, reversal, reversed_minor, _)] = await reversals(gateway, charge)
        assert reversal == "disputed"
        assert reversed_minor + await gateway.given_back(charge) == 10_000
        assert [event[0] for event in await gateway.events(charge)] == [1, 2]
