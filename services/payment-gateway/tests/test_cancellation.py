"""Cancelling: what was cancelled never happens, what happened is said to have."""

import asyncio
from typing import Any

import pytest

from payment_gateway.testing import Gateway, order
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

CANCEL = {"cancel": True}
CANCELLED = ("declined", "cancelled")

both_kinds = pytest.mark.parametrize("kind", ["charge", "payout"])


@both_kinds
async def test_what_was_cancelled_before_it_was_ordered_never_happens(gateway: Gateway, kind: str) -> None:
    wanted = order(Person(), kind)

    assert await gateway.results(wanted | CANCEL, wanted, wanted | CANCEL) == [CANCELLED] * 3

    assert await gateway.payments(wanted) == [(kind, *CANCELLED)]
    assert await gateway.events(wanted) == []


@both_kinds
async def test_what_waits_for_the_provider_is_cancelled_there(gateway: Gateway, kind: str) -> None:
    wanted = order(Person(), kind, method="pm_usBankAccount_processing")

    assert await gateway.results(wanted) == [("pending", None)]
    assert await gateway.results(wanted | CANCEL, wanted, wanted | CANCEL) == [CANCELLED] * 3

    assert await gateway.events(wanted) == [(1, "payments.declined.v1", 10_000, "cancelled")]
    assert await gateway.sql(
        "select next_check_at from payments.payments where transaction_id = $1::uuid", wanted["transaction_id"]
    ) == [(None,)]


@both_kinds
@pytest.mark.parametrize(
    ("method", "status", "code"),
    [("credit_card", "succeeded", None), ("pm_card_chargeDeclined", "declined", "card_declined")],
)
async def test_what_has_ended_cannot_be_cancelled(
    gateway: Gateway, kind: str, method: str, status: str, code: str | None
) -> None:
    wanted = order(Person(), kind, method=method)
    await gateway.execute(wanted)

    assert await gateway.results(wanted | CANCEL) == [(status, code)]

    assert len(await gateway.events(wanted)) == 1


async def test_cancelling_other_terms_cancels_nothing(gateway: Gateway) -> None:
    wanted = order(Person(), method="pm_usBankAccount_processing")
    await gateway.execute(wanted)

    assert await gateway.results(wanted | CANCEL | {"amount_minor": 1}) == [("pending", "order_changed")]

    assert await gateway.results(wanted) == [("pending", None)]


@both_kinds
@pytest.mark.parametrize("method", ["credit_card", "pm_usBankAccount_success", "pm_usBankAccount_processing"])
async def test_cancelling_while_executing_gives_one_final_answer(
    gateway: Gateway, twin: Gateway, kind: str, method: str
) -> None:
    wanted = order(Person(), kind, method=method)

    calls = [(gateway, twin)[n % 2].results(wanted | {"cancel": n % 4 > 1}) for n in range(12)]
    answers = {answer for [answer] in await asyncio.gather(*calls)} - {("pending", None)}

    async def definite() -> set[tuple[str, str | None]]:
        return set(await gateway.results(wanted | CANCEL, wanted)) - {("pending", None)}

    final = await eventually(definite)
    assert final in ({CANCELLED}, {("succeeded", None)})
    assert answers <= final
    assert len(await gateway.events(wanted)) <= 1
    assert set(await twin.results(wanted, wanted | CANCEL)) == final


async def test_an_answer_that_comes_after_the_cancellation_starts_nothing_again(
    gateway: Gateway, sandbox: Sandbox
) -> None:
    wanted = order(Person(), method="pm_usBankAccount_processing")
    await gateway.execute(wanted)
    payment = "payments.payments where transaction_id = $1::uuid"
    connection = await sandbox.connect()
    try:
        async with connection.transaction():
            await connection.execute(f"select from {payment} for no key update", wanted["transaction_id"])
            late = asyncio.create_task(gateway.results(wanted))  # pending when it asks, cancelled when it records

            async def recording() -> list[tuple[Any, ...]]:
                return await gateway.sql("select from pg_locks where not granted and locktype = 'transactionid'")

            await eventually(recording)
            await connection.execute(
                "update payments.payments set status = 'declined', decline_code = 'cancelled', next_check_at = null "
                "where transaction_id = $1::uuid",
                wanted["transaction_id"],
            )
    finally:
        await connection.close()

    assert await late == [CANCELLED]
    assert await gateway.sql(f"select next_check_at from {payment}", wanted["transaction_id"]) == [(None,)]
