"""The audit's chains: each document is what was written, where it was written, and none is missing or too many.

A chain is walked from its beginning, a bounded batch at a time, and its end is compared with the one in Postgres. The
services go on meanwhile: what has a position in Postgres and may still be on its way is no finding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from ledger_reconciler.snapshot import Connection
from shared.audit import AuditReader
from shared.chain import CHAIN, genesis, link

SCHEMAS: Final = ("users", "wallets", "transactions", "payments", "notifications")

# One statement sees the head and the outbox as they are at one moment.
_HEAD: Final = """
select position, hash, before, cardinality(claimed) as claimed,
    exists (select from {schema}.outbox o where o.position = any(c.claimed) and not o.audited) as under_way
from {schema}.audit_chain c
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain by Postgres; up to `due`, whose hash is `due_hash`, everything has to be in the audit."""

    position: int
    due: int
    due_hash: bytes


@dataclass(frozen=True, slots=True)
class Walk:
    """What was seen of a service's chain; `finding` names the first document that is not as it has to be."""

    schema: str
    documents: int
    finding: str | None


async def verify(audit: AuditReader, connection: Connection, schema: str) -> Walk:
    """Walk a service's chain to the first finding; raises ConnectionError when MongoDB is out."""
    head = await _head(connection, schema)
    position, previous = 0, genesis(schema)
    while batch := await audit.chained(schema, position):
        for document in batch:
            found = _position_of(document)
            if found <= position:
                return Walk(schema, position, f"a second document is at position {found}: {_name(document)}")
            if found > position + 1:
                return Walk(schema, position, await _end(audit, connection, schema, position, head))
            if document[CHAIN] != {"position": found, "hash": _hash(previous, found, document)}:
                return Walk(schema, position, f"the document at position {found} was altered: {_name(document)}")
            position, previous = found, bytes.fromhex(document[CHAIN]["hash"])
            if found == head.due and previous != head.due_hash:
                told = f"up to position {found} the chain is not the one that PostgreSQL knows: {_name(document)}"
                return Walk(schema, position, told)
    return Walk(schema, position, await _end(audit, connection, schema, position, head))


async def _end(audit: AuditReader, connection: Connection, schema: str, position: int, head: Head) -> str | None:
    """What is wrong after a walk that ended at `position`."""
    if position >= head.due:
        return await _strays(audit, connection, schema)
    following = await audit.next_chained(schema, position)
    if following is None:
        return (
            f"the chain was cut: the document at position {position + 1} is missing and all after it, "
            f"up to {head.due} by PostgreSQL"
        )
    return (
        f"the document at position {position + 1} is missing; the next is at {_position_of(following)}: "
        f"{_name(following)}"
    )


async def _strays(audit: AuditReader, connection: Connection, schema: str) -> str | None:
    """A document that no position leads to, or one beyond the end."""
    last: tuple[int, str] = (0, "")
    async for batch in audit.positions(schema):
        for event_id, position in batch:
            if not isinstance(position, int) or position < 1:
                return f"a document has no position in the chain: event {event_id}"
            last = max(last, (position, event_id))
    end = (await _head(connection, schema)).position  # read afterwards: positions are given out before they are used
    if last[0] > end:
        return f"a document is beyond the end of the chain, at position {last[0]} of {end}: event {last[1]}"
    return None


async def _head(connection: Connection, schema: str) -> Head:
    row = await connection.fetchrow(_HEAD.format(schema=schema))
    if row is None:  # nobody has led yet
        return Head(0, 0, genesis(schema))
    if row["under_way"]:
        return Head(row["position"], row["position"] - row["claimed"], row["before"])
    return Head(row["position"], row["position"], row["hash"])


def _hash(previous: bytes, position: int, document: dict[str, Any]) -> str | None:
    try:
        return link(previous, position, document).hex()
    except (TypeError, ValueError):  # something that no event can hold
        return None


def _position_of(document: dict[str, Any]) -> int:
    return int(document[CHAIN]["position"])


def _name(document: dict[str, Any]) -> str:
    return f"event {document['_id']} ({document.get('type')} of {document.get('subject')})"


def report(walks: Sequence[Walk]) -> list[str]:
    """A line for each service, as `make audit-verify` prints them."""
    return [
        f"{walk.schema:<14}{walk.documents:>12} documents  {f'FINDING: {walk.finding}' if walk.finding else 'ok'}"
        for walk in walks
    ]
