"""How much goes into one transaction of the ledger, and how many statements it needs."""

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from shared.ids import new_id
from shared.money import Money
from shared.outbox import Relay
from shared.testing.counting import CountingDatabase
from shared.testing.sandbox import Sandbox
from shared.testing.tokens import Person
from wallet_service.domain import Action, Posting, account_ref
from wallet_service.service import MAX_BATCH, Ledger
from wallet_service.settings import WalletSettings
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


@pytest.mark.parametrize("actions", [["move"], ["hold"], ["move", "hold", "dispute", "move"]], ids="-".join)
async def test_a_batch_of_two_hundred_needs_as_many_statements_as_a_small_one(
    sandbox: Sandbox, open_wallet: OpenWallet, ledger: LedgerClient, actions: list[str]
) -> None:
    alice = Person()
    wallets = [await open_wallet(alice, currency, 1_000) for currency in ("USD", "EUR")]
    settings = sandbox.settings(WalletSettings)
    counts = []
    for size in (len(actions), 200):
        database = CountingDatabase(settings)
        relay = Relay(database, settings, CollectorRegistry())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            stack.push_async_callback(relay.close)
            await database.open()
            book = Ledger(database, relay)
            for number_of in (len(actions), size):  # the first one opens a connection and system accounts
                database.statements.clear()
                outcomes = await book.apply(
                    [
                        [_posting(alice, wallets[n % 2], ("USD", "EUR")[n % 2], actions[n % len(actions)])]
                        for n in range(number_of)
                    ]
                )
                assert not any(isinstance(outcome, Exception) for outcome in outcomes)
            await book.close()
        counts.append(len(database.statements))

    assert counts[0] == counts[1]
    assert counts[0] <= 10


def _posting(owner: Person, wallet: str, currency: str, action: str) -> Posting:
    outside = account_ref(f"external:stripe:{currency}")
    source, target = (outside, account_ref(wallet)) if action == "move" else (account_ref(wallet), outside)
    return Posting(new_id(), Action(action), UUID(str(owner.id)), source, target, Money(1, currency))
