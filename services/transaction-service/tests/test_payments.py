"""Payments to merchants and refunds of what was received."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, Neighbour


@pytest.fixture
async def with_fees(sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Bank]:
    """A transaction-service that takes 2.5 % of a payment."""
    settings = sandbox.settings(
        TransactionSettings,
        wallet_service_url=wallet_service.url,
        payment_gateway_url=payment_gateway.url,
        payment_fee_bps=250,
    )
    async with in_process(create_app(settings)) as client:
        yield Bank(client, wallet_service.url, sandbox)


async def test_a_payment_goes_to_the_merchant_less_the_fee(with_fees: Bank) -> None:
    alice, shop = Person(), Person("merchant")
    source, till = await with_fees.wallet(alice, "100.00"), await with_fees.wallet(shop)
    [(fees_before,)] = await with_fees.sql(
        "select coalesce(sum(balance_minor), 0)::bigint from wallets.accounts where name = 'fees:USD'"
    )

    response = await with_fees.payment(alice, source, till, "20.00")

    assert (response.status_code, response.json()["status"], response.json()["fee"]) == (201, "completed", None)
    assert await with_fees.balances(source, till) == [8_000, 1_950]
    assert await with_fees.sql("select balance_minor from wallets.accounts where name = 'fees:USD'") == [
        (fees_before + 50,)
    ]
    seen = await with_fees.client.get(f"/transactions/{response.json()['id']}", headers=shop.headers)
    assert seen.json()["fee"] == "0.50"


async def test_a_retry_pays_the_fee_that_was_stored(with_fees: Bank, bank: Bank) -> None:
    alice, shop = Person(), Person("merchant")
    source, till = await bank.wallet(alice, "100.00"), await bank.wallet(shop)

    first = await with_fees.payment(alice, source, till, "20.00", key="k")
    again = await bank.payment(alice, source, till, "20.00", key="k")

    assert again.content == first.content
    assert await bank.balances(source, till) == [8_000, 1_950]


async def test_only_a_merchants_wallet_takes_payments(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    response = await bank.payment(alice, source, target, "20.00")

    assert (response.status_code, response.json()["code"]) == (422, "not_a_merchant")
    assert await bank.balances(source, target) == [10_000, 0]


async def test_a_refund_gives_back_everything_from_the_merchants_wallet_and_the_fee_stays(with_fees: Bank) -> None:
    alice, shop = Person(), Person("merchant")
    source, till = await with_fees.wallet(alice, "100.00"), await with_fees.wallet(shop, "1.00")
    payment = (await with_fees.payment(alice, source, till, "20.00")).json()

    refund = await with_fees.refund(shop, payment["id"], description="Broken")

    assert (refund.status_code, refund.json()["amount"], refund.json()["transaction_type"]) == (
        201,
        "20.00",
        "refund",
    )
    assert await with_fees.balances(source, till) == [10_000, 50]
    seen = await with_fees.client.get(f"/transactions/{refund.json()['id']}", headers=alice.headers)
    assert seen.json()["original_transaction_id"] == payment["id"]
    original = await with_fees.client.get(f"/transactions/{payment['id']}", headers=alice.headers)
    assert (original.json()["refunded_amount"], original.json()["status"]) == ("20.00", "completed")


async def test_a_merchant_who_is_short_cannot_refund_and_the_part_is_free_again(bank: Bank) -> None:
    alice, shop, bob = Person(), Person("merchant"), Person()
    source, till, other = await bank.wallet(alice, "100.00"), await bank.wallet(shop), await bank.wallet(bob)
    payment = (await bank.payment(alice, source, till, "20.00")).json()
    await bank.transfer(shop, till, other, "15.00")

    short = await bank.refund(shop, payment["id"], key="k")

    assert (short.status_code, short.json()["code"], short.json()["available"]) == (402, "insufficient_funds", "5.00")
    assert (await bank.refund(shop, payment["id"], key="k")).content == short.content
    assert (await bank.refund(shop, payment["id"], amount="5.00")).status_code == 201
    assert await bank.balances(source, till) == [8_500, 0]


async def test_two_halves_and_more_at_once_give_back_no_more_than_there_is(bank: Bank) -> None:
    alice, shop = Person(), Person("merchant")
    source, till = await bank.wallet(alice, "100.00"), await bank.wallet(shop, "500.00")
    payment = (await bank.payment(alice, source, till, "20.00")).json()

    answers = await asyncio.gather(*(bank.refund(shop, payment["id"], amount="7.00") for _ in range(10)))

    assert sorted(answer.status_code for answer in answers) == [201, 201] + [409] * 8
    assert await bank.balances(source, till) == [9_400, 50_600]


async def test_fifty_retries_of_a_refund_give_back_once(bank: Bank) -> None:
    alice, shop = Person(), Person("merchant")
    source, till = await bank.wallet(alice, "100.00"), await bank.wallet(shop, "500.00")
    payment = (await bank.payment(alice, source, till, "20.00")).json()

    answers = await asyncio.gather(*(bank.refund(shop, payment["id"], key="k", amount="5.00") for _ in range(50)))

    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert await bank.balances(source, till) == [8_500, 51_500]


async def test_only_who_received_it_refunds_it(bank: Bank) -> None:
    alice, bob, mallory = Person(), Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    transfer = (await bank.transfer(alice, source, target, "20.00")).json()

    by_payer = await bank.refund(alice, transfer["id"])
    by_stranger = await bank.refund(mallory, transfer["id"])
    by_payee = await bank.refund(bob, transfer["id"])
    of_the_refund = await bank.refund(alice, by_payee.json()["id"])

    assert [(answer.status_code, answer.json()["code"]) for answer in (by_payer, by_stranger, of_the_refund)] == [
        (403, "forbidden"),
        (404, "transaction_not_found"),
        (409, "transaction_not_refundable"),
    ]
    assert by_payee.status_code == 201
    assert await bank.balances(source, target) == [10_000, 0]


@pytest.mark.parametrize("amount", [0, -1, "1.001", "NaN", True, "1e2", 10**16])
async def test_a_refund_of_an_amount_that_is_none_is_refused(bank: Bank, amount: object) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    transfer = (await bank.transfer(alice, source, target, "20.00")).json()
    before = await bank.ledger()

    response = await bank.refund(bob, transfer["id"], amount=amount)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["amount"]
    assert await bank.ledger() == before


async def test_the_same_refund_key_with_another_amount_is_refused(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    transfer = (await bank.transfer(alice, source, target, "20.00")).json()
    await bank.refund(bob, transfer["id"], key="k", amount="5.00")

    response = await bank.refund(bob, transfer["id"], key="k", amount="6.00")

    assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
    assert await bank.balances(source, target) == [8_500, 1_500]
