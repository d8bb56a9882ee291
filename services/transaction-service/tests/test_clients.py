"""What neighbours say, and what it is taken for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from shared.auth import ServiceTokens
from shared.http.client import ServiceClient
from shared.ids import new_id
from shared.money import Money
from shared.settings import DEVELOPMENT_SERVICE_SECRET
from shared.testing.servers import serving
from transaction_service.clients import Action, PaymentClient, WalletClient
from transaction_service.domain import Status, Transaction, Type


@asynccontextmanager
async def neighbour(path: str, reply: Any) -> AsyncIterator[ServiceClient]:
    """A neighbour that answers each call with what `reply` makes of its body."""
    app = FastAPI()

    @app.post(path)
    async def answer(request: Request) -> JSONResponse:
        status, body = reply(await request.json())
        return JSONResponse(body, status)

    async with (
        serving(app) as url,
        ServiceClient("neighbour", url, ServiceTokens(DEVELOPMENT_SERVICE_SECRET, "transaction-service")) as client,
    ):
        yield client


def transaction(kind: Type) -> Transaction:
    return Transaction(
        id=new_id(),
        type=kind,
        status=Status.PENDING,
        user_id=new_id(),
        amount=Money(1_000, "USD"),
        fee=Money(0, "USD"),
        refunded=Money(0, "USD"),
        from_wallet_id=new_id() if kind is Type.TRANSFER else None,
        to_wallet_id=new_id(),
        payment_method=None if kind is Type.TRANSFER else "credit_card",
        description=None,
        metadata={},
        created_at=datetime.now(UTC),
    )


def transfer() -> Transaction:
    return transaction(Type.TRANSFER)


@pytest.mark.parametrize(("status", "code"), [("refused", None), ("applied", "frozen"), ("pending", None)])
async def test_an_outcome_that_is_neither_a_yes_nor_a_no_is_unknown(status: str, code: str | None) -> None:
    def reply(body: Any) -> tuple[int, Any]:
        outcome = {"status": status, "code": code, "available_minor": None, "target_user_id": None}
        return 200, {"outcomes": [[outcome | {"id": unit[0]["id"]}] for unit in body["units"]]}

    async with neighbour("/internal/postings", reply) as client:
        assert await WalletClient(client).post(Action.MOVE, [transfer()]) == {}


async def test_an_order_that_cannot_be_read_is_not_its_neighbours_problem() -> None:
    deposits = [transaction(Type.DEPOSIT) for _ in range(9)]
    bad = str(deposits[4].id)

    def reply(body: Any) -> tuple[int, Any]:
        ids = [order["transaction_id"] for order in body["orders"]]
        if bad in ids:
            return 422, {}
        done = {"kind": "charge", "status": "succeeded", "provider": "stripe", "code": None}
        return 200, {"outcomes": [done | {"transaction_id": id_} for id_ in ids]}

    async with neighbour("/internal/orders", reply) as client:
        outcomes = await PaymentClient(client).execute(deposits)

    assert set(outcomes) == {deposit.id for deposit in deposits} - {deposits[4].id}


async def test_a_posting_that_cannot_be_read_is_not_its_neighbours_problem() -> None:
    transfers = [transfer() for _ in range(9)]
    bad = str(transfers[4].id)

    def reply(body: Any) -> tuple[int, Any]:
        ids = [unit[0]["id"] for unit in body["units"]]
        done = {"status": "applied", "code": None, "available_minor": None, "target_user_id": str(new_id())}
        return (422, {}) if bad in ids else (200, {"outcomes": [[done | {"id": id_}] for id_ in ids]})

    async with neighbour("/internal/postings", reply) as client:
        outcomes = await WalletClient(client).post(Action.MOVE, transfers)

    assert set(outcomes) == {item.id for item in transfers} - {transfers[4].id}
