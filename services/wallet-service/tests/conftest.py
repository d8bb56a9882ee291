"""wallet-service on a real PostgreSQL, and the people who use it."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from wallet_service.app import create_app
from wallet_service.settings import WalletSettings
from wallet_service.testing import LedgerClient, OpenWallet, Outbox, Rows


@pytest.fixture(scope="module")
async def client(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(sandbox.settings(WalletSettings))) as client:
        yield client


@pytest.fixture(scope="module")
def ledger(client: httpx.AsyncClient) -> LedgerClient:
    return LedgerClient(client)


@pytest.fixture(scope="module")
async def rows(sandbox: Sandbox, client: httpx.AsyncClient) -> AsyncIterator[Rows]:
    """SQL around the code, as the owner of the schema."""
    connection = await sandbox.connect()
    await connection.execute("set search_path = wallets")

    async def query(sql: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]

    yield query
    await connection.close()


@pytest.fixture(scope="module")
async def outbox(rows: Rows) -> Outbox:
    """What the service tells, from the first test on that asks for it."""
    outbox = Outbox(rows)
    await outbox.watch()
    return outbox


@pytest.fixture
def open_wallet(client: httpx.AsyncClient, ledger: LedgerClient) -> OpenWallet:
    async def create(owner: Person, currency: str = "USD", minor: int = 0) -> str:
        """A new wallet with `minor` in it."""
        response = await client.post(
            "/wallets/create", json={"user_id": str(owner.id), "currency": currency}, headers=owner.headers
        )
        assert response.status_code == 201, response.text
        wallet_id: str = response.json()["id"]
        if minor:
            await ledger.fund(owner, wallet_id, minor, currency)
        return wallet_id

    return create
