"""Pages of a wallet's entries, in both directions."""

from typing import Any

import httpx
import pytest

from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet


@pytest.mark.parametrize(
    ("query", "versions", "has_more"),
    [
        ({}, [5, 4, 3, 2, 1], False),
        ({"limit": 2, "starting_after": 4}, [3, 2], True),
        ({"limit": 2, "starting_after": 3}, [2, 1], False),
        ({"limit": 2, "ending_before": 1}, [3, 2], True),
        ({"limit": 2, "ending_before": 3}, [5, 4], False),
        ({"limit": 3, "ending_before": 3}, [5, 4], False),
        ({"ending_before": 5}, [], False),
    ],
)
async def test_a_page_goes_on_after_an_entry_or_ends_before_one(
    client: httpx.AsyncClient,
    ledger: LedgerClient,
    open_wallet: OpenWallet,
    query: dict[str, Any],
    versions: list[int],
    has_more: bool,
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    for _ in range(5):
        await ledger.fund(alice, wallet_id, 1)

    response = await client.get(f"/wallets/{wallet_id}/entries", params=query, headers=alice.headers)

    assert response.status_code == 200
    assert [entry["version"] for entry in response.json()["data"]] == versions
    assert response.json()["has_more"] is has_more


@pytest.mark.parametrize("query", ["ending_before=0", "ending_before=x", "starting_after=1&ending_before=1"])
async def test_a_page_that_cannot_be_is_refused(
    client: httpx.AsyncClient, open_wallet: OpenWallet, query: str
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)

    response = await client.get(f"/wallets/{wallet_id}/entries?{query}", headers=alice.headers)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["ending_before"]
