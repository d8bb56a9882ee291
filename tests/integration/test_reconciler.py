"""The reconciler looks on while money moves: what is under way is no finding."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, Final

import httpx
import pytest

from ledger_reconciler.domain import Finding, Pass
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from payment_gateway.app import create_app as create_payment_gateway
from payment_gateway.settings import PaymentSettings
from shared.audit import AuditReader
from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process, serving
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.app import create_app as create_transaction_service
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank
from wallet_service.app import create_app as create_wallet_service
from wallet_service.settings import WalletSettings

CLIENTS: Final = 64
WALLETS: Final = 8
SECONDS: Final = 5.0


@pytest.fixture(scope="module")
async def bank(sandbox: Sandbox) -> AsyncIterator[Bank]:
    async with (
        serving(create_wallet_service(sandbox.settings(WalletSettings))) as wallets,
        serving(create_payment_gateway(sandbox.settings(PaymentSettings))) as payments,
        in_process(
            create_transaction_service(
                sandbox.settings(TransactionSettings, wallet_service_url=wallets, payment_gateway_url=payments)
            )
        ) as client,
    ):
        yield Bank(client, wallets, sandbox)


async def test_64_clients_transfer_and_no_pass_finds_anything(bank: Bank, sandbox: Sandbox) -> None:
    people = [Person() for _ in range(WALLETS)]
    wallets = [await bank.wallet(person, "100.00") for person in people]
    settings = sandbox.settings(ReconcilerSettings)
    audit = AuditReader(settings)
    reconciler = Reconciler(settings, audit)
    ends_at = time.monotonic() + SECONDS
    draw = random.Random(7)  # noqa: S311 - who pays whom

    async def transfer() -> int:
        made = 0
        while time.monotonic() < ends_at:
            source, target = draw.sample(range(WALLETS), 2)
            response = await bank.transfer(people[source], wallets[source], wallets[target], "3.00")
            assert response.status_code in (201, 402), response.text
            made += response.status_code == 201
        return made

    async def look() -> list[Pass]:
        passes = [await reconciler.full()]
        while time.monotonic() < ends_at:
            passes.append(await reconciler.recent(passes[-1].taken_at - timedelta(seconds=60)))
            passes.append(await reconciler.full())
        return passes

    passes, made = await asyncio.gather(look(), asyncio.gather(*(transfer() for _ in range(CLIENTS))))
    passes.append(await reconciler.full())
    audit.close()

    assert _findings(passes) == []
    assert len(passes) >= 3
    assert min(made) > 0
    entries = {result.invariant: result.rows for result in passes[-1].results}["chain"]
    assert entries == 2 * (sum(made) + WALLETS)
    assert all(result.not_checked is None for done in passes for result in done.results)


def _findings(passes: list[Pass]) -> list[Finding]:
    return [finding for done in passes for result in done.results for finding in result.findings]


async def test_every_kind_of_transaction_leaves_books_that_add_up(client: httpx.AsyncClient, platform: Any) -> None:
    payer, merchant = await _account(client, "user"), await _account(client, "merchant")
    deposit = await payer.create("deposit", "100.00", to_wallet_id=payer.wallet_id, payment_method="credit_card")
    payment = await payer.pay("payment", "20.00", merchant)
    transfer = await payer.pay("transfer", "10.00", merchant)
    await merchant.refund(payment, "5.00")
    await merchant.refund(transfer, None)
    await payer.refund(deposit, "7.00")
    await payer.create("deposit", "3.00", 402, to_wallet_id=payer.wallet_id, payment_method="pm_card_chargeDeclined")
    await payer.create("transfer", "9999.00", 402, from_wallet_id=payer.wallet_id, to_wallet_id=merchant.wallet_id)
    await payer.create("withdrawal", "8.00", from_wallet_id=payer.wallet_id, payment_method="bank_account")
    await payer.create(
        "withdrawal", "4.00", 202, from_wallet_id=payer.wallet_id, payment_method="pm_usBankAccount_processing"
    )
    cancelled = await payer.create(
        "withdrawal", "4.00", 202, from_wallet_id=payer.wallet_id, payment_method="pm_usBankAccount_processing"
    )
    assert (await payer.post(f"/transactions/{cancelled}/cancel", None)).status_code == 200
    await payer.create("deposit", "6.00", to_wallet_id=payer.wallet_id, payment_method="pm_card_createDispute")
    await merchant.create(
        "withdrawal", "2.00", from_wallet_id=merchant.wallet_id, payment_method="pm_usBankAccount_payoutReturned"
    )
    connection = await platform.sandbox.connect()

    async def come_back() -> bool:
        reversals = await connection.fetch(
            "select type from transactions.transactions where type in ('dispute', 'payout_return') "
            "and status = 'completed' and user_id = any($1::uuid[])",
            [payer.user_id, merchant.user_id],
        )
        return len(reversals) == 2

    try:
        await eventually(come_back, 30)
    finally:
        await connection.close()
    settings = platform.sandbox.settings(ReconcilerSettings)
    audit = AuditReader(settings)

    done = await Reconciler(settings, audit).full()

    audit.close()
    assert _findings([done]) == []


class _Account:
    """A registered person with a dollar wallet."""

    def __init__(self, client: httpx.AsyncClient, user_id: str, token: str) -> None:
        self._client = client
        self.user_id = user_id
        self._headers = {"Authorization": f"Bearer {token}"}
        self.wallet_id = ""

    async def post(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        return await self._client.post(path, json=body, headers=self._headers)

    async def create(self, kind: str, amount: str, expected: int = 201, **body: Any) -> str:
        """The id of a new transaction that was answered as expected."""
        body |= {"transaction_type": kind, "amount": amount, "currency": "USD"}
        response = await self.post("/transactions/create", body)
        assert response.status_code == expected, response.text
        return str(response.json().get("id"))

    async def pay(self, kind: str, amount: str, payee: "_Account") -> str:
        return await self.create(kind, amount, from_wallet_id=self.wallet_id, to_wallet_id=payee.wallet_id)

    async def refund(self, transaction_id: str, amount: str | None) -> None:
        response = await self.post(
            f"/transactions/{transaction_id}/refund", {"amount": amount} if amount is not None else {}
        )
        assert response.status_code == 201, response.text


async def _account(client: httpx.AsyncClient, role: str) -> _Account:
    credentials = {"email": f"{new_id()}@example.com", "password": "SecurePass123"}
    person = {"first_name": "John", "last_name": "Doe", "phone": "+1234567890", "role": role}
    assert (await client.post("/users/register", json=credentials | person)).status_code == 201
    login = (await client.post("/users/login", json=credentials)).json()
    account = _Account(client, login["user"]["id"], login["access_token"])
    wallet = await account.post("/wallets/create", {"user_id": account.user_id, "currency": "USD"})
    account.wallet_id = wallet.json()["id"]
    return account
