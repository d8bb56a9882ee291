"""Withdrawals, refunds of deposits, cancelling, and what comes back from outside."""

import asyncio
from typing import Any

import pytest

from shared.ids import new_id
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.testing import Bank

LATER = "pm_usBankAccount_success"  # pending at first
NEVER = "pm_usBankAccount_processing"


async def of_type(bank: Bank, caller: Person, kind: str) -> list[dict[str, Any]]:
    response = await bank.client.get("/transactions", params={"transaction_type": kind}, headers=caller.headers)
    found: list[dict[str, Any]] = response.json()["data"]
    return found


async def held(bank: Bank, wallet: str) -> int:
    [(minor,)] = await bank.sql("select held_minor from wallets.accounts where id = $1::uuid", wallet)
    return int(minor)


async def test_a_withdrawal_pays_out_and_leaves_the_wallet(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")

    response = await bank.withdraw(alice, wallet, "30.00")

    assert (response.status_code, response.json()["status"]) == (201, "completed")
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([7_000], 0)
    assert await bank.sql("select kind, status from payments.payments where user_id = $1 order by 1", alice.id) == [
        ("charge", "succeeded"),
        ("payout", "succeeded"),
    ]


async def test_a_payout_on_its_way_is_held_until_it_arrives(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")

    response = await bank.withdraw(alice, wallet, "30.00", payment_method=LATER, key="k")

    assert (response.status_code, response.json()["status"]) == (202, "pending")
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000], 3_000)
    short = await bank.withdraw(alice, wallet, "70.01")
    assert (short.status_code, short.json()["code"], short.json()["available"]) == (
        402,
        "insufficient_funds",
        "70.00",
    )
    assert (await bank.ended(alice, response.json()["id"]))["status"] == "completed"
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([7_000], 0)


async def test_a_payout_that_is_declined_gives_the_money_free_again(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")

    response = await bank.withdraw(alice, wallet, "30.00", payment_method="pm_usBankAccount_noAccount")

    assert response.status_code == 202
    ended = await bank.ended(alice, response.json()["id"])
    assert (ended["status"], ended["failure_code"]) == ("failed", "no_account")
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000], 0)


@pytest.mark.parametrize(
    ("status", "code"), [("frozen", "wallet_frozen"), ("closed", "wallet_closed")], ids=["frozen", "closed"]
)
async def test_nothing_is_paid_out_of_a_wallet_that_is_not_active(bank: Bank, status: str, code: str) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    await bank.sql("update wallets.accounts set status = $2 where id = $1::uuid", wallet, status)

    response = await bank.withdraw(alice, wallet, "30.00")

    assert (response.status_code, response.json()["code"]) == (402, code)
    assert await bank.sql("select 1 from payments.payments where user_id = $1 and kind = 'payout'", alice.id) == []
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000], 0)


async def test_a_payout_under_way_is_captured_although_the_wallet_is_frozen_meanwhile(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    response = await bank.withdraw(alice, wallet, "30.00", payment_method=LATER)

    await bank.sql("update wallets.accounts set status = 'frozen' where id = $1::uuid", wallet)

    assert (await bank.ended(alice, response.json()["id"]))["status"] == "completed"
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([7_000], 0)


async def test_somebody_elses_wallet_looks_like_none_to_a_withdrawal(bank: Bank) -> None:
    alice, mallory = Person(), Person()
    wallet = await bank.wallet(alice, "100.00")

    response = await bank.withdraw(mallory, wallet, "30.00")

    assert (response.status_code, response.json()["code"]) == (404, "wallet_not_found")
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000], 0)


# ------------------------------------------------------------------------------------------- cancelling


async def test_a_withdrawal_that_waits_can_be_cancelled(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    withdrawal = (await bank.withdraw(alice, wallet, "30.00", payment_method=NEVER)).json()

    cancelled = await bank.cancel(alice, withdrawal["id"])
    again = await bank.cancel(alice, withdrawal["id"])

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "failed")
    assert cancelled.json()["failure_code"] == "cancelled"
    assert again.json() == cancelled.json()
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000], 0)


async def test_a_deposit_that_waits_can_be_cancelled(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)
    deposit = (await bank.deposit(alice, wallet, "30.00", payment_method=NEVER)).json()
    assert deposit["status"] == "pending"

    cancelled = await bank.cancel(alice, deposit["id"])

    assert (cancelled.status_code, cancelled.json()["failure_code"]) == (200, "cancelled")
    assert await bank.balances(wallet) == [0]


async def test_a_deposit_that_waits_can_be_cancelled_although_its_wallet_is_closed_meanwhile(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)
    deposit = (await bank.deposit(alice, wallet, "30.00", payment_method=NEVER)).json()
    await bank.sql("update wallets.accounts set status = 'closed' where id = $1::uuid", wallet)

    cancelled = await bank.cancel(alice, deposit["id"])

    assert (cancelled.status_code, cancelled.json()["failure_code"]) == (200, "cancelled")
    assert await bank.sql("select kind, status from payments.payments where user_id = $1", alice.id) == [
        ("charge", "declined")
    ]
    assert await bank.balances(wallet) == [0]


async def test_what_is_done_or_not_ones_own_cannot_be_cancelled(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    deposit = (await bank.deposit(alice, source, "5.00")).json()
    transfer = (await bank.transfer(alice, source, target, "5.00")).json()
    waiting = (await bank.withdraw(alice, source, "5.00", payment_method=NEVER)).json()

    answers = [await bank.cancel(alice, item["id"]) for item in (deposit, transfer)]
    answers += [await bank.cancel(bob, item["id"]) for item in (transfer, waiting)]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (409, "transaction_not_cancellable"),
        (409, "transaction_not_cancellable"),
        (404, "transaction_not_found"),
        (404, "transaction_not_found"),
    ]
    assert await bank.balances(source, target) == [10_000, 500]
    assert (await bank.cancel(alice, waiting["id"])).status_code == 200


async def test_cancelling_races_with_the_payout_and_one_of_them_wins(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    withdrawals = [(await bank.withdraw(alice, wallet, "10.00", payment_method=LATER)).json() for _ in range(6)]

    async def cancel(index: int, withdrawal: dict[str, Any]) -> None:
        await asyncio.sleep(0.05 * index)  # the payout settles somewhere in between
        await bank.cancel(alice, withdrawal["id"])

    await asyncio.gather(*(cancel(index, withdrawal) for index, withdrawal in enumerate(withdrawals)))

    ended = [await bank.ended(alice, withdrawal["id"]) for withdrawal in withdrawals]
    done = sum(item["status"] == "completed" for item in ended)
    assert (await bank.balances(wallet), await held(bank, wallet)) == ([10_000 - 1_000 * done], 0)


# ------------------------------------------------------------------------------------------ refunds


async def test_a_deposit_is_given_back_in_parts_up_to_what_is_left(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)
    deposit = (await bank.deposit(alice, wallet, "100.00")).json()

    part = await bank.refund(alice, deposit["id"], amount="40.00")
    too_much = await bank.refund(alice, deposit["id"], amount="60.01")
    rest = await bank.refund(alice, deposit["id"])
    nothing_left = await bank.refund(alice, deposit["id"])

    assert [answer.status_code for answer in (part, too_much, rest, nothing_left)] == [201, 409, 201, 409]
    assert (part.json()["amount"], rest.json()["amount"]) == ("40.00", "60.00")
    assert part.json()["original_transaction_id"] == deposit["id"]
    assert (too_much.json()["code"], too_much.json()["remaining"]) == ("refund_exceeds_remaining", "60.00")
    assert await bank.balances(wallet) == [0]
    assert await bank.sql(
        "select sum(amount_minor), count(*) from payments.payments where user_id = $1 and kind = 'refund' "
        "and status = 'succeeded'",
        alice.id,
    ) == [(10_000, 2)]


async def test_a_deposit_that_is_spent_is_not_given_back_and_may_be_later(bank: Bank) -> None:
    alice, bob = Person(), Person()
    wallet, other = await bank.wallet(alice), await bank.wallet(bob)
    deposit = (await bank.deposit(alice, wallet, "100.00")).json()
    await bank.transfer(alice, wallet, other, "50.00")

    refused = await bank.refund(alice, deposit["id"], amount="60.00")

    assert (refused.status_code, refused.json()["code"]) == (402, "insufficient_funds")
    original = (await bank.client.get(f"/transactions/{deposit['id']}", headers=alice.headers)).json()
    assert original["refunded_amount"] == "0.00"
    assert (await bank.refund(alice, deposit["id"], amount="50.00")).status_code == 201
    assert await bank.balances(wallet) == [0]


# ---------------------------------------------------------------------------------------- coming back


async def test_a_payout_that_comes_back_is_credited_once_and_the_withdrawal_stays(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    withdrawal = await bank.withdraw(alice, wallet, "30.00", payment_method="pm_usBankAccount_payoutReturned")
    assert withdrawal.status_code == 201

    async def returned() -> list[dict[str, Any]]:
        return [item for item in await of_type(bank, alice, "payout_return") if item["status"] == "completed"]

    [back] = await eventually(returned)
    assert (back["amount"], back["original_transaction_id"]) == ("30.00", withdrawal.json()["id"])
    assert await bank.balances(wallet) == [10_000]
    original = await bank.client.get(f"/transactions/{withdrawal.json()['id']}", headers=alice.headers)
    assert original.json()["status"] == "completed"


async def test_a_dispute_of_a_deposit_that_failed_has_nothing_to_take(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "50.00")
    failed = await bank.deposit(alice, wallet, "100.00", payment_method="pm_card_chargeDeclined")
    dispute = new_id()
    await bank.sql(
        "with taken as (update transactions.transactions set refunded_minor = amount_minor where id = $4::uuid) "
        "insert into transactions.transactions (id, type, user_id, from_wallet_id, amount_minor, currency, provider, "
        "  metadata, original_id, original_type, next_attempt_at) "
        "values ($1, 'dispute', $2, $3::uuid, 10000, 'USD', 'stripe', '{}', $4::uuid, 'deposit', now())",
        dispute,
        alice.id,
        wallet,
        failed.json()["transaction_id"],
    )

    ended = await bank.ended(alice, str(dispute))

    assert (ended["status"], ended["failure_code"]) == ("failed", "original_failed")
    assert await bank.balances(wallet) == [5_000]


async def test_a_disputed_deposit_takes_what_is_there_owes_the_rest_and_freezes_the_wallet(bank: Bank) -> None:
    alice, bob = Person(), Person()
    wallet, other = await bank.wallet(alice), await bank.wallet(bob)
    deposit = (await bank.deposit(alice, wallet, "100.00", payment_method="pm_card_createDispute")).json()
    await bank.transfer(alice, wallet, other, "70.00")

    async def disputed() -> list[dict[str, Any]]:
        return [item for item in await of_type(bank, alice, "dispute") if item["status"] == "completed"]

    [dispute] = await eventually(disputed)
    assert (dispute["amount"], dispute["original_transaction_id"]) == ("100.00", deposit["id"])
    assert await bank.sql("select balance_minor, status from wallets.accounts where id = $1::uuid", wallet) == [
        (0, "frozen")
    ]
    assert await bank.sql(
        "select e.amount_minor from wallets.entries e join wallets.accounts a on a.id = e.account_id "
        "where a.name = 'receivable:USD' and e.posting_id = $1::uuid",
        dispute["id"],
    ) == [(-7_000,)]
    refused = await bank.refund(alice, deposit["id"])
    assert (refused.status_code, refused.json()["code"]) == (409, "refund_exceeds_remaining")
