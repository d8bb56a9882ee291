"""A wallet that somebody keeps locked, and everybody else's."""

import asyncio

from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet, Rows, posting

OUTSIDE = "external:stripe:USD"


async def test_many_payments_to_a_stuck_wallet_do_not_hold_up_the_others(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows, sandbox: Sandbox
) -> None:
    merchant, alice, bob = Person(), Person(), Person()
    hot, source, target = await open_wallet(merchant), await open_wallet(alice), await open_wallet(bob)
    await ledger.fund(alice, source, 1_000)
    payments = [[[posting(merchant, OUTSIDE, hot, 1)] for _ in range(60)] for _ in range(4)]
    transfers = [posting(alice, source, target, 10) for _ in range(4)]
    connection = await sandbox.connect()
    lock = connection.transaction()
    await lock.start()
    await connection.execute("select from wallets.accounts where id = $1::uuid for update", hot)
    try:
        stuck = [asyncio.ensure_future(ledger.send_units(*call)) for call in payments]
        async with asyncio.timeout(4):  # bisecting them one lock time-out after the other would take half a minute
            moved = [await ledger.send(transfer) for transfer in transfers]
            late = await asyncio.gather(*stuck)
    finally:
        await lock.rollback()
        await connection.close()

    assert {outcome["status"] for [outcome] in moved} == {"applied"}
    assert {unit["status"] for call in late for unit in call} == {"unknown"}
    again = [outcome for call in payments for [outcome] in await ledger.send_units(*call)]
    assert {outcome["status"] for outcome in again} == {"applied"}
    assert await rows("select balance_minor from accounts where id = any($1::uuid[]) order by 1", [hot, target]) == [
        (40,),
        (240,),
    ]
