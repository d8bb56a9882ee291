"""Invariants 8 and 9: each committed change is told once, in order, and nothing else is told.

What the tables say was done is compared with what the outboxes and the audit say was told. The audit has no index but
by event, so both sides are put into a temporary database on disk first, whatever their size.

The order of reading makes the comparison exact. Tables and outboxes are one snapshot, so an event that they lack was
in the audit before that, and the audit is read later. What the audit has beyond them may have been committed since,
and is looked up in the database again.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

from ledger_reconciler.checks import DUE, DUE_OF, OUTBOX
from ledger_reconciler.domain import Finding, Result, Scope
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.snapshot import LISTED_AT_MOST, Snapshot, snapshot
from shared.audit import AuditReader

NUMBER: Final = 8
INVARIANT: Final = "event"
PROMISE: Final = "What was done is told once, numbered without gaps, and nothing else is told."
BATCH: Final = 5000

_TABLES: Final = """
pragma journal_mode = off;
pragma synchronous = off;
pragma cache_size = -65536;
create table due (schema text, subject text, last integer, type text, settled integer);
create table told (id text, schema text, subject text, type text, sequence integer);
"""
# Made when everything is in: ids come in no order, and an index that grows with them takes twice as long.
_INDEXES: Final = (
    "create index due_subject on due (schema, subject, last, type, settled)",
    "create index told_subject on told (schema, subject, sequence, id, type)",
)
_ADD_TOLD: Final = "insert into told (id, schema, subject, type, sequence) values (?, ?, ?, ?, ?)"
_ADD_DUE: Final = "insert into due (schema, subject, last, type, settled) values (?, ?, ?, ?, ?)"

# Of the events 1 to `last` of an aggregate each is there once, and the last one says how it ended. The same event may
# be in the outbox and in the audit.
_MISSING: Final = """
select d.schema, d.subject, d.last, d.type, count(distinct t.id) as events, count(distinct t.sequence) as sequences,
    max(case when t.sequence = d.last then t.type end) as ended, count(*) over () as total
from due d
left join told t on t.schema = d.schema and t.subject = d.subject and t.sequence between 1 and d.last
where d.settled
group by d.schema, d.subject, d.last, d.type
having count(distinct t.id) <> d.last or count(distinct t.sequence) <> d.last
    or (d.type is not null and max(case when t.sequence = d.last then t.type end) is not d.type)
order by d.schema, d.subject limit ?
"""
_UNFOUNDED: Final = """
select distinct t.schema, t.subject, t.id, t.type, t.sequence
from told t left join due d on d.schema = t.schema and d.subject = t.subject
where d.subject is null or t.sequence is null or t.sequence not between 1 and d.last
order by t.schema, t.subject
"""


class EventComparison:
    """One comparison of what was done with what was told; leaving it removes what it has put on disk."""

    def __init__(self, settings: ReconcilerSettings, audit: AuditReader) -> None:
        self._settings = settings
        self._audit = audit
        self._trouble: str | None = None

    def __enter__(self) -> Self:
        # An empty name is a file of SQLite's own that is gone when it is closed. One task at a time uses it.
        self._staged = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._staged.executescript(_TABLES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._staged.close()

    async def expect(self, look: Snapshot) -> None:
        """Take from the snapshot what has to have been told, and what waits in the outboxes to be told."""
        try:
            await self._audit.check()
        except Exception as error:  # noqa: BLE001 - MongoDB may be out in any way
            self._trouble = f"MongoDB does not answer ({type(error).__name__})"
            return
        for schema, sql in DUE.items():
            async for rows in look.rows(sql, BATCH):
                await self._add(_ADD_DUE, ((schema, *row) for row in rows))
            async for rows in look.rows(OUTBOX.format(schema=schema), BATCH):
                await self._add(_ADD_TOLD, ((row[0], schema, *row[1:]) for row in rows))

    async def compare(self) -> Result:
        """Read the audit, and say what is missing, doubled or unfounded."""
        try:
            if self._trouble is None:
                await self._read_audit()
        except ConnectionError as error:
            self._trouble = str(error)
        if self._trouble is not None:
            return Result(NUMBER, INVARIANT, PROMISE, "events", 0, not_checked=self._trouble)
        for statement in _INDEXES:
            await self._ask(statement)
        rows = (await self._ask("select count(*) from told"))[0][0]
        missing = await self._ask(_MISSING, LISTED_AT_MOST)
        findings = [Finding(INVARIANT, row[1], _missing(*row[:-1])) for row in missing]
        unfounded, more = await self._unfounded()
        total = (missing[0][-1] if missing else 0) + more
        listed = tuple(findings + unfounded)[:LISTED_AT_MOST]
        return Result(NUMBER, INVARIANT, PROMISE, "events", rows, total, listed)

    async def _read_audit(self) -> None:
        for schema in DUE:
            async for events in self._audit.events(schema):
                await self._add(_ADD_TOLD, ((e.id, schema, e.subject, e.type, e.sequence) for e in events))

    async def _unfounded(self) -> tuple[list[Finding], int]:
        """Events of what is not there, also by now: the first of them, and how many."""
        findings: list[Finding] = []
        total = 0
        rows = await asyncio.to_thread(self._staged.execute, _UNFOUNDED)
        while batch := await asyncio.to_thread(rows.fetchmany, BATCH):
            async with snapshot(self._settings, Scope.RECENT) as look:
                for schema, sql in DUE_OF.items():
                    of_schema = [row for row in batch if row[0] == schema]
                    found = await look.connection.fetch(sql, list(filter(_is_id, (row[1] for row in of_schema))))
                    last = {row["subject"]: row["last"] for row in found}
                    wrong = [row for row in of_schema if not 1 <= (row[4] or 0) <= last.get(row[1], 0)]
                    total += len(wrong)
                    findings += [Finding(INVARIANT, str(row[1]), _unfounded(*row)) for row in wrong]
            del findings[LISTED_AT_MOST:]
        return findings, total

    async def _add(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        def add() -> None:
            self._staged.execute("begin")
            self._staged.executemany(statement, rows)
            self._staged.execute("commit")

        await asyncio.to_thread(add)

    async def _ask(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(lambda: self._staged.execute(statement, arguments).fetchall())


def _is_id(subject: object) -> bool:
    """Whether the subject can be that of an aggregate; a document may say anything."""
    try:
        UUID(str(subject))
    except ValueError:
        return False
    return True


def _missing(
    schema: str, subject: str, last: int, kind: str | None, events: int, sequences: int, ended: str | None
) -> str:
    if events > sequences:
        return (
            f"{schema} {subject} has {events} events under {sequences} sequence numbers in the outbox and the audit"
        )
    if sequences < last:
        return f"{schema} {subject} has {last} events, but {sequences} of them are in the outbox or the audit"
    return f"{schema} {subject} should have ended with {kind}, but the outbox and the audit say {ended}"


def _unfounded(schema: str, subject: str | None, id_: str, kind: str | None, sequence: int | None) -> str:
    return f"event {id_} ({kind}, sequence {sequence}) of {schema} {subject} tells of what is not in the database"
