"""Migrations of the service."""

from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from payment_gateway.app import create_app
from payment_gateway.settings import PaymentSettings
from payment_gateway.testing import Gateway, order, refund_of
from shared.ids import new_id
from shared.testing.migrations import alembic, assert_reversible_and_complete
from shared.testing.sandbox import Sandbox, sandbox_on
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

FOLDER: Final = Path(__file__).parent.parent


async def test_the_schema_can_be_made_undone_and_made_again(engines: dict[str, str]) -> None:
    async with sandbox_on(engines) as sandbox:
        await assert_reversible_and_complete(sandbox, FOLDER)


async def insert_as_the_first_version_did(sandbox: Sandbox, wanted: dict[str, Any], status: str, **end: str) -> None:
    columns = {"provider": "stripe", "status": status} | wanted | end
    connection = await sandbox.connect()
    try:
        values = ", ".join(f"'{value}'" for value in columns.values())
        await connection.execute(
            f"insert into payments.payments (id, {', '.join(columns)}) values ('{new_id()}', {values})"
        )
    finally:
        await connection.close()


async def test_payments_of_the_first_version_go_on_after_the_migration(engines: dict[str, str]) -> None:
    alice = Person()
    settled, pending, voided = order(alice), order(alice, "refund"), order(alice)
    async with sandbox_on(engines) as sandbox:
        await alembic(sandbox, FOLDER, "upgrade", "0001")
        await insert_as_the_first_version_did(sandbox, settled, "succeeded", provider_reference="ch_sim_1")
        await insert_as_the_first_version_did(sandbox, pending, "pending")
        await insert_as_the_first_version_did(sandbox, voided, "declined", decline_code="voided")
        await alembic(sandbox, FOLDER, "upgrade", "head")

        async with in_process(create_app(sandbox.settings(PaymentSettings))) as client:
            gateway = Gateway(client, sandbox)
            assert await gateway.ended(pending) == ("succeeded", None)
            counted = "select event_sequence, next_check_at from payments.payments where transaction_id = $1::uuid"
            assert await gateway.sql(counted, pending["transaction_id"]) == [(1, None)]
            assert await gateway.sql(counted, settled["transaction_id"]) == [(1, None)]
            assert await gateway.sql(counted, voided["transaction_id"]) == [(0, None)]
            assert await gateway.results(refund_of(settled, 10_000)) == [("succeeded", None)]


async def test_the_first_version_runs_on_the_new_schema(gateway: Gateway, sandbox: Sandbox) -> None:
    left, disputed = order(Person()), order(Person(), method="pm_card_createDispute")
    await insert_as_the_first_version_did(sandbox, left, "pending")
    await insert_as_the_first_version_did(sandbox, disputed, "succeeded", provider_reference="ch_sim_2")
    # As when the new version opened a payment and the first one settled it, and told of it as event 1.
    await gateway.sql(
        "update payments.payments set next_check_at = now() where transaction_id = $1::uuid",
        disputed["transaction_id"],
    )

    assert await gateway.results(left) == [("succeeded", None)]

    async def events() -> list[tuple[Any, ...]]:
        return await gateway.events(disputed)

    assert await eventually(events) == [(2, "payments.disputed.v1", 10_000, "ch_sim_2")]


@pytest.mark.parametrize("table", ["payments", "outbox"])
async def test_the_reconciler_reads_every_table_and_changes_none(gateway: Gateway, table: str) -> None:
    assert await gateway.sql(
        "select has_schema_privilege('reconciler', 'payments', 'usage'), "
        "has_table_privilege('reconciler', $1, 'select'), "
        "has_table_privilege('reconciler', $1, 'insert, update, delete, truncate')",
        f"payments.{table}",
    ) == [(True, True, False)]


@pytest.mark.parametrize(
    "change",
    [
        "kind = 'dispute'",
        "original_id = gen_random_uuid()",
        "reversal = 'disputed'",
        "reversal = 'returned', reversed_minor = 1, reversed_at = now()",
        "reversal = 'disputed', reversed_minor = 0, reversed_at = now()",
        "reversal = 'disputed', reversed_minor = amount_minor + 1, reversed_at = now()",
    ],
)
async def test_the_database_refuses_what_makes_no_sense_of_a_charge(gateway: Gateway, change: str) -> None:
    charge = order(Person())
    await gateway.execute(charge)

    with pytest.raises(asyncpg.CheckViolationError):
        await gateway.sql(
            f"update payments.payments set {change} where transaction_id = $1::uuid", charge["transaction_id"]
        )
    assert await gateway.payments(charge) == [("charge", "succeeded", None)]
