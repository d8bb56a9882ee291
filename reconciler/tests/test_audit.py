"""Events that have left the outbox are looked for in MongoDB."""

import json
from typing import Any

import pytest

from ledger_reconciler.testing import ident
from shared.ids import new_id


@pytest.fixture
async def audited(ledger: Any) -> Any:
    """The books with empty outboxes: the relays have carried everything into the audit."""
    with ledger.sandbox.mongo() as mongo:
        database = mongo[ledger.settings.mongo_db]
        for schema in ("wallets", "transactions", "payments"):
            rows = await ledger.owner.fetch(f"delete from {schema}.outbox returning event_id, payload")
            documents = [{"_id": str(row["event_id"])} | json.loads(row["payload"]) for row in rows]
            database[f"{schema}_audit"].insert_many(documents)
        yield database


async def test_what_is_in_the_audit_needs_no_outbox(ledger: Any, audited: Any) -> None:
    done = await ledger.reconciler.full()

    assert done.total == 0
    [result] = [result for result in done.results if result.invariant == "event"]
    assert (result.rows, result.not_checked) == (52, None)


async def test_what_is_in_both_is_there_once(ledger: Any, audited: Any) -> None:
    """A row is in the outbox until both sinks have it."""
    for document in audited["wallets_audit"].find({"subject": str(ident("again"))}):
        await ledger.owner.execute(
            "insert into wallets.outbox (event_id, topic, key, payload, audited) values ($1, '', $2, $3, true)",
            document.pop("_id"),
            document["subject"],
            json.dumps(document),
        )

    assert await ledger.full() == []


async def test_an_event_that_the_audit_has_lost_is_found(ledger: Any, audited: Any) -> None:
    audited["transactions_audit"].delete_one({"subject": str(ident("again"))})

    assert await ledger.full() == [("event", str(ident("again")))]


async def test_a_gap_in_the_sequence_of_a_subject_is_found(ledger: Any, audited: Any) -> None:
    audited["wallets_audit"].delete_one({"subject": str(ident("withdrawal")), "sequence": 1})

    assert await ledger.full() == [("event", str(ident("withdrawal")))]


async def test_a_second_document_of_an_event_is_found(ledger: Any, audited: Any) -> None:
    document = audited["wallets_audit"].find_one({"subject": str(ident("again"))})
    audited["wallets_audit"].insert_one(document | {"_id": str(new_id())})

    assert await ledger.full() == [("event", str(ident("again")))]


@pytest.mark.parametrize("subject", [str(new_id()), "nobody", None], ids=["an id", "a word", "none"])
async def test_a_document_of_what_was_never_done_is_found(ledger: Any, audited: Any, subject: str | None) -> None:
    document = {"_id": str(new_id()), "type": "transactions.completed.v1", "subject": subject, "sequence": 1}
    audited["transactions_audit"].insert_one(document)

    assert await ledger.full() == [("event", str(subject))]
