"""The transactional outbox: events are stored with the change they tell of, and a relay carries them out.

Each row goes to two sinks, Kafka and the audit in MongoDB, and is deleted once both have it. Before the audit gets a
row, the row gets its place in the audit's chain.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg
import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from sqlalchemy.ext.asyncio import AsyncSession

from shared.audit import AuditLog
from shared.background import Worker, running
from shared.chain import ChainBrokenError, linked
from shared.chain_head import Chain, LeadershipLostError, chain_table
from shared.database import Asyncpg, Database, prepare_schema
from shared.events import OutgoingEvent
from shared.http.app import Check
from shared.kafka import EventProducer
from shared.metrics import OutboxMetrics
from shared.settings import DatabaseSettings

BATCH_SIZE: Final = 500
POLL_SECONDS: Final = 0.5
LINGER_SECONDS: Final = 0.05
BUSY_PAUSE_SECONDS: Final = 0.5
BUSY_BATCH_SIZE: Final = 50
MAX_BEHIND_SECONDS: Final = 30.0  # for which the relay lets everything else go first
PATIENCE_SECONDS: Final = 2.0  # that one sink has with the other
EVEN_CHECK_SECONDS: Final = 0.1
WATCH_SECONDS: Final = 1.0
LEADERS_SILENCE_SECONDS: Final = 10  # after which the server takes the lock from a leader that is frozen or cut off
MAX_DEPTH: Final = 10_000  # counting further would take longer than the figure is worth
MAX_BACKOFF_SECONDS: Final = 5.0
_LEADER_LOCK: Final = 0x6F757462  # "outb", with the schema's hash beside it

Carrier = Callable[[Sequence[asyncpg.Record]], Awaitable[None]]

_log = logging.getLogger(__name__)


def outbox_table(metadata: sa.MetaData) -> sa.Table:
    """The outbox of the service whose `metadata` this is, and beside it the head of its audit's chain."""
    chain_table(metadata)
    return sa.Table(
        "outbox",
        metadata,
        sa.Column("position", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("audited", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("ip", sa.Text),  # goes to the audit alone
    )


async def append(session: AsyncSession, table: sa.Table, events: Sequence[OutgoingEvent]) -> None:
    """Store `events` in the session's transaction."""
    if events:
        await session.execute(
            sa.insert(table),
            [{"event_id": e.id, "topic": e.topic, "key": e.key, "payload": e.payload, "ip": e.ip} for e in events],
        )


async def append_batch(connection: Asyncpg, events: Sequence[OutgoingEvent]) -> None:
    """Store `events` in the connection's transaction, in one statement."""
    if events:
        await connection.execute(
            "insert into outbox (event_id, topic, key, payload, ip) "
            "select * from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])",
            [event.id for event in events],
            [event.topic for event in events],
            [event.key for event in events],
            [event.payload for event in events],
            [event.ip for event in events],
        )


@asynccontextmanager
async def publishing(
    settings: DatabaseSettings, folder: Path, database: Database, relay: Relay, *workers: Worker
) -> AsyncIterator[None]:
    """The life of a service with an outbox: schema, database, relay and `workers`, for the length of the block."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(relay.close)
        await prepare_schema(settings, folder)
        await database.open()
        await stack.enter_async_context(running(relay.run, *workers))
        yield


class Relay:
    """Carries one service's outbox to Kafka and the audit, in order; of several processes one leads.

    While both sinks take what they get, they get it together, and a batch costs one reading and one deletion. When
    one does not, each goes its own way, marking what it has, until both are even again.

    While the service is `busy` the relay takes its time, for half a minute at most: who waits for an answer comes
    first, and what is to be told is told afterwards.
    """

    def __init__(
        self,
        database: Database,
        settings: DatabaseSettings,
        registry: CollectorRegistry,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._busy = busy
        self._schema = settings.schema_name
        self._producer = EventProducer(settings)
        self._audit = AuditLog(settings)
        self._chain = Chain(database, settings.schema_name)
        self._metrics = OutboxMetrics(registry)
        self._carriers: dict[str, Carrier] = {"published": self._to_kafka, "audited": self._to_audit}
        self._woken = {mark: asyncio.Event() for mark in self._carriers}
        self._settling = asyncio.Lock()

    @property
    def audit(self) -> AuditLog:
        """The service's audit, for reading."""
        return self._audit

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
        for woken in self._woken.values():
            woken.set()

    async def run(self) -> None:
        """Relay until cancelled, through any outage."""
        backoff = POLL_SECONDS
        while True:
            try:
                await self._lead()
                backoff = POLL_SECONDS
            except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
                cause = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                _log.warning("relay interrupted: %s: %s", type(cause).__name__, cause)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
            await asyncio.sleep(backoff)

    async def _lead(self) -> None:
        connection = await self._database.connect()
        try:
            query = "select pg_try_advisory_lock($1, hashtext($2))"
            while not await connection.fetchval(query, _LEADER_LOCK, self._schema):  # noqa: ASYNC110 - another process has it
                await asyncio.sleep(WATCH_SECONDS)
            await connection.execute(f"set idle_session_timeout = '{LEADERS_SILENCE_SECONDS}s'")
            await self._chain.lead(connection)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry())
                group.create_task(self._watch(connection))
        finally:
            connection.terminate()

    async def _watch(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        """Fail as soon as the connection that holds the lock is gone: somebody else may lead by then."""
        while True:
            depth = await connection.fetchval("select count(*) from (select from outbox limit $1) o", MAX_DEPTH)
            self._metrics.depth.set(depth)
            await asyncio.sleep(WATCH_SECONDS)

    async def _carry(self) -> None:
        while True:
            await self._carry_together()
            await self._carry_apart()

    async def _carry_together(self) -> None:
        """Carry rows to both sinks, oldest first, until one of them fails or keeps the other waiting."""
        even_at = time.monotonic()
        while True:
            for woken in self._woken.values():
                woken.clear()
            yielding = self._busy() and time.monotonic() - even_at < MAX_BEHIND_SECONDS
            if yielding:
                await asyncio.sleep(BUSY_PAUSE_SECONDS)
            limit = BUSY_BATCH_SIZE if yielding else BATCH_SIZE
            rows = await self._waiting("true", limit)
            if rows and not await self._carry_batch(rows):
                return
            if len(rows) < limit:
                even_at = time.monotonic()
                await _wait(self._woken["published"], POLL_SECONDS)
                await asyncio.sleep(LINGER_SECONDS)  # what is committed next to it goes along

    async def _carry_batch(self, rows: Sequence[asyncpg.Record]) -> bool:
        """Whether both sinks have the rows, which are gone then; else those that one of them has are marked."""
        tasks = {
            mark: asyncio.create_task(self._try(mark, [row for row in rows if not row[mark]]))
            for mark in self._carriers
        }
        try:
            await asyncio.wait(tasks.values(), timeout=PATIENCE_SECONDS)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        succeeded = [mark for mark, task in tasks.items() if not task.cancelled() and task.result()]
        positions = [row["position"] for row in rows]
        if len(succeeded) < len(tasks):
            for mark in succeeded:
                await self._settle(mark, positions)
            return False
        async with self._database.batch() as connection:
            await connection.execute("delete from outbox where position = any($1)", positions)
        self._chain.settle(positions)
        return True

    async def _carry_apart(self) -> None:
        """Let each sink go its own way until both have all but the latest rows."""
        even: set[str] = set()
        pumps = [asyncio.create_task(self._pump(mark, even)) for mark in self._carriers]
        try:
            while len(even) < len(pumps):
                done, _ = await asyncio.wait(pumps, timeout=EVEN_CHECK_SECONDS)
                for pump in done:
                    pump.result()  # a pump ends by an error only
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, mark: str, even: set[str]) -> None:
        """Carry rows to one sink, oldest first, while the other may be out."""
        woken = self._woken[mark]
        backoff = POLL_SECONDS
        while True:
            woken.clear()
            rows = await self._waiting(f"not {mark}")
            if rows and not await self._try(mark, rows):
                even.discard(mark)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, MAX_BACKOFF_SECONDS)
                continue
            backoff = POLL_SECONDS
            if rows:
                await self._settle(mark, [row["position"] for row in rows])
            if len(rows) < BATCH_SIZE:
                even.add(mark)
                await _wait(woken, POLL_SECONDS)

    async def _try(self, mark: str, rows: Sequence[asyncpg.Record]) -> bool:
        """Whether the sink has taken the rows; an outage of any kind is waited out."""
        try:
            if rows:
                await self._carriers[mark](rows)
        except LeadershipLostError:
            raise
        except Exception as error:  # noqa: BLE001 - see above
            self._metrics.failures.labels(mark).inc()
            _log.warning("outbox not %s: %s: %s", mark, type(error).__name__, error)
            return False
        return True

    async def _waiting(self, condition: str, limit: int = BATCH_SIZE, *arguments: object) -> list[asyncpg.Record]:
        columns = "position, topic, key, payload, ip, published, audited"
        query = f"select {columns} from outbox where {condition} order by position limit $1"  # noqa: S608 - literals
        async with self._database.batch() as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, limit, *arguments)
            return rows

    async def _settle(self, mark: str, positions: list[int]) -> None:
        """Mark what one sink has, and delete what both have; one at a time, or both could overlook the other.

        The sink does have it, whoever leads by now: this needs no fence.
        """
        async with self._settling, self._database.batch() as connection:
            update = f"update outbox set {mark} = true where position = any($1)"  # noqa: S608 - a literal
            await connection.execute(update, positions)
            await connection.execute(
                "delete from outbox where position = any($1) and published and audited", positions
            )
        if mark == "audited":
            self._chain.settle(positions)

    async def _to_kafka(self, rows: Sequence[asyncpg.Record]) -> None:
        await self._producer.send([(row["topic"], row["key"].encode(), row["payload"].encode()) for row in rows])
        self._metrics.published.inc(len(rows))

    async def _to_audit(self, rows: Sequence[asyncpg.Record]) -> None:
        repeated = await self._repeat_claimed() if not self._chain.settled else frozenset()
        if fresh := [row for row in rows if row["position"] not in repeated]:
            await self._audit.write(await self._chain.claim(fresh))
            self._metrics.audited.inc(len(fresh))

    async def _repeat_claimed(self) -> frozenset[int]:
        """Write the batch once more that was claimed last, unless it is known to be in the audit; its positions.

        Its rows are marked and deleted together: all of them are still there, or none.
        """
        head = await self._chain.claimed()
        rows = await self._waiting("position = any($2) and not audited", BATCH_SIZE, head.claimed)
        if rows:
            documents, last = linked(rows, head.before, head.first)
            if last != head.hash:  # claimed by a release that knew no addresses, while this one was rolled out
                documents, last = linked(rows, head.before, head.first, addresses=False)
            if last != head.hash:
                raise ChainBrokenError(
                    f"the outbox has {len(rows)} rows of the {len(head.claimed)} that were claimed for the audit's "
                    f"positions {head.first} to {head.position}, and not with those hashes"
                )
            await self._audit.write(documents)
            await self._settle("audited", head.claimed)
            self._metrics.audited.inc(len(rows))
        self._chain.settle(head.claimed)
        return frozenset(head.claimed)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
