"""Each invariant: one thing is falsified, and exactly what is wrong with it is found."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from ledger_reconciler.testing import STRIPE, USD, ident
from shared.ids import new_id

STRANGER = new_id()

Found = list[tuple[str, str]]


def q(name: str) -> str:
    """The id of this name as SQL."""
    return f"'{ident(name)}'"


def entry(account: str, version: int) -> str:
    """The condition that picks one entry."""
    return f"account_id = {q(account)} and version = {version}"


@dataclass(frozen=True)
class Case:
    """What is done to the books, what of it a full pass finds, and what a recent one does not."""

    name: str
    sql: str
    full: Found
    only_full: set[str] = field(default_factory=set)

    @property
    def recent(self) -> Found:
        return [found for found in self.full if found[0] not in self.only_full | {"zero_sum", "event", "reversal"}]


def found(**subjects: str | list[str]) -> Found:
    """Findings by invariant: rows by their names or ids."""
    return sorted(
        (invariant, subject)
        for invariant, named in subjects.items()
        for subject in ([named] if isinstance(named, str) else named)
    )


def of(*names: str) -> list[str]:
    return [str(ident(name)) for name in names]


LEDGER = [
    Case(
        "an entry that was invented",
        "insert into wallets.entries "
        f"values ({q('carol')}, 4, {q('transfer')}, 5, 605, now() - interval '90 minutes');"
        f"update wallets.accounts set balance_minor = 605, version = 4 where id = {q('carol')}",
        found(zero_sum=USD, posting=of("transfer"), amount=of("transfer")),
    ),
    Case(
        "an entry with another amount",
        f"update wallets.entries set amount_minor = 101 where {entry('bob', 2)}",
        found(
            zero_sum=USD,
            posting=of("again"),
            balance=of("bob"),
            chain=f"{ident('bob')}/2",
            amount=of("again"),
        ),
        only_full={"balance"},
    ),
    Case(
        "entries of two postings taken for each other's",
        f"update wallets.entries set posting_id = {q('transfer')} where {entry('bob', 2)}",
        found(posting=of("transfer", "again"), amount=of("transfer", "again")),
    ),
    Case(
        "an entry on an account that is not there",
        f"update wallets.entries set account_id = '{STRANGER}', version = 1, balance_minor = -500 "
        f"where {entry('carol', 3)}",
        found(zero_sum=USD, posting=of("dispute"), balance=of("carol"), version=of("carol")),
    ),
    Case(
        "a balance",
        f"update wallets.accounts set balance_minor = balance_minor + 1 where id = {q('bob')}",
        found(balance=of("bob")),
    ),
    Case(
        "a version",
        f"update wallets.accounts set version = version + 1 where id = {q('bob')}",
        found(version=of("bob")),
    ),
    Case(
        "a balance in the middle of the chain",
        f"update wallets.entries set balance_minor = balance_minor + 1 where {entry('alice', 2)}",
        found(chain=[f"{ident('alice')}/2", f"{ident('alice')}/3"]),
    ),
    Case(
        "a balance beyond what can be added",
        f"update wallets.entries set balance_minor = 9223372036854775807 where {entry('alice', 2)}",
        found(chain=[f"{ident('alice')}/2", f"{ident('alice')}/3"]),
    ),
    Case(
        "an entry that is older than the one before it",
        f"update wallets.entries set created_at = created_at - interval '10 minutes' where {entry('alice', 3)}",
        found(chain=f"{ident('alice')}/3"),
    ),
    Case(
        "an entry that is gone",
        f"delete from wallets.entries where {entry('bob', 2)}",
        found(
            zero_sum=USD,
            posting=of("again"),
            balance=of("bob"),
            version=of("bob"),
            chain=f"{ident('bob')}/3",
            amount=of("again"),
        ),
        only_full={"balance", "version"},
    ),
    Case(
        "what is held",
        f"update wallets.accounts set held_minor = held_minor + 1 where id = {q('bob')}",
        found(held=of("bob")),
    ),
    Case(
        "what a hold is about",
        f"update wallets.holds set amount_minor = 299 where id = {q('waiting')}",
        found(held=of("bob")),
    ),
    Case(
        "a hold on an account that is not there",
        f"update wallets.holds set account_id = '{STRANGER}' where id = {q('waiting')}",
        found(held=[*of("bob"), str(STRANGER)]),
    ),
    Case(
        "a wallet below zero",
        "alter table wallets.accounts drop constraint accounts_not_overdrawn;"
        f"update wallets.accounts set balance_minor = -1 where id = {q('carol')}",
        found(balance=of("carol"), overdrawn=of("carol")),
    ),
    Case(
        "more held than there is",
        "alter table wallets.accounts drop constraint accounts_not_overdrawn;"
        f"update wallets.accounts set held_minor = 1000 where id = {q('carol')}",
        found(held=of("carol"), overdrawn=of("carol")),
    ),
]

TRIGGERS = {
    "wallets.entries/entries_balance": "entries_balance",
    "wallets.entries/append_only": "append_only",
    "wallets.postings/append_only": "append_only",
    "wallets.holds/holds_end_once": "holds_end_once",
    "wallets.holds/holds_are_kept": "append_only",
    "transactions.transactions/transactions_end_once": "end_once",
    "transactions.transactions/transactions_are_kept": "are_kept",
}
NO_TEETH = "returns trigger language plpgsql as 'begin return coalesce(new, old); end'"


def on(trigger: str) -> str:
    """The trigger in a statement that changes it."""
    table, name = trigger.split("/")
    return f"{name} on {table}"


GUARDS = [
    *(
        Case(
            f"a trigger that is off: {trigger}", f"alter table {table} disable trigger {name}", found(trigger=trigger)
        )
        for trigger in TRIGGERS
        for table, name in [trigger.split("/")]
    ),
    *(Case(f"a trigger that is gone: {on(t)}", f"drop trigger {on(t)}", found(trigger=t)) for t in TRIGGERS),
    *(
        Case(
            f"a guard that does nothing: {function} in {schema}",
            f"create or replace function {schema}.{function}() {NO_TEETH}",
            found(trigger=[t for t, f in TRIGGERS.items() if (t.split(".")[0], f) == (schema, function)]),
        )
        for schema, function in sorted({(t.split(".")[0], f) for t, f in TRIGGERS.items()})
    ),
    Case(
        "a guard that looks at other accounts",
        "alter function wallets.entries_balance() set search_path = elsewhere, wallets",
        found(trigger="wallets.entries/entries_balance"),
    ),
    Case(
        "a trigger that forbids less",
        "drop trigger append_only on wallets.entries; create trigger append_only before truncate on wallets.entries "
        "for each statement execute function wallets.append_only()",
        found(trigger="wallets.entries/append_only"),
    ),
    Case(
        "a trigger that watches one column",
        "drop trigger transactions_end_once on transactions.transactions; create trigger transactions_end_once "
        "before update of amount_minor on transactions.transactions "
        "for each row execute function transactions.end_once()",
        found(trigger="transactions.transactions/transactions_end_once"),
    ),
    Case(
        "a trigger of the same name elsewhere",
        "drop trigger append_only on wallets.entries; create trigger append_only "
        "before update or delete or truncate on wallets.accounts "
        "for each statement execute function wallets.append_only()",
        found(trigger="wallets.entries/append_only"),
    ),
    Case(
        "a right to delete",
        "grant delete on wallets.postings to wallet_service",
        found(privilege="wallet_service/wallets.postings/delete"),
    ),
    Case(
        "a right to truncate",
        "grant truncate on wallets.entries to transaction_service",
        found(privilege="transaction_service/wallets.entries/truncate"),
    ),
    Case(
        "a right to change one column",
        "grant update (amount_minor) on wallets.entries to wallet_service",
        found(privilege="wallet_service/wallets.entries/update"),
    ),
]

TRANSACTIONS = [
    Case(
        "a key of nothing",
        f"update transactions.idempotency_keys set transaction_id = '{STRANGER}'",
        found(key=str(STRANGER)),
    ),
    Case(
        "somebody else's key",
        f"update transactions.idempotency_keys set user_id = '{STRANGER}'",
        found(key=of("transfer")),
    ),
    Case(
        "a second key",
        "insert into transactions.idempotency_keys "
        "select user_id, operation, 'another', fingerprint, transaction_id, null, null, created_at "
        "from transactions.idempotency_keys",
        found(key=of("transfer")),
    ),
    Case(
        "a posting that is gone",
        f"delete from wallets.postings where id = {q('again')}",
        found(effect=of("again"), event=of("again")),
    ),
    Case(
        "a transaction that is gone",
        f"delete from transactions.transactions where id = {q('again')}",
        found(effect=of("again"), event=of("again")),
    ),
    Case(
        "a refused posting that moved money",
        f"update wallets.postings set refusal = 'frozen' where id = {q('again')}",
        found(effect=of("again"), event=of("again")),
    ),
    Case(
        "an applied posting that moved none",
        f"update wallets.postings set refusal = null where id = {q('too much')}",
        found(effect=of("too much"), event=of("too much")),
    ),
    Case(
        "a completed transaction whose posting was refused",
        f"update transactions.transactions set status = 'completed', failure_code = null where id = {q('too much')}",
        found(effect=of("too much"), event=of("too much")),
    ),
    Case(
        "a completed transaction without a posting",
        f"delete from wallets.postings where id = {q('too much')};"
        "update transactions.transactions set status = 'completed', failure_code = null "
        f"where id = {q('too much')}",
        found(effect=of("too much"), event=of("too much")),
    ),
    Case(
        "a failed transaction that moved money",
        f"update transactions.transactions set status = 'failed', failure_code = 'frozen' where id = {q('again')}",
        found(effect=of("again"), event=of("again")),
    ),
    Case(
        "a pending transaction that moved money long ago",
        f"update transactions.transactions set status = 'pending', completed_at = null where id = {q('again')}",
        found(effect=of("again")),
    ),
    Case(
        "the amount of a transaction",
        f"update transactions.transactions set amount_minor = 101 where id = {q('again')}",
        found(amount=of("again")),
    ),
    Case(
        "the currency of a transaction",
        f"update transactions.transactions set currency = 'EUR' where id = {q('again')}",
        found(amount=of("again")),
    ),
    Case(
        "the fee of a payment",
        f"update transactions.transactions set fee_minor = 49 where id = {q('payment')}",
        found(amount=of("payment")),
    ),
    Case(
        "the payer of a transaction",
        f"update transactions.transactions set from_wallet_id = {q('carol')} where id = {q('again')}",
        found(amount=of("again")),
    ),
    Case(
        "the payee of a transaction",
        f"update transactions.transactions set to_wallet_id = {q('carol')} where id = {q('again')}",
        found(amount=of("again")),
    ),
    Case(
        "a captured hold that says it was released",
        f"update wallets.holds set status = 'released' where id = {q('withdrawal')}",
        found(hold=of("withdrawal")),
    ),
    Case(
        "a completed withdrawal without a hold",
        f"delete from wallets.holds where id = {q('withdrawal')}",
        # What says that money was held tells of nothing, and what says that it was moved comes too late in the order.
        found(hold=of("withdrawal"), event=of("withdrawal", "withdrawal")),
    ),
    Case(
        "an open hold of a failed withdrawal",
        f"update wallets.holds set status = 'open', ended_at = null where id = {q('no bank')};"
        f"update wallets.accounts set held_minor = held_minor + 200 where id = {q('bob')}",
        found(hold=of("no bank"), event=of("no bank")),
    ),
    Case(
        "an open hold of nothing",
        "insert into wallets.holds (id, account_id, amount_minor, status, created_at) "
        f"values ('{STRANGER}', {q('bob')}, 5, 'open', now() - interval '1 hour');"
        f"update wallets.accounts set held_minor = held_minor + 5 where id = {q('bob')}",
        found(hold=str(STRANGER), event=str(STRANGER)),
    ),
    Case(
        "refunds beyond what was paid",
        "update transactions.transactions set amount_minor = 600, fee_minor = 0, refunded_minor = 600 "
        f"where id = {q('payment')}",
        found(refund=of("payment"), amount=of("payment")),
    ),
    Case(
        "more given back than was refunded",
        f"update transactions.transactions set refunded_minor = 701 where id = {q('payment')}",
        found(refund=of("payment")),
    ),
    Case(
        "a refund that is not reserved",
        f"update transactions.transactions set refunded_minor = 0 where id = {q('payment')}",
        found(refund=of("payment")),
    ),
    Case(
        "something given back without a refund",
        f"update transactions.transactions set refunded_minor = 1 where id = {q('again')}",
        found(refund=of("again")),
        only_full={"refund"},
    ),
    Case(
        "a refund of nothing",
        f"update transactions.transactions set original_id = '{STRANGER}' where id = {q('refund')};"
        f"update transactions.transactions set refunded_minor = 0 where id = {q('payment')}",
        found(refund=str(STRANGER)),
    ),
]


def declined(payment: str) -> str:
    return (
        "update payments.payments set status = 'declined', provider_reference = null, decline_code = 'card_declined' "
        f"where id = {q(payment)}"
    )


def succeeded(payment: str) -> str:
    return (
        "update payments.payments set status = 'succeeded', provider_reference = 'reference', decline_code = null "
        f"where id = {q(payment)}"
    )


PROVIDERS = [
    Case(
        "a completed deposit whose charge was declined",
        declined("charge of deposit"),
        found(provider=of("deposit"), event=of("charge of deposit")),
    ),
    Case(
        "a completed deposit that nobody was charged for",
        f"delete from payments.payments where id = {q('charge of deposit')}",
        found(provider=of("deposit"), event=of("charge of deposit")),
    ),
    Case(
        "a charge of another amount",
        f"update payments.payments set amount_minor = 1 where id = {q('charge of deposit')}",
        found(provider=of("deposit")),
    ),
    Case(
        "a charge in another currency",
        f"update payments.payments set currency = 'EUR' where id = {q('charge of deposit')}",
        found(provider=of("deposit")),
    ),
    Case(
        "a completed deposit whose charge was given back",
        "insert into payments.payments (id, transaction_id, kind, user_id, provider, method, amount_minor, currency, "
        f"status, provider_reference) select '{STRANGER}', transaction_id, 'refund', user_id, provider, method, "
        f"amount_minor, currency, status, 'refunded' from payments.payments where id = {q('charge of deposit')}",
        found(provider=of("deposit")),
    ),
    Case(
        "a completed refund that the provider declined",
        declined("refund of card refund"),
        found(provider=of("card refund"), event=of("refund of card refund")),
    ),
    Case(
        "a payout of another amount",
        f"update payments.payments set amount_minor = 1001 where id = {q('payout of withdrawal')}",
        found(provider=of("withdrawal")),
    ),
    Case(
        "a failed deposit that was charged",
        succeeded("charge of no card"),
        found(provider=of("no card"), event=of("charge of no card")),
    ),
    Case(
        "a failed withdrawal that was paid out",
        succeeded("payout of no bank"),
        found(provider=of("no bank"), event=of("payout of no bank")),
    ),
    Case(
        "a payout of nothing",
        "insert into payments.payments (id, transaction_id, kind, user_id, provider, method, amount_minor, currency) "
        f"values ('{STRANGER}', '{STRANGER}', 'payout', '{STRANGER}', 'stripe', 'bank_account', 5, 'USD')",
        found(provider=str(STRANGER)),
        only_full={"provider"},
    ),
    Case(
        "a dispute of another amount",
        f"update payments.payments set reversed_minor = 599 where id = {q('charge of stolen')}",
        found(reversal=of("stolen")),
    ),
    Case(
        "a dispute that the provider does not know",
        "update payments.payments set reversal = null, reversed_minor = null, reversed_at = null "
        f"where id = {q('charge of stolen')}",
        found(reversal=of("stolen"), event=of("charge of stolen")),
    ),
    Case(
        "a dispute that took money for a deposit that failed",
        f"update transactions.transactions set status = 'failed', failure_code = 'wallet_closed' "
        f"where id = {q('stolen')}",
        found(reversal=of("stolen"), effect=of("stolen"), event=of("stolen")),
    ),
    Case(
        "a returned payout that has not come back here",
        f"update transactions.transactions set status = 'pending', completed_at = null where id = {q('return')};"
        f"delete from wallets.entries where posting_id = {q('return')};"
        f"delete from wallets.postings where id = {q('return')};"
        "update wallets.accounts a set (balance_minor, version) = "
        "(select balance_minor, version from wallets.entries "
        f"where account_id = a.id order by version desc limit 1) where id in ({q('alice')}, {q(STRIPE)})",
        found(reversal=of("withdrawal"), event=of("return")),
    ),
]

EVENTS = [
    Case(
        "a completed transaction that nobody heard of",
        "delete from transactions.outbox where payload::json ->> 'type' = 'transactions.completed.v1' "
        f"and key = {q('again')}",
        found(event=of("again")),
    ),
    Case(
        "a posting that nobody heard of",
        f"delete from wallets.outbox where key = {q('again')}",
        found(event=of("again")),
    ),
    Case(
        "a hold that nobody heard of",
        f"delete from wallets.outbox where key = {q('withdrawal')} and payload::json ->> 'sequence' = '1'",
        found(event=of("withdrawal")),
    ),
    Case(
        "an event that is told twice",
        "insert into wallets.outbox (event_id, topic, key, payload) "
        f"select '{STRANGER}', topic, key, payload from wallets.outbox where key = {q('again')}",
        found(event=of("again")),
    ),
    Case(
        "an event of nothing",
        "insert into transactions.outbox (event_id, topic, key, payload) "
        f"select event_id, topic, '{STRANGER}', payload from transactions.outbox where key = {q('again')};"
        f"update transactions.outbox set event_id = '{STRANGER}' where key = '{STRANGER}'",
        found(event=str(STRANGER)),
    ),
    Case(
        "an event that is ahead of its aggregate",
        "insert into transactions.outbox (event_id, topic, key, payload) "
        f"select '{STRANGER}', topic, key, replace(payload, '\"sequence\": 1', '\"sequence\": 2') "
        f"from transactions.outbox where key = {q('again')}",
        found(event=of("again")),
    ),
    Case(
        "an event of another end",
        f"update transactions.outbox set payload = replace(payload, 'completed', 'failed') where key = {q('again')}",
        found(event=of("again")),
    ),
]


@pytest.mark.parametrize("case", [*LEDGER, *GUARDS, *TRANSACTIONS, *PROVIDERS, *EVENTS], ids=lambda case: case.name)
async def test_what_is_falsified_is_found_and_nothing_else(ledger: Any, case: Case) -> None:
    if case in GUARDS:
        await ledger.owner.execute(case.sql)
    else:
        await ledger.falsify(case.sql)

    assert await ledger.full() == case.full
    assert await ledger.recent() == case.recent


async def test_books_that_add_up_have_no_finding(ledger: Any) -> None:
    assert await ledger.full() == []
    assert await ledger.recent() == []
