"""The service: it looks by itself, tells each finding once, and shows in its metrics that it looks."""

import logging
from typing import Any

import pytest

from infrastructure.embedded import ports
from ledger_reconciler.app import create_app
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.testing import ident
from shared.testing.servers import in_process
from shared.testing.waiting import eventually

QUICK = {"reconcile_interval_seconds": 0.05}
BREAK = f"update wallets.accounts set balance_minor = balance_minor + 1 where id = '{ident('bob')}'"
REPAIR = f"update wallets.accounts set balance_minor = balance_minor - 1 where id = '{ident('bob')}'"
TOUCH = f"update wallets.entries set created_at = now() where account_id = '{ident('bob')}' and version = 4"


def value(metrics: str, name: str) -> float:
    """A metric's value, by its name and labels."""
    [line] = [line for line in metrics.splitlines() if line.startswith(name + " ")]
    return float(line.rpartition(" ")[2])


async def reached(client: Any, name: str, wanted: float) -> str:
    """The metrics once this one has reached the value."""

    async def look() -> str:
        metrics: str = (await client.get("/metrics")).text
        return metrics if f"{name} " in metrics and value(metrics, name) >= wanted else ""

    return await eventually(look)


async def test_clean_books_are_looked_at_again_and_again(ledger: Any) -> None:
    settings = ledger.sandbox.settings(ReconcilerSettings, **QUICK)
    async with in_process(create_app(settings)) as client:
        first = await reached(client, 'reconciler_last_run_timestamp_seconds{scope="recent"}', 1)
        began = value(first, 'reconciler_last_run_timestamp_seconds{scope="recent"}')
        metrics = await reached(client, 'reconciler_last_run_timestamp_seconds{scope="recent"}', began + 0.001)
        assert (await client.get("/health")).json() == {
            "status": "ok",
            "dependencies": {"postgres": "up", "mongodb": "up"},
        }

    assert value(metrics, 'reconciler_findings{invariant="balance"}') == 0
    assert value(metrics, 'reconciler_checked{invariant="event"}') == 1
    assert value(metrics, 'reconciler_rows{invariant="chain",scope="full"}') == 24
    assert value(metrics, 'reconciler_failures_total{scope="full"}') == 0


async def test_a_finding_of_the_full_pass_is_told_once(ledger: Any, caplog: pytest.LogCaptureFixture) -> None:
    await ledger.falsify(BREAK)
    settings = ledger.sandbox.settings(ReconcilerSettings, **QUICK, reconcile_full_interval_minutes=0.0001)
    told = Told(caplog)

    async with in_process(create_app(settings)) as client:
        await reached(client, 'reconciler_findings{invariant="balance"}', 1)
        again = await reached(client, 'reconciler_last_run_timestamp_seconds{scope="full"}', 1)
        since = value(again, 'reconciler_last_run_timestamp_seconds{scope="full"}')
        metrics = await reached(client, 'reconciler_last_run_timestamp_seconds{scope="full"}', since + 0.001)

        assert value(metrics, 'reconciler_findings{invariant="balance"}') == 1
        assert told() == [f"finding: balance: wallet {ident('bob')} says 4351, its entries 4350 (USD)"]

        await ledger.falsify(REPAIR)
        await eventually(lambda: gone(client))


async def gone(client: Any) -> bool:
    return value((await client.get("/metrics")).text, 'reconciler_findings{invariant="balance"}') == 0


async def test_what_breaks_while_it_runs_is_found_by_a_recent_pass(
    ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ledger.sandbox.settings(ReconcilerSettings, **QUICK)
    told = Told(caplog)
    async with in_process(create_app(settings)) as client:
        await reached(client, 'reconciler_last_run_timestamp_seconds{scope="recent"}', 1)
        await ledger.falsify(f"{BREAK}; {TOUCH}")
        metrics = await reached(client, 'reconciler_findings{invariant="balance"}', 1)

    assert value(metrics, 'reconciler_findings{invariant="balance"}') == 1
    assert told() == [f"finding: balance: wallet {ident('bob')} says 4351, its newest entry 4350 (USD)"]


async def test_without_postgres_it_is_down_says_why_once_and_counts(
    ledger: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ledger.sandbox.settings(ReconcilerSettings, **QUICK, postgres_port=ports.choose([]))
    told = Told(caplog)
    async with in_process(create_app(settings)) as client:
        await reached(client, 'reconciler_failures_total{scope="full"}', 3)
        response = await client.get("/health")

    assert (response.status_code, response.json()["status"]) == (503, "down")
    [line] = told(logging.WARNING)
    assert line.startswith("nothing is checked: PostgreSQL at 127.0.0.1:")


class Told:
    """What was logged: the service takes over the root logger's handlers, so caplog's is put beside them."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        logging.getLogger("ledger_reconciler").addHandler(caplog.handler)

    def __call__(self, level: int = logging.ERROR) -> list[str]:
        return [record.getMessage() for record in self._caplog.records if record.levelno == level]
