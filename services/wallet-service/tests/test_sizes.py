"""How much goes into one transaction of the ledger, whatever comes in one call."""

from collections import Counter
from typing import Any

from shared.testing.tokens import Person
from wallet_service.service import MAX_BATCH
from wallet_service.testing import LedgerClient, OpenWallet, Rows, assert_sound, posting


async def sizes(rows: Rows, units: list[list[dict[str, Any]]]) -> list[int]:
    """How many of the postings each transaction wrote, in the order of the transactions."""
    ids = [item["id"] for unit in units for item in unit]
    found = await rows("select xmin::text::bigint from postings where id = any($1::uuid[])", ids)
    return [count for _, count in sorted(Counter(transaction for (transaction,) in found).items())]


async def test_a_call_of_a_thousand_units_is_written_in_transactions_of_256_postings_in_its_order(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=1_000), await open_wallet(Person())
    units = [[posting(alice, source, target, 1)] for _ in range(1_000)]

    outcomes = await ledger.send_units(*units)

    assert [(outcome["id"], outcome["status"]) for [outcome] in outcomes] == [
        (item["id"], "applied") for [item] in units
    ]
    assert await sizes(rows, units) == [MAX_BATCH] * 3 + [1_000 - 3 * MAX_BATCH]
    written = await rows("select posting_id::text from entries where account_id = $1::uuid order by version", target)
    assert [id_ for (id_,) in written] == [item["id"] for [item] in units]
    await assert_sound(rows)


async def test_units_are_not_split_and_a_large_one_is_a_transaction_alone(
    ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    source, target = await open_wallet(alice, minor=1_000), await open_wallet(Person())
    units = [[posting(alice, source, target, 1) for _ in range(size)] for size in (200, 100, 400, 1, 1)]

    outcomes = await ledger.send_units(*units)

    assert [{outcome["status"] for outcome in unit} for unit in outcomes] == [{"applied"}] * 5
    assert await sizes(rows, units) == [200, 100, 400, 2]
