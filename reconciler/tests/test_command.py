"""`python -m ledger_reconciler`, as `make reconcile` runs it."""

import asyncio
import os
import sys
from typing import Any

from infrastructure.embedded import ports
from ledger_reconciler.testing import ident
from shared.settings import ROOT


async def reconcile(environment: dict[str, str], **more: str) -> tuple[int | None, list[str], str]:
    """Exit status, lines of the report, and what was said of an error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ledger_reconciler",
        cwd=ROOT / "reconciler",
        env=os.environ | environment | more | {"ENV_FILE": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode().splitlines(), errors.decode()


async def test_everything_in_order_is_0_and_a_line_for_each_invariant(ledger: Any) -> None:
    status, lines, errors = await reconcile(ledger.sandbox.environment)

    assert (status, errors) == (0, "")
    assert [line.split()[1] for line in lines[:-1]] == [
        *("zero_sum", "posting", "balance", "version", "chain", "held", "overdrawn", "trigger", "privilege", "key"),
        *("effect", "amount", "hold", "refund", "event", "provider", "reversal"),
    ]
    assert all(line.endswith("ok") for line in lines[:-1])
    assert lines[0].split() == ["1", "zero_sum", "24", "entries", "ok"]
    assert lines[-1].startswith("No finding in ")


async def test_a_finding_is_1_and_said_in_a_sentence(ledger: Any) -> None:
    await ledger.falsify(f"update wallets.accounts set balance_minor = balance_minor + 1 where id = '{ident('bob')}'")

    status, lines, _ = await reconcile(ledger.sandbox.environment)

    assert status == 1
    assert f"      balance: wallet {ident('bob')} says 4351, its entries 4350 (USD)" in lines
    assert "      expected: The balance of each account is the sum of its entries." in lines
    assert lines[-1].startswith("1 finding in ")


async def test_of_many_findings_the_first_are_told_and_all_are_counted(ledger: Any) -> None:
    await ledger.falsify(
        "insert into wallets.accounts (id, user_id, currency, balance_minor) "
        "select gen_random_uuid(), gen_random_uuid(), 'USD', 1 from generate_series(1, 30)"
    )

    status, lines, _ = await reconcile(ledger.sandbox.environment)

    assert status == 1
    assert len([line for line in lines if line.startswith("      balance: ")]) == 20
    assert "      … and 10 more" in lines


async def test_without_mongodb_events_are_not_checked_and_that_is_said(ledger: Any) -> None:
    closed = str(ports.choose([]))

    status, lines, _ = await reconcile(ledger.sandbox.environment, MONGO_PORT=closed)

    assert status == 0
    [line] = [line for line in lines if " event " in line]
    assert "not checked: MongoDB does not answer" in line
    assert lines[-1].endswith("1 invariant not checked.")


async def test_without_postgres_it_is_2_and_one_sentence(ledger: Any) -> None:
    closed = str(ports.choose([]))

    status, lines, errors = await reconcile(ledger.sandbox.environment, POSTGRES_PORT=closed)

    assert (status, lines) == (2, [])
    assert errors.startswith(f"error: PostgreSQL at 127.0.0.1:{closed} cannot be read as ")
    assert errors.count("\n") == 1


async def test_without_a_schema_it_is_2_and_one_sentence(ledger: Any) -> None:
    await ledger.owner.execute("drop schema payments cascade")

    status, lines, errors = await reconcile(ledger.sandbox.environment)

    assert (status, lines) == (2, [])
    assert errors.startswith("error: A schema is missing or is not at this code's revision (")
    assert errors.count("\n") == 1
