"""The audit's chains: whatever is done to a document is noticed, and the first one is named."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry
from pymongo.errors import DuplicateKeyError

from ledger_reconciler.audit import walk
from ledger_reconciler.chains import SCHEMAS
from ledger_reconciler.domain import CannotCheckError
from shared.background import running
from shared.chain import CHAIN, genesis, link
from shared.database import Database
from shared.ids import new_id
from shared.outbox import Relay
from shared.settings import ROOT, DatabaseSettings
from shared.testing.waiting import eventually

POSTED: Final = 19  # events of wallet-service in the books


class WalletSettings(DatabaseSettings):
    service = "wallet-service"
    schema_name = "wallets"


class TransactionSettings(DatabaseSettings):
    service = "transaction-service"
    schema_name = "transactions"


@pytest.fixture
async def collections(ledger: Any) -> AsyncIterator[Any]:
    """The Mongo database with all that wallet-service and transaction-service have told, as their relays wrote it."""
    for kind in (WalletSettings, TransactionSettings):
        settings = ledger.sandbox.settings(kind)
        database = Database(settings)
        await database.open()
        relay = Relay(database, settings, CollectorRegistry())

        async def is_empty(schema: str = kind.schema_name) -> bool:
            return not await ledger.owner.fetchval(f"select count(*) from {schema}.outbox")

        async with running(relay.run):
            await eventually(is_empty)
        await relay.close()
        await database.close()
    with ledger.sandbox.mongo() as mongo:
        yield mongo[ledger.settings.mongo_db]


@pytest.fixture
def found(ledger: Any) -> Callable[[], Awaitable[dict[str, str | None]]]:
    async def look() -> dict[str, str | None]:
        return {each.schema: each.finding for each in await walk(ledger.settings)}

    return look


def at(collection: Any, position: int) -> dict[str, Any]:
    document: dict[str, Any] = collection.find_one({"chain.position": position})
    return document


def named(document: dict[str, Any]) -> str:
    return f"event {document['_id']} ({document['type']} of {document['subject']})"


CLEAN: Final[dict[str, str | None]] = dict.fromkeys(SCHEMAS)


async def test_what_the_relays_wrote_is_in_order(ledger: Any, collections: Any) -> None:
    assert collections["wallets_audit"].count_documents({}) == POSTED
    assert [(each.schema, each.documents, each.finding) for each in await walk(ledger.settings)] == [
        ("users", 0, None),
        ("wallets", POSTED, None),
        ("transactions", collections["transactions_audit"].count_documents({}), None),
        ("payments", 0, None),
        ("notifications", 0, None),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"$set": {"data.text": "another"}},
        {"$set": {"actor": "nobody"}},
        {"$set": {"ip": "203.0.113.99"}},
        {"$unset": {"sequence": ""}},
        {"$set": {"note": None}},
        {"$set": {"chain.note": "mine"}},
        {"$set": {"chain.hash": "0" * 64}},
    ],
)
async def test_an_altered_document_is_named(collections: Any, found: Any, change: dict[str, Any]) -> None:
    audit = collections["wallets_audit"]
    for position in (9, 7, 12):
        audit.update_one({"chain.position": position}, change)

    told = f"the document at position 7 was altered: {named(at(audit, 7))}"
    assert await found() == CLEAN | {"wallets": told}


async def test_a_document_that_is_missing_in_the_middle_is_named(collections: Any, found: Any) -> None:
    audit = collections["wallets_audit"]
    audit.delete_many({"chain.position": {"$in": [5, 6, 12]}})

    told = f"the document at position 5 is missing; the next is at 7: {named(at(audit, 7))}"
    assert await found() == CLEAN | {"wallets": told}


async def test_the_first_document_can_be_missing_too(collections: Any, found: Any) -> None:
    audit = collections["transactions_audit"]
    audit.delete_one({"chain.position": 1})

    told = f"the document at position 1 is missing; the next is at 2: {named(at(audit, 2))}"
    assert await found() == CLEAN | {"transactions": told}


async def test_a_chain_that_was_cut_is_compared_with_postgresql(collections: Any, found: Any) -> None:
    collections["wallets_audit"].delete_many({"chain.position": {"$gt": POSTED - 2}})

    told = (
        f"the chain was cut: the document at position {POSTED - 1} is missing and all after it, "
        f"up to {POSTED} by PostgreSQL"
    )
    assert await found() == CLEAN | {"wallets": told}


async def test_a_collection_that_is_gone_is_a_chain_that_was_cut(collections: Any, found: Any) -> None:
    collections["wallets_audit"].drop()

    [told] = [finding for finding in (await found()).values() if finding]
    assert told.startswith("the chain was cut: the document at position 1 is missing")


async def test_two_documents_that_have_changed_places_are_noticed_at_the_first(collections: Any, found: Any) -> None:
    audit = collections["wallets_audit"]
    first, second = at(audit, 3), at(audit, 8)
    audit.delete_many({"chain.position": {"$in": [3, 8]}})
    audit.insert_many([first | {CHAIN: second[CHAIN]}, second | {CHAIN: first[CHAIN]}])

    told = f"the document at position 3 was altered: {named(second)}"
    assert await found() == CLEAN | {"wallets": told}


async def test_a_document_that_was_put_in_is_named(collections: Any, found: Any) -> None:
    audit = collections["wallets_audit"]
    forged = at(audit, 4) | {"_id": str(new_id())}
    with pytest.raises(DuplicateKeyError):
        audit.insert_one(forged)

    documents = list(audit.find({}))
    audit.drop()  # the index with it
    audit.insert_many([*documents, forged])
    told = (await found())["wallets"]
    assert told in {
        f"a second document is at position 4: {named(forged)}",
        f"a second document is at position 4: {named(audit.find_one({'_id': forged['id']}))}",
        f"the document at position 4 was altered: {named(forged)}",
    }


async def test_a_document_without_a_position_is_named(collections: Any, found: Any) -> None:
    collections["wallets_audit"].insert_one({"_id": "stray", "type": "wallets.posted.v1"})

    assert await found() == CLEAN | {"wallets": "a document has no position in the chain: event stray"}


async def test_a_document_that_goes_on_where_the_chain_has_ended_is_named(collections: Any, found: Any) -> None:
    audit = collections["wallets_audit"]
    document = {"_id": "forged", "type": "wallets.posted.v1", "subject": "s"}
    digest = link(bytes.fromhex(at(audit, POSTED)[CHAIN]["hash"]), POSTED + 1, document)
    audit.insert_one(document | {CHAIN: {"position": POSTED + 1, "hash": digest.hex()}})

    told = f"a document is beyond the end of the chain, at position {POSTED + 1} of {POSTED}: event forged"
    assert await found() == CLEAN | {"wallets": told}


async def test_a_chain_that_was_written_anew_is_not_the_one_that_postgresql_knows(
    collections: Any, found: Any
) -> None:
    audit = collections["wallets_audit"]
    previous = genesis("wallets")
    for position in range(1, POSTED + 1):
        document = at(audit, position) | {"actor": "somebody else"}
        previous = link(previous, position, document)
        audit.replace_one(
            {"_id": document["_id"]}, document | {CHAIN: {"position": position, "hash": previous.hex()}}
        )

    told = f"up to position {POSTED} the chain is not the one that PostgreSQL knows: {named(at(audit, POSTED))}"
    assert await found() == CLEAN | {"wallets": told}


async def test_what_has_a_position_and_is_on_its_way_is_no_finding(ledger: Any, collections: Any, found: Any) -> None:
    """A batch gets its positions before it is written, and documents of a batch come in no order."""
    await ledger.owner.execute(
        "insert into wallets.outbox (event_id, topic, key, payload) select gen_random_uuid(), '', '', '' "
        "from generate_series(1, 3); "
        "update wallets.audit_chain set before = hash, hash = '', position = position + 3, "
        "claimed = (select array_agg(position) from wallets.outbox)"
    )
    assert await found() == CLEAN

    collections["wallets_audit"].insert_one({"_id": "third", CHAIN: {"position": POSTED + 3, "hash": ""}})
    assert await found() == CLEAN

    await ledger.owner.execute("delete from wallets.outbox")
    assert (await found())["wallets"].startswith(f"the document at position {POSTED + 1} is missing")


async def test_without_mongodb_nothing_can_be_said(ledger: Any) -> None:
    with pytest.raises(CannotCheckError, match="MONGO_"):
        await walk(ledger.settings.model_copy(update={"mongo_port": 1}))


async def test_the_command_says_it_in_lines_and_in_its_status(ledger: Any, collections: Any) -> None:
    async def run() -> tuple[int | None, list[str]]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ledger_reconciler.audit"),
            cwd=ROOT / "reconciler",
            env=os.environ | ledger.sandbox.environment | {"ENV_FILE": "", "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode().splitlines()

    status, lines = await run()
    assert (status, len(lines)) == (0, 5)
    assert lines[1].split() == ["wallets", str(POSTED), "documents", "ok"]

    collections["wallets_audit"].delete_one({"chain.position": 2})
    status, lines = await run()
    assert status == 1
    assert "FINDING: the document at position 2 is missing" in lines[1]
