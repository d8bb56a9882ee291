"""The ledger as tests call it, in the way transaction-service does."""

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import httpx

from shared.ids import new_id
from shared.testing.tokens import Person, service_headers

Rows = Callable[..., Coroutine[Any, Any, list[tuple[Any, ...]]]]
OpenWallet = Callable[..., Coroutine[Any, Any, str]]


class LedgerClient:
    """Calls the ledger as transaction-service does."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def send(self, *postings: dict[str, Any]) -> list[dict[str, Any]]:
        """The outcomes of one batch of postings that stand each for itself."""
        return [outcome for [outcome] in await self.send_units(*([posting] for posting in postings))]

    async def send_units(self, *units: list[dict[str, Any]]) -> list[Any]:
        """For each unit its outcomes, or its trouble."""
        response = await self._client.post(
            "/internal/postings",
            json={"units": units},
            headers=service_headers("transaction-service", "wallet-service"),
        )
        assert response.status_code == 200, response.text
        outcomes: list[Any] = response.json()["outcomes"]
        return outcomes

    async def fund(self, owner: Person, wallet_id: str, minor: int, currency: str = "USD") -> None:
        """Put money from outside into a wallet."""
        [outcome] = await self.send(posting(owner, f"external:stripe:{currency}", wallet_id, minor, currency))
        assert outcome["status"] == "applied"


def posting(
    caller: Person,
    source: str,
    target: str,
    minor: int,
    currency: str = "USD",
    posting_id: UUID | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A posting as it goes over the wire; a move, unless `more` says otherwise."""
    return {
        "id": str(posting_id or new_id()),
        "action": "move",
        "user_id": str(caller.id),
        "source": source,
        "target": target,
        "amount_minor": minor,
        "currency": currency,
    } | more
