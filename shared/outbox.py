"""The transactional outbox: events are stored with the change they tell of, and a relay carries them out.

Each row goes to two sinks, Kafka and the audit in MongoDB. It is deleted once both have it; while one is down, the
other goes on and marks what it has done.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.dialects.postgresql import UUID as PgUUID  # noqa: N811 - the type, not a constant
from sqlalchemy.ext.asyncio import AsyncSession

from shared.audit import AuditLog
from shared.database import Asyncpg, Database
from shared.events import OutgoingEvent
from shared.http.app import Check
from shared.kafka import EventProducer
from shared.metrics import OutboxMetrics
from shared.settings import DatabaseSettings

BATCH_SIZE: Final = 500
POLL_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 5.0
_LEADER_LOCK: Final = 0x6F757462  # "outb", with the schema's hash beside it

_log = logging.getLogger(__name__)


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """The outbox of the service whose `metadata` this is."""
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", PgUUID, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("audited", sa.Boolean, nullable=False, server_default=sa.false()),
    )


async def append(session: AsyncSession, table: sa.Table, events: Sequence[OutgoingEvent]) -> None:
    """Store `events` in the session's transaction."""
    if events:
        await session.execute(
            sa.insert(table),
            [{"event_id": e.id, "topic": e.topic, "key": e.key, "payload": e.payload} for e in events],
        )


async def append_batch(connection: Asyncpg, events: Sequence[OutgoingEvent]) -> None:
    """Store `events` in the connection's transaction, in one statement."""
    if events:
        await connection.execute(
            "insert into outbox (event_id, topic, key, payload) "
            "select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[])",
            [event.id for event in events],
            [event.topic for event in events],
            [event.key for event in events],
            [event.payload for event in events],
        )


class Relay:
    """Carries one service's outbox to Kafka and the audit, in order; of several processes one leads."""

    def __init__(self, database: Database, settings: DatabaseSettings, registry: CollectorRegistry) -> None:
        self._database = database
        self._schema = settings.schema_name
        self._producer = EventProducer(settings)
        self._audit = AuditLog(settings)
        self._metrics = OutboxMetrics(registry)
        self._woken = asyncio.Event()

    @property
    def checks(self) -> dict[str, Check]:
        """Whether its sinks answer, for `/health`."""
        return {"kafka": self._producer.check, "mongodb": self._audit.check}

    async def close(self) -> None:
        """Let go of both sinks; what was not relayed stays in the outbox."""
        await self._producer.close()
        self._audit.close()

    def wake(self) -> None:
        """Say that a commit has added rows; the poll finds them anyway."""
        self._woken.set()

    async def run(self) -> None:
        """Relay until cancelled, through any outage."""
        backoff = POLL_SECONDS
        while True:
            try:
                await self._lead()
                backoff = POLL_SECONDS
            except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
                _log.warning("relay interrupted: %s: %s", type(error).__name__, error)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            await asyncio.sleep(backoff)

    async def _lead(self) -> None:
        connection = await self._database.connect()
        try:
            query = "select pg_try_advisory_lock($1, hashtext($2))"
            if not await connection.fetchval(query, _LEADER_LOCK, self._schema):
                return
            backoff = POLL_SECONDS
            while True:
                self._woken.clear()
                moved, failed = await self._drain(connection)
                if failed:
                    await asyncio.sleep(backoff)
                    backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
                elif moved:
                    backoff = POLL_SECONDS
                else:
                    await self._wait()
        finally:
            connection.terminate()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _drain(self, connection: asyncpg.Connection[asyncpg.Record]) -> tuple[bool, bool]:
        """Move one batch; says whether anything moved and whether a sink failed."""
        unpublished = await connection.fetch(_WAITING.format(mark="published"), BATCH_SIZE)
        unaudited = await connection.fetch(_WAITING.format(mark="audited"), BATCH_SIZE)
        published, audited = await asyncio.gather(
            self._to_kafka(unpublished), self._to_audit(unaudited), return_exceptions=True
        )
        failed = False
        if not (unpublished or unaudited):
            self._metrics.depth.set(0)
            return False, False
        done: dict[str, set[int]] = {"published": set(), "audited": set()}
        for mark, rows, outcome in (("published", unpublished, published), ("audited", unaudited, audited)):
            if isinstance(outcome, BaseException):
                if not isinstance(outcome, Exception):
                    raise outcome
                failed = True
                self._metrics.failures.labels(mark).inc()
                _log.warning("outbox not %s: %s: %s", mark, type(outcome).__name__, outcome)
            else:
                done[mark] = {row["position"] for row in rows}
        await _settle(connection, unpublished + unaudited, done)
        self._metrics.depth.set(await connection.fetchval("select count(*) from outbox"))
        return bool(done["published"] or done["audited"]), failed

    async def _to_kafka(self, rows: Iterable[asyncpg.Record]) -> None:
        events = [(row["topic"], row["key"].encode(), row["payload"].encode()) for row in rows]
        if events:
            await self._producer.send(events)
            self._metrics.published.inc(len(events))

    async def _to_audit(self, rows: Iterable[asyncpg.Record]) -> None:
        documents: list[dict[str, Any]] = [json.loads(row["payload"]) for row in rows]
        if documents:
            await self._audit.write(documents)
            self._metrics.audited.inc(len(documents))


_WAITING: Final = (
    "select position, topic, key, payload, published, audited from outbox where not {mark} order by position limit $1"
)


async def _settle(
    connection: asyncpg.Connection[asyncpg.Record],
    rows: Iterable[asyncpg.Record],
    done: dict[str, set[int]],
) -> None:
    """Delete what both sinks have; mark what only one has."""
    finished: set[int] = set()
    marks: dict[str, set[int]] = {"published": set(), "audited": set()}
    for row in rows:
        position = row["position"]
        has = {mark for mark in marks if row[mark] or position in done[mark]}
        if has == marks.keys():
            finished.add(position)
        else:
            for mark in has:
                marks[mark].add(position)
    async with connection.transaction():
        await connection.execute("delete from outbox where position = any($1)", list(finished))
        for mark, positions in marks.items():
            if positions:
                await connection.execute(
                    f"update outbox set {mark} = true where position = any($1)",  # noqa: S608 - a literal
                    list(positions),
                )
