"""Closing a wallet is no way around a dispute."""

import httpx

from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet, Rows, posting

OUTSIDE = "external:stripe:USD"


async def test_a_wallet_that_was_closed_before_its_dispute_comes_back_frozen(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice, bob, admin = Person(), Person(), Person("admin")
    wallet_id, bobs = await open_wallet(alice, minor=1_000), await open_wallet(bob)
    await ledger.send(posting(alice, wallet_id, bobs, 1_000))
    closed = await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)

    [disputed] = await ledger.send(posting(alice, wallet_id, OUTSIDE, 1_000, action="dispute"))
    asked = {"user_id": str(alice.id), "currency": "USD"}
    again = await client.post("/wallets/create", json=asked, headers=alice.headers)
    close = await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)
    received, returned, spent = await ledger.send(
        posting(alice, OUTSIDE, wallet_id, 50),
        posting(alice, OUTSIDE, wallet_id, 30, action="return"),
        posting(alice, wallet_id, bobs, 80),
    )

    assert (closed.status_code, disputed["status"]) == (200, "applied")
    assert (again.status_code, again.json()["code"], again.json()["wallet_id"]) == (409, "wallet_exists", wallet_id)
    assert (close.status_code, close.json()["code"]) == (409, "wallet_frozen")
    assert [(outcome["status"], outcome["code"]) for outcome in (received, returned, spent)] == [
        ("applied", None),
        ("applied", None),
        ("refused", "frozen"),
    ]
    wallet = (await client.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()
    assert (wallet["status"], wallet["balance"]) == ("frozen", "0.80")
    unfrozen = await client.post(f"/wallets/{wallet_id}/unfreeze", headers=admin.headers)
    assert (unfrozen.status_code, unfrozen.json()["status"]) == (200, "active")


async def test_the_freeze_of_a_closed_wallet_is_told_after_its_closing(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await client.post(f"/wallets/{wallet_id}/close", headers=alice.headers)

    await ledger.send(*(posting(alice, wallet_id, OUTSIDE, 5, action="dispute") for _ in range(2)))

    assert await rows("select event_sequence, status from accounts where id = $1::uuid", wallet_id) == [(3, "frozen")]
