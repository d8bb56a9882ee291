"""The end of the audit's chain, in Postgres.

Positions and hashes are given out here, by the one process that leads, before a document is written: whoever has to
repeat a batch writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from shared.chain import genesis, linked
from shared.database import Database


class LeadershipLostError(Exception):
    """Another process leads by now: this one was frozen or cut off for a while."""


def chain_table(metadata: sa.MetaData) -> sa.Table:
    """The head of a service's chain: one row, with the latest batch that was given positions.

    `claimed` has the outbox positions of that batch, `before` is the hash before it, `position` and `hash` are those
    of its last document. `term` counts who has led.
    """
    return sa.Table(
        "audit_chain",
        metadata,
        sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("term", sa.BigInteger, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("claimed", ARRAY(sa.BigInteger), nullable=False),
        sa.Column("before", sa.LargeBinary, nullable=False),
        sa.CheckConstraint("single", name="audit_chain_single"),
    )


class Head(NamedTuple):
    """The end of a chain; `first` is the position that the claimed batch begins with."""

    position: int
    hash: bytes
    claimed: list[int]
    before: bytes

    @property
    def first(self) -> int:
        """The position of the claimed batch's first document."""
        return self.position - len(self.claimed) + 1


class Chain:
    """One service's chain, as the process extends it that leads.

    There is one claimed batch at a time: `settled` says that it is known to be in the audit, and its rows marked or
    gone. Until it is, nothing else gets a position.
    """

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._genesis = genesis(schema)
        self._term = 0
        self._head: Head | None = None
        self.settled = False

    async def lead(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Begin a term: from now on the claims of whoever led before are refused. Wants the leader's lock."""
        self.settled, self._head = False, None
        self._term = await connection.fetchval(
            "insert into audit_chain (term, position, hash, claimed, before) values (1, 0, $1, '{}', $1) "
            "on conflict (single) do update set term = audit_chain.term + 1 returning term",
            self._genesis,
        )

    async def claimed(self) -> Head:
        """The head with the batch that was claimed last; raises LeadershipLostError."""
        query = "select position, hash, claimed, before from audit_chain where term = $1"
        async with self._database.batch() as connection:
            row = await connection.fetchrow(query, self._term)
        if row is None:
            raise LeadershipLostError
        self._head = Head(*row)
        return self._head

    async def claim(self, rows: Sequence[asyncpg.Record]) -> list[dict[str, Any]]:
        """Give the rows the next positions; returns the documents to write. Raises LeadershipLostError."""
        if self._head is None or not self.settled:
            raise RuntimeError("what was claimed before comes first")
        previous, self._head, self.settled = self._head, None, False  # until the commit is known
        documents, last = linked(rows, previous.hash, previous.position + 1)
        head = Head(previous.position + len(rows), last, [row["position"] for row in rows], previous.hash)
        async with self._database.batch() as connection:
            claimed = await connection.fetchval(
                "update audit_chain set position = $3, hash = $4, claimed = $5, before = $6 "
                "where term = $1 and position = $2 returning true",
                *(self._term, previous.position, *head),
            )
            if not claimed:
                raise LeadershipLostError
        self._head = head
        return documents

    def settle(self, positions: Sequence[int]) -> None:
        """Note that the audit has the rows at these positions of the outbox, and that they are marked or gone."""
        if self._head is not None and set(self._head.claimed).issubset(positions):
            self.settled = True
