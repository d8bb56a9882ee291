"""What a service is still at work on is no finding, and becomes one when it has taken too long."""

from dataclasses import dataclass
from typing import Any

import pytest

from ledger_reconciler.testing import ident
from shared.ids import new_id

STRANGER = new_id()


@dataclass(frozen=True)
class Case:
    """A state between two commits, `{age}` old, that is in order until `limit_seconds`."""

    name: str
    sql: str
    late: list[tuple[str, str]]
    limit_seconds: int = 60
    recent: bool = True


def q(name: str) -> str:
    return f"'{ident(name)}'"


CASES = [
    Case(
        "posted and not closed",
        f"update wallets.postings set created_at = now() - {{age}} where id = {q('again')};"
        f"update transactions.transactions set status = 'pending', completed_at = null where id = {q('again')}",
        [("effect", str(ident("again")))],
    ),
    Case(
        "captured and not closed",
        f"update wallets.holds set ended_at = now() - {{age}} where id = {q('card refund')};"
        f"update wallets.postings set created_at = now() - {{age}} where id = {q('card refund')};"
        "update transactions.transactions set status = 'pending', completed_at = null "
        f"where id = {q('card refund')}",
        [("effect", str(ident("card refund"))), ("hold", str(ident("card refund")))],
    ),
    Case(
        "held for a transaction that has just failed",
        "update transactions.transactions set status = 'failed', failure_code = 'cancelled', "
        f"completed_at = now() - {{age}} where id = {q('waiting')};"
        f"update transactions.outbox set payload = replace(payload, 'pending', 'failed') where key = {q('waiting')}",
        [("hold", str(ident("waiting")))],
    ),
    Case(
        "held for a transaction that is not there",
        "insert into wallets.holds (id, account_id, amount_minor, status, created_at) "
        f"values ('{STRANGER}', {q('bob')}, 5, 'open', now() - {{age}});"
        f"update wallets.accounts set held_minor = held_minor + 5 where id = {q('bob')};"
        "insert into wallets.outbox (event_id, topic, key, payload) "
        f"select '{STRANGER}', topic, '{STRANGER}', payload from wallets.outbox where key = {q('waiting')}",
        [("hold", str(STRANGER))],
    ),
    Case(
        "completed and not told",
        f"delete from transactions.outbox where key = {q('again')};"
        f"update transactions.transactions set completed_at = now() - {{age}} where id = {q('again')}",
        [("event", str(ident("again")))],
        recent=False,
    ),
    Case(
        "completed while the provider's answer is not on record",
        f"delete from payments.outbox where key = {q('charge of deposit')};"
        "update payments.payments set status = 'pending', provider_reference = null, event_sequence = 0 "
        f"where id = {q('charge of deposit')};"
        f"update transactions.transactions set completed_at = now() - {{age}} where id = {q('deposit')}",
        [("provider", str(ident("deposit")))],
        limit_seconds=600,
    ),
    Case(
        "failed while the charge is being given back",
        f"update payments.payments set status = 'succeeded', provider_reference = 'reference', decline_code = null, "
        f"event_sequence = 0 where id = {q('charge of no card')};"
        f"delete from payments.outbox where key = {q('charge of no card')};"
        "insert into payments.payments (id, transaction_id, kind, user_id, provider, method, amount_minor, currency) "
        f"select '{STRANGER}', transaction_id, 'refund', user_id, provider, method, amount_minor, currency "
        f"from payments.payments where id = {q('charge of no card')};"
        f"update transactions.transactions set completed_at = now() - {{age}} where id = {q('no card')}",
        [("provider", str(ident("no card")))],
        limit_seconds=600,
    ),
    Case(
        "disputed and not carried out",
        f"update payments.payments set reversed_at = now() - {{age}} where id = {q('charge of stolen')};"
        f"update transactions.transactions set status = 'pending', completed_at = null where id = {q('dispute')};"
        f"update wallets.postings set created_at = now() where id = {q('dispute')}",
        [("reversal", str(ident("stolen")))],
        limit_seconds=600,
        recent=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_is_in_flight_is_no_finding_until_it_has_taken_too_long(ledger: Any, case: Case) -> None:
    await ledger.falsify(case.sql.format(age=f"interval '{case.limit_seconds - 20} seconds'"))
    assert await ledger.full() == []
    assert await ledger.recent() == []

    # The same 40 seconds later.
    for table, columns in (
        ("wallets.postings", ["created_at"]),
        ("wallets.holds", ["created_at", "ended_at"]),
        ("transactions.transactions", ["completed_at"]),
        ("payments.payments", ["reversed_at"]),
    ):
        changes = ", ".join(f"{column} = {column} - interval '40 seconds'" for column in columns)
        await ledger.falsify(f"update {table} set {changes}")

    assert await ledger.full() == case.late
    assert await ledger.recent() == (case.late if case.recent else [])


async def test_a_recent_pass_looks_at_nothing_older(ledger: Any) -> None:
    await ledger.falsify(f"update wallets.accounts set balance_minor = balance_minor + 1 where id = {q('bob')}")

    assert await ledger.recent("30 minutes") == []
    assert await ledger.recent() == [("balance", str(ident("bob")))]
