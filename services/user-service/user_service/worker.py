"""What runs beside the requests: telling every process of sessions that have ended, and forgetting old ones."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg
from prometheus_client import CollectorRegistry, Counter

from shared.background import stop_if_cancelled
from shared.database import Database
from shared.redis import connect
from shared.sessions import HEARTBEAT, HEARTBEAT_SECONDS, PAGE, Ended, Names, encode
from shared.settings import Settings
from user_service import queries

FORGET_SECONDS: Final = 600.0
KEPT_DAYS: Final = 90
FORGET_BATCH: Final = 1000

_FIRST_ID: Final = UUID(int=0)

_log = logging.getLogger(__name__)


class Announcer:
    """Tells every process through Redis of each session that has ended.

    A heartbeat says that all ends that were committed before it have been told. Every process of user-service has an
    announcer, and each tells whatever was not told yet: twice does no harm, and a process that hangs delays nothing.
    """

    def __init__(self, database: Database, settings: Settings, registry: CollectorRegistry) -> None:
        self._database = database
        self._names = Names.of(settings)
        self._redis = connect(settings, max_connections=1, on_connect=self._is_new)
        self._woken = asyncio.Event()
        self._connection = 0
        self._filled_by = 0
        self._is_out = False
        self._told = Counter("sessions_announced", "Ends of sessions told.", registry=registry)

    def wake(self) -> None:
        """Say that a commit may have ended sessions; the next round finds them anyway."""
        self._woken.set()

    async def close(self) -> None:
        """Let go of Redis."""
        await self._redis.aclose()

    async def check(self) -> None:
        """Raises while ends of sessions cannot be told."""
        if self._is_out:
            raise ConnectionError("ends of sessions cannot be told")

    async def run(self) -> None:
        """Announce through any outage, until cancelled."""
        while True:
            try:
                await self._round()
            except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
                self._report(error)
            else:
                self._report(None)
            stop_if_cancelled()
            await self._pause()

    async def _round(self) -> None:
        complete = await self._redis.exists(self._names.complete)
        if not complete or self._filled_by != self._connection:
            await self._fill()
        while rows := await self._untold():
            await self._tell(rows)
            async with self._database.batch() as connection:
                await queries.mark_announced(connection, [row["id"] for row in rows])
            self._told.inc(len(rows))
        await self._redis.publish(self._names.channel, HEARTBEAT)

    def _is_new(self) -> None:
        """There is a new connection: at its end may be a Redis that has lost something."""
        self._connection += 1

    async def _untold(self) -> Sequence[asyncpg.Record]:
        async with self._database.batch() as connection:
            return await queries.sessions_to_announce(connection, PAGE)

    async def _fill(self) -> None:
        """Tell everything that still matters, and say that the set is whole."""
        filled_by, last = self._connection, _FIRST_ID
        while True:
            async with self._database.batch() as connection:
                rows = await queries.ended_sessions(connection, last, PAGE)
            if not rows:
                break
            await self._tell(rows)
            last = rows[-1]["id"]
        await self._redis.set(self._names.complete, 1)
        self._filled_by = filled_by

    async def _tell(self, rows: Sequence[asyncpg.Record]) -> None:
        ended = [Ended(row["id"], row["access_until"].timestamp()) for row in rows]
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zadd(self._names.ended, {str(session_id): until for session_id, until in ended})
            pipeline.zremrangebyscore(self._names.ended, "-inf", rows[0]["now"].timestamp())
            pipeline.publish(self._names.channel, encode(ended))
            await pipeline.execute()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return
        finally:
            self._woken.clear()

    def _report(self, error: Exception | None) -> None:
        if self._is_out != (error is not None):
            self._is_out = error is not None
            if error is not None:
                _log.warning("ends of sessions cannot be told: %s: %s", type(error).__name__, error)
            else:
                _log.info("ends of sessions are told again")


async def forget(database: Database) -> None:
    """Delete sessions that were over three months ago, until cancelled."""
    while True:
        try:
            async with database.batch() as connection:
                deleted = await queries.delete_old_sessions(connection, KEPT_DAYS, FORGET_BATCH)
        except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
            _log.warning("old sessions are kept: %s: %s", type(error).__name__, error)
            deleted = 0
        stop_if_cancelled()
        if deleted < FORGET_BATCH:
            await asyncio.sleep(FORGET_SECONDS)
