"""transaction-service's neighbours and callers, as tests need them."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
from fastapi import FastAPI

from infrastructure.embedded import ports
from shared.testing.sandbox import Sandbox
from shared.testing.servers import HOST, serving
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually


class Neighbour:
    """A real service on a port of its own, which can be stopped and started again."""

    def __init__(self, create_app: Callable[[], FastAPI]) -> None:
        self._create_app = create_app
        self._running = AsyncExitStack()
        self._port = ports.choose([])
        self.url = f"http://{HOST}:{self._port}"

    async def start(self) -> None:
        """Serve, and answer when this returns."""
        await self._running.enter_async_context(serving(self._create_app(), self._port))

    async def stop(self) -> None:
        """Refuse connections from now on."""
        await self._running.aclose()


class Bank:
    """The platform seen by a test: people with wallets, transactions by HTTP, and SQL around the code."""

    def __init__(self, client: httpx.AsyncClient, wallet_url: str, sandbox: Sandbox) -> None:
        self.client = client
        self.wallet_url = wallet_url
        self._sandbox = sandbox

    async def wallet(self, owner: Person, balance: str = "0.00", currency: str = "USD") -> str:
        """A new wallet of the owner's, funded by a deposit."""
        async with httpx.AsyncClient() as client:
            response = await client.post(
                f"{self.wallet_url}/wallets/create",
                json={"user_id": str(owner.id), "currency": currency},
                headers=owner.headers,
            )
        assert response.status_code == 201, response.text
        wallet_id: str = response.json()["id"]
        if balance != "0.00":
            deposit = await self.deposit(owner, wallet_id, balance, currency=currency)
            assert deposit.status_code == 201, deposit.text
        return wallet_id

    async def create(self, caller: Person, key: str | None = None, **body: Any) -> httpx.Response:
        """POST /transactions/create."""
        headers = caller.headers | ({"Idempotency-Key": key} if key else {})
        return await self.client.post("/transactions/create", json=body, headers=headers)

    async def deposit(self, caller: Person, wallet_id: str, amount: Any, **more: Any) -> httpx.Response:
        """A deposit by credit card, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "to_wallet_id": wallet_id, "payment_method": "credit_card"}
        return await self.create(caller, **({"transaction_type": "deposit"} | body | more))

    async def transfer(self, caller: Person, source: str, target: str, amount: Any, **more: Any) -> httpx.Response:
        """A transfer in dollars, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "from_wallet_id": source, "to_wallet_id": target}
        return await self.create(caller, **({"transaction_type": "transfer"} | body | more))

    async def payment(self, caller: Person, source: str, target: str, amount: Any, **more: Any) -> httpx.Response:
        """A payment in dollars, unless `more` says otherwise."""
        return await self.transfer(caller, source, target, amount, **({"transaction_type": "payment"} | more))

    async def withdraw(self, caller: Person, wallet_id: str, amount: Any, **more: Any) -> httpx.Response:
        """A withdrawal to a bank account, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "from_wallet_id": wallet_id, "payment_method": "bank_account"}
        return await self.create(caller, **({"transaction_type": "withdrawal"} | body | more))

    async def refund(
        self, caller: Person, transaction_id: str, key: str | None = None, **body: Any
    ) -> httpx.Response:
        """POST /transactions/{id}/refund."""
        headers = caller.headers | ({"Idempotency-Key": key} if key else {})
        return await self.client.post(f"/transactions/{transaction_id}/refund", json=body, headers=headers)

    async def cancel(self, caller: Person, transaction_id: str) -> httpx.Response:
        """POST /transactions/{id}/cancel."""
        return await self.client.post(f"/transactions/{transaction_id}/cancel", headers=caller.headers)

    async def internal(self, url: str, service: str, path: str, body: dict[str, Any]) -> None:
        """Call a neighbour as transaction-service does."""
        async with httpx.AsyncClient() as client:
            headers = service_headers("transaction-service", service)
            response = await client.post(url + path, json=body, headers=headers)
        assert response.status_code == 200, response.text

    async def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run SQL as the owner of all schemas."""
        connection = await self._sandbox.connect()
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    async def balances(self, *wallet_ids: str) -> list[int]:
        """Minor units in each wallet, from the ledger itself."""
        rows = dict(await self.sql("select id::text, balance_minor from wallets.accounts"))
        return [rows[wallet_id] for wallet_id in wallet_ids]

    async def ledger(self) -> list[tuple[Any, ...]]:
        """Everything that money has ever done."""
        return await self.sql(
            "select account_id, version, posting_id, amount_minor, balance_minor from wallets.entries order by 1, 2"
        )

    async def ended(self, caller: Person, transaction_id: str, limit_seconds: float = 15.0) -> dict[str, Any]:
        """The transaction once it is no longer pending."""

        async def look() -> dict[str, Any] | None:
            response = await self.client.get(f"/transactions/{transaction_id}", headers=caller.headers)
            found: dict[str, Any] = response.json()
            return found if found["status"] != "pending" else None

        return await eventually(look, limit_seconds) or {}

    async def assert_consistent(self) -> None:
        """Sums are zero, completed transactions have their posting and only they, nobody is overdrawn."""
        assert await self.sql("select 1 from wallets.entries having sum(amount_minor) <> 0") == []
        mismatched = await self.sql(
            "select t.id, t.status from transactions.transactions t full join "
            "(select distinct posting_id from wallets.entries) e on e.posting_id = t.id "
            "where (t.status = 'completed') is distinct from (e.posting_id is not null)"
        )
        assert mismatched == []
        unheld = await self.sql(
            "select a.id from wallets.accounts a "
            "left join wallets.holds h on h.account_id = a.id and h.status = 'open' "
            "group by a.id having a.held_minor <> coalesce(sum(h.amount_minor), 0)"
        )
        assert unheld == []
        overgiven = await self.sql(
            "select o.id from transactions.transactions o join transactions.transactions r on r.original_id = o.id "
            "where r.type = 'refund' and r.status <> 'failed' group by o.id "
            "having sum(r.amount_minor) > o.refunded_minor or o.refunded_minor > o.amount_minor"
        )
        assert overgiven == []
