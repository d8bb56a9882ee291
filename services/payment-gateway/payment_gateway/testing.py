"""payment-gateway as its caller and its tests see it."""

from typing import Any
from uuid import UUID

import httpx

from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually


def order(owner: Person, kind: str = "charge", **change: Any) -> dict[str, Any]:
    """An order of 100 dollars by credit card for a transaction of its own, unless `change` says otherwise."""
    return {
        "transaction_id": str(new_id()),
        "kind": kind,
        "user_id": str(owner.id),
        "method": "credit_card",
        "amount_minor": 10_000,
        "currency": "USD",
    } | change


def refund_of(charge: dict[str, Any], amount_minor: int, **change: Any) -> dict[str, Any]:
    """An order of another transaction that gives this much of the charge back."""
    own = {"transaction_id": str(new_id()), "kind": "refund", "amount_minor": amount_minor}
    return charge | own | {"original_id": charge["transaction_id"]} | change


class Gateway:
    """Orders by HTTP, and what they leave in the database and in the audit."""

    def __init__(self, client: httpx.AsyncClient, sandbox: Sandbox) -> None:
        self.client = client
        self._sandbox = sandbox

    async def post(self, *orders: dict[str, Any]) -> httpx.Response:
        """POST /internal/orders, as transaction-service."""
        headers = service_headers("transaction-service", "payment-gateway")
        return await self.client.post("/internal/orders", json={"orders": orders}, headers=headers)

    async def execute(self, *orders: dict[str, Any]) -> list[dict[str, Any]]:
        """The outcomes of the orders."""
        response = await self.post(*orders)
        assert response.status_code == 200, response.text
        outcomes: list[dict[str, Any]] = response.json()["outcomes"]
        return outcomes

    async def results(self, *orders: dict[str, Any]) -> list[tuple[str, str | None]]:
        """Status and code of each order's outcome."""
        return [(outcome["status"], outcome["code"]) for outcome in await self.execute(*orders)]

    async def ended(self, order: dict[str, Any]) -> tuple[str, str | None]:
        """Status and code of the order once it waits no more, without asking for it again."""

        async def look() -> list[tuple[Any, ...]]:
            return await self.sql(
                "select status, decline_code from payments.payments "
                "where transaction_id = $1::uuid and kind = $2 and status <> 'pending'",
                order["transaction_id"],
                order["kind"],
            )

        [(status, code)] = await eventually(look)
        return status, code

    async def payments(self, order: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Kind, status and code of all payments of the order's transaction."""
        return await self.sql(
            "select kind, status, decline_code from payments.payments where transaction_id = $1::uuid order by kind",
            order["transaction_id"],
        )

    async def given_back(self, charge: dict[str, Any]) -> int:
        """The sum of the charge's refunds that succeeded."""
        [(total,)] = await self.sql(
            "select coalesce(sum(amount_minor), 0)::bigint from payments.payments where kind = 'refund' "
            "and status = 'succeeded' and $1::uuid in (original_id, transaction_id)",
            charge["transaction_id"],
        )
        return int(total)

    async def events(self, order: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Sequence, type, amount, and reference or code of all events of the order, after the outbox has drained."""
        found = [
            (
                document["sequence"],
                document["type"],
                document["data"]["amount_minor"],
                document["data"].get("provider_reference") or document["data"]["decline_code"],
            )
            for document in await self._audited(order)
        ]
        return sorted(found)

    async def addresses(self, order: dict[str, Any]) -> list[str | None]:
        """Where the requests behind the order's events came from, as the audit says."""
        return [document.get("ip") for document in await self._audited(order)]

    async def _audited(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        async def drained() -> bool:
            return await self.sql("select 1 from payments.outbox limit 1") == []

        await eventually(drained)
        with self._sandbox.mongo() as mongo:
            documents = list(mongo[self._sandbox.environment["MONGO_DB"]]["payments_audit"].find())
        return [
            document
            for document in documents
            if (document["data"]["transaction_id"], document["data"]["kind"])
            == (order["transaction_id"], order["kind"])
        ]

    async def shown(self, owner: Person, payment_id: str | UUID) -> dict[str, Any]:
        """GET /payments/{id}, as its owner."""
        response = await self.client.get(f"/payments/{payment_id}", headers=owner.headers)
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    async def sql(self, query: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Rows of a query as the owner of everything."""
        connection = await self._sandbox.connect()
        try:
            return [tuple(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()
