"""One effect for each (user, operation, key), whatever repeats."""

import asyncio

import pytest

from shared.ids import new_id
from shared.testing.tokens import Person
from transaction_service.testing import Bank

EVERYTHING = (
    "select 'transaction', t::text from transactions.transactions t "
    "union all select 'key', k::text from transactions.idempotency_keys k "
    "union all select 'payment', p::text from payments.payments p "
    "union all select 'account', a::text from wallets.accounts a "
    "union all select 'posting', p::text from wallets.postings p "
    "union all select 'entry', e::text from wallets.entries e "
    "union all select 'hold', h::text from wallets.holds h order by 1, 2"
)


async def everything(bank: Bank) -> list[tuple[str, str]]:
    """All that there is, to the byte."""
    return [(kind, row) for kind, row in await bank.sql(EVERYTHING)]


async def test_a_repeat_gets_the_same_answer_and_moves_nothing(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    first = await bank.transfer(alice, source, target, "25.00", key="rent-2026-11")
    again = await bank.transfer(alice, source, target, "25.00", key="rent-2026-11")

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert await bank.balances(source, target) == [7_500, 2_500]


async def test_equal_amounts_written_differently_are_the_same_request(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    first = await bank.transfer(alice, source, target, "25.00", key="k")
    again = await bank.transfer(alice, source, target, 25, key="k")

    assert again.content == first.content
    assert await bank.balances(target) == [2_500]


async def test_another_request_under_the_same_key_is_refused(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    await bank.transfer(alice, source, target, "25.00", key="k")
    before = await everything(bank)

    others = [
        await bank.transfer(alice, source, target, "25.01", key="k"),
        await bank.transfer(alice, target, source, "25.00", key="k"),
        await bank.transfer(alice, source, target, "25.00", key="k", description="rent"),
        await bank.transfer(alice, source, target, "25.00", key="k", metadata={"order": "1"}),
        await bank.deposit(alice, source, "25.00", key="k"),
        await bank.withdraw(alice, source, "25.00", key="k"),
    ]

    assert {(other.status_code, other.json()["code"]) for other in others} == {(422, "idempotency_key_reused")}
    assert await everything(bank) == before
    assert await bank.balances(source, target) == [7_500, 2_500]


async def test_a_key_belongs_to_its_user(bank: Bank) -> None:
    alice, bob = Person(), Person()
    hers, his = await bank.wallet(alice, "100.00"), await bank.wallet(bob, "100.00")

    first = await bank.transfer(alice, hers, his, "1.00", key="k")
    second = await bank.transfer(bob, his, hers, "2.00", key="k")

    assert (first.status_code, second.status_code) == (201, 201)
    assert await bank.balances(hers, his) == [10_100, 9_900]


async def test_fifty_concurrent_retries_have_one_effect(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    responses = await asyncio.gather(*(bank.transfer(alice, source, target, "25.00", key="k") for _ in range(50)))

    assert {response.status_code for response in responses} <= {201, 409}
    assert len({response.content for response in responses if response.status_code == 201}) == 1
    busy = [response for response in responses if response.status_code == 409]
    assert {(r.json()["code"], r.headers["Retry-After"]) for r in busy} <= {("idempotency_key_in_use", "1")}
    assert await bank.balances(source, target) == [7_500, 2_500]
    assert await bank.sql(
        "select count(*) from transactions.transactions where user_id = $1 and type = 'transfer'", alice.id
    ) == [(1,)]


async def test_fifty_concurrent_deposits_under_one_key_charge_once(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    await asyncio.gather(*(bank.deposit(alice, wallet, "25.00", key="k") for _ in range(50)))
    last = await bank.deposit(alice, wallet, "25.00", key="k")

    assert last.status_code == 201
    assert await bank.balances(wallet) == [2_500]
    assert await bank.sql("select count(*) from payments.payments where user_id = $1", alice.id) == [(1,)]


async def test_a_refusal_is_repeated_even_when_there_is_money_now(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice), await bank.wallet(bob)

    refused = await bank.transfer(alice, source, target, "5.00", key="k")
    await bank.deposit(alice, source, "100.00")
    again = await bank.transfer(alice, source, target, "5.00", key="k")

    assert (refused.status_code, again.status_code) == (402, 402)
    assert again.content == refused.content
    assert again.headers["content-type"] == "application/problem+json"
    assert await bank.balances(target) == [0]


async def test_a_request_that_was_wrong_may_be_corrected_under_its_key(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "10.00"), await bank.wallet(bob)

    wrong_wallet = await bank.transfer(alice, source, str(new_id()), "5.00", key="k")
    wrong_currency = await bank.transfer(alice, source, target, "5.00", currency="EUR", key="k")
    wrong_amount = await bank.transfer(alice, source, target, "5.001", key="k")
    right = await bank.transfer(alice, source, target, "5.00", key="k")

    codes = [response.status_code for response in (wrong_wallet, wrong_currency, wrong_amount, right)]
    assert codes == [404, 422, 422, 201]
    assert await bank.balances(source, target) == [500, 500]


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "na\u00efve"])
async def test_a_key_out_of_bounds_is_refused(bank: Bank, key: str) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    headers = alice.headers | {"Idempotency-Key": key}

    response = await bank.client.post(
        "/transactions/create",
        json={
            "transaction_type": "deposit",
            "amount": 1,
            "currency": "USD",
            "to_wallet_id": wallet,
            "payment_method": "credit_card",
        },
        headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    )

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "Idempotency-Key"
    assert await bank.balances(wallet) == [0]
