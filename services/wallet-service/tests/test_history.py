"""Balances of the past."""

from datetime import datetime, timedelta

import httpx
import pytest

from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet, Rows


async def balance(client: httpx.AsyncClient, person: Person, wallet_id: str, at: datetime | str) -> httpx.Response:
    instant = at if isinstance(at, str) else at.isoformat()
    return await client.get(f"/wallets/{wallet_id}/balance", params={"at": instant}, headers=person.headers)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 13])
async def test_a_balance_is_told_as_it_was_at_any_instant(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, count: int
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    for minor in range(1, count + 1):
        await ledger.fund(alice, wallet_id, minor)
    entries = await rows(
        "select created_at, balance_minor from entries where account_id = $1::uuid order by version", wallet_id
    )
    now = (await rows("select clock_timestamp()"))[0][0]

    told = [(await balance(client, alice, wallet_id, at)).json()["balance"] for at, _ in entries]
    just_before = [
        (await balance(client, alice, wallet_id, at - timedelta(microseconds=1))).json()["balance"]
        for at, _ in entries
    ]

    after = [f"{minor / 100:.2f}" for _, minor in entries]
    assert told == after
    assert just_before == ["0.00", *after][: len(entries)]
    assert (await balance(client, alice, wallet_id, now)).json() == {
        "wallet_id": wallet_id,
        "currency": "USD",
        "balance": ["0.00", *after][-1],
        "held": None,
        "available": None,
    }


async def test_the_past_of_somebody_elses_wallet_is_not_told(
    client: httpx.AsyncClient, open_wallet: OpenWallet
) -> None:
    wallet_id = await open_wallet(Person())

    response = await balance(client, Person(), wallet_id, "2026-01-01T00:00:00Z")

    assert (response.status_code, response.json()["code"]) == (404, "wallet_not_found")


@pytest.mark.parametrize(
    "at", ["yesterday", "2026-01-01T00:00:00", "", "-1", "0001-01-01T00:00:00+14:00", "2026-02-30T00:00:00Z"]
)
async def test_an_instant_that_is_none_is_refused(
    client: httpx.AsyncClient, open_wallet: OpenWallet, at: str
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)

    response = await balance(client, alice, wallet_id, at)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["at"]
