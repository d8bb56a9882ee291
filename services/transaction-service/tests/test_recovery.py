"""What a crash or an outage leaves open is ended, once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from shared.ids import new_id
from shared.money import Money
from shared.testing.lines import CommitLine, losing_a_commit
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.app import create_app
from transaction_service.domain import Command, Type
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, Neighbour


async def test_a_transfer_waits_while_the_ledger_is_out_and_is_done_once(
    bank: Bank, wallet_service: Neighbour
) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    await wallet_service.stop()
    try:
        waiting = await bank.transfer(alice, source, target, "25.00", key="k")
        again = await bank.transfer(alice, source, target, "25.00", key="k")
    finally:
        await wallet_service.start()

    assert (waiting.status_code, waiting.json()["status"]) == (202, "pending")
    assert again.content == waiting.content
    ended = await bank.ended(alice, waiting.json()["id"])
    assert ended["status"] == "completed"
    assert await bank.balances(source, target) == [7_500, 2_500]
    replayed = await bank.transfer(alice, source, target, "25.00", key="k")
    assert (replayed.status_code, replayed.content) == (202, waiting.content)


async def test_nothing_is_charged_before_the_wallet_was_checked(bank: Bank, wallet_service: Neighbour) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    await wallet_service.stop()
    try:
        waiting = await bank.deposit(alice, wallet, "25.00")
        charges = await bank.sql("select 1 from payments.payments where user_id = $1", alice.id)
    finally:
        await wallet_service.start()

    assert waiting.status_code == 202
    assert charges == []
    assert (await bank.ended(alice, waiting.json()["id"]))["status"] == "completed"
    assert await bank.balances(wallet) == [2_500]


async def test_a_deposit_waits_while_the_payment_gateway_is_out_and_charges_once(
    bank: Bank, payment_gateway: Neighbour
) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    await payment_gateway.stop()
    try:
        waiting = await bank.deposit(alice, wallet, "25.00")
    finally:
        await payment_gateway.start()

    assert waiting.status_code == 202
    assert (await bank.ended(alice, waiting.json()["id"]))["status"] == "completed"
    assert await bank.balances(wallet) == [2_500]
    assert await bank.sql("select count(*) from payments.payments where user_id = $1", alice.id) == [(1,)]


async def test_a_charge_that_cannot_be_posted_is_given_back(bank: Bank) -> None:
    """The wallet is closed in the moment between the check and the posting."""
    alice = Person()
    wallet = await bank.wallet(alice)
    await bank.sql(
        "create function payments.close_wallet() returns trigger language plpgsql security definer as "
        f"$$ begin update wallets.accounts set status = 'closed' where id = '{wallet}'; return null; end $$"
    )
    await bank.sql(
        "create trigger close_wallet after insert on payments.payments for each row "
        f"when (new.user_id = '{alice.id}') execute function payments.close_wallet()"
    )

    response = await bank.deposit(alice, wallet, "25.00")

    assert (response.status_code, response.json()["code"]) == (402, "wallet_closed")
    assert await bank.sql(
        "select kind, amount_minor, status from payments.payments where user_id = $1 order by kind", alice.id
    ) == [("charge", 2_500, "succeeded"), ("refund", 2_500, "succeeded")]
    assert await bank.balances(wallet) == [0]


async def test_a_caller_who_hangs_up_stops_nothing(bank: Bank, sandbox: Sandbox) -> None:
    """The caller goes while the ledger waits for the lock on a wallet."""
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    connection = await sandbox.connect()
    try:
        async with connection.transaction():
            await connection.execute("select from wallets.accounts where id = $1::uuid for update", source)
            call = asyncio.ensure_future(bank.transfer(alice, source, target, "25.00"))

            async def waiting_for_the_lock() -> bool:
                return bool(await connection.fetchval("select count(*) from pg_locks where not granted"))

            await eventually(waiting_for_the_lock)
            call.cancel()
            await asyncio.wait([call])
    finally:
        await connection.close()

    async def moved() -> bool:
        return await bank.balances(target) == [2_500]

    await eventually(moved)
    assert call.cancelled()


async def abandoned_transfer(bank: Bank, alice: Person, source: str, target: str) -> UUID:
    """A process died after it had put the transfer on record: no answer is stored, and its lease is over."""
    command = Command(Type.TRANSFER, alice.id, Money(2_500, "USD"), UUID(source), UUID(target), key="k")
    abandoned = new_id()
    await bank.sql(
        "with t as (insert into transactions.transactions (id, type, user_id, from_wallet_id, to_wallet_id, "
        "  amount_minor, currency, metadata, next_attempt_at) "
        "values ($1, 'transfer', $2, $3::uuid, $4::uuid, 2500, 'USD', '{}', now())) "
        "insert into transactions.idempotency_keys (user_id, operation, key, fingerprint, transaction_id) "
        "values ($2, 'transactions.create', 'k', $5, $1)",
        abandoned,
        alice.id,
        UUID(source),
        UUID(target),
        command.fingerprint(),
    )
    return abandoned


async def test_what_a_crash_left_open_is_resumed_by_the_retry_or_the_sweeper(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    abandoned = await abandoned_transfer(bank, alice, source, target)

    async def answered() -> bool:
        response = await bank.transfer(alice, source, target, "25.00", key="k")
        return response.status_code == 201 and response.json()["id"] == str(abandoned)

    await eventually(answered)
    assert await bank.balances(source, target) == [7_500, 2_500]


async def test_a_key_whose_caller_may_have_heard_202_is_not_freed_by_a_refusal(bank: Bank) -> None:
    """Otherwise the retry would be a second transaction under the same key."""
    alice = Person()
    source, nowhere = await bank.wallet(alice, "100.00"), str(new_id())
    abandoned = await abandoned_transfer(bank, alice, source, nowhere)
    assert (await bank.ended(alice, str(abandoned)))["failure_code"] == "wallet_not_found"

    response = await bank.transfer(alice, source, nowhere, "25.00", key="k")

    assert (response.status_code, response.json()["transaction_id"]) == (404, str(abandoned))
    assert response.headers["Idempotent-Replayed"] == "true"


async def abandoned_deposit(bank: Bank, payment_gateway: Neighbour, alice: Person, wallet: str, posted: bool) -> UUID:
    """A deposit whose process died after the charge, or after the posting; its lease is not over yet."""
    transaction_id = new_id()
    await bank.sql(
        "insert into transactions.transactions (id, type, user_id, to_wallet_id, amount_minor, currency, "
        "  payment_method, metadata, next_attempt_at) "
        "values ($1, 'deposit', $2, $3::uuid, 2500, 'USD', 'credit_card', '{}', now() + interval '1 hour')",
        transaction_id,
        alice.id,
        UUID(wallet),
    )
    common = {"user_id": str(alice.id), "amount_minor": 2_500, "currency": "USD"}
    order = common | {"transaction_id": str(transaction_id), "kind": "charge", "method": "credit_card"}
    await bank.internal(payment_gateway.url, "payment-gateway", "/internal/orders", {"orders": [order]})
    if posted:
        posting = common | {
            "id": str(transaction_id),
            "action": "move",
            "source": "external:stripe:USD",
            "target": wallet,
        }
        await bank.internal(bank.wallet_url, "wallet-service", "/internal/postings", {"units": [[posting]]})
    await bank.sql("update wallets.accounts set status = 'closed' where id = $1::uuid", wallet)
    await bank.sql("update transactions.transactions set next_attempt_at = now() where id = $1", transaction_id)
    return transaction_id


async def test_a_charge_from_before_a_crash_is_given_back_when_the_wallet_is_closed_meanwhile(
    bank: Bank, payment_gateway: Neighbour
) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    transaction_id = await abandoned_deposit(bank, payment_gateway, alice, wallet, posted=False)

    ended = await bank.ended(alice, str(transaction_id))
    assert (ended["status"], ended["failure_code"]) == ("failed", "wallet_closed")
    assert await bank.sql(
        "select kind, status from payments.payments where transaction_id = $1 order by kind", transaction_id
    ) == [("charge", "succeeded"), ("refund", "succeeded")]
    assert await bank.balances(wallet) == [0]


async def test_a_posting_from_before_a_crash_counts_even_when_the_wallet_is_closed_meanwhile(
    bank: Bank, payment_gateway: Neighbour
) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    transaction_id = await abandoned_deposit(bank, payment_gateway, alice, wallet, posted=True)

    ended = await bank.ended(alice, str(transaction_id))
    assert (ended["status"], ended["failure_code"]) == ("completed", None)
    assert await bank.sql("select kind, status from payments.payments where transaction_id = $1", transaction_id) == [
        ("charge", "succeeded")
    ]
    assert await bank.balances(wallet) == [2_500]


@asynccontextmanager
async def losing_the_commit_of_open(
    sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour, *, for_good: bool
) -> AsyncIterator[tuple[Bank, CommitLine]]:
    """A second transaction-service whose database commits its first transaction and does not get to say so."""
    host, port = sandbox.environment["POSTGRES_HOST"], int(sandbox.environment["POSTGRES_PORT"])
    async with losing_a_commit(host, port, b"insert into transactions as t", for_good=for_good) as line:
        settings = sandbox.settings(
            TransactionSettings,
            wallet_service_url=wallet_service.url,
            payment_gateway_url=payment_gateway.url,
            postgres_port=line.port,
        )
        async with in_process(create_app(settings)) as client:
            yield Bank(client, wallet_service.url, sandbox), line


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_commit_that_was_not_heard_of_is_tried_again_under_the_same_id(
    bank: Bank, sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour, key: str | None
) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    async with losing_the_commit_of_open(sandbox, wallet_service, payment_gateway, for_good=False) as (second, line):
        response = await second.transfer(alice, source, target, "10.00", key=key)

    assert line.cuts == 1
    assert (response.status_code, response.json()["status"]) == (201, "completed")
    assert await bank.sql(
        "select id::text from transactions.transactions where user_id = $1 and type = 'transfer'", alice.id
    ) == [(response.json()["id"],)]
    assert await bank.balances(source, target) == [9_000, 1_000]


async def test_a_commit_that_stays_unknown_is_said_to_be_and_a_key_makes_the_retry_safe(
    bank: Bank, sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour
) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    async with losing_the_commit_of_open(sandbox, wallet_service, payment_gateway, for_good=True) as (second, line):
        unknown = await second.transfer(alice, source, target, "10.00", key="k")

    assert line.cuts == 1
    assert (unknown.status_code, unknown.json()["code"]) == (503, "outcome_unknown")
    assert unknown.headers["Retry-After"] == "1"
    await bank.sql(
        "update transactions.transactions set next_attempt_at = now() where user_id = $1 and status = 'pending'",
        alice.id,
    )

    async def done() -> bool:
        return (await bank.transfer(alice, source, target, "10.00", key="k")).status_code == 201

    await eventually(done)
    assert await bank.balances(source, target) == [9_000, 1_000]
