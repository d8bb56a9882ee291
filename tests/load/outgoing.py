"""wallet-service's outbox and its relay in a process of their own, and what is asked of them.

Events are those that transfers between the arena's wallets make, written as services write them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection as Pipe
from typing import Any

import asyncpg
import uvloop
from prometheus_client import CollectorRegistry

from shared.background import running
from shared.batching import Batcher
from shared.database import Database
from shared.events import OutgoingEvent
from shared.ids import new_id
from shared.outbox import Relay, append_batch
from shared.serve import GC_THRESHOLD
from tests.load import contenders
from tests.load.arena import FUNDS_MINOR, Arena, connect
from tests.load.contenders import AMOUNT_MINOR
from tests.load.measuring import collect_rarely
from tests.load.own_process import answering
from tests.load.sinks import compare

FILLED_AT_ONCE = 1000
LOOK_SECONDS = 0.05
DRAIN_LIMIT_SECONDS = 300.0
FLOOD_BATCH, FLOOD_WAITING = 100, 2000
FLOOD_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Fill:
    """Write so many events while no relay runs."""

    events: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Have the relay empty the outbox, with the audit or without; answers with the seconds it took."""

    audited: bool = True


@dataclass(frozen=True, slots=True)
class Steady:
    """Commit `rate` events a second while the relay runs; answers with each commit's instant, by event id."""

    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Check:
    """Compare what was committed with what Kafka and the audit have; answers with `Found`."""


@dataclass(frozen=True, slots=True)
class Flood:
    """Commit so many events while the relay runs, as fast as it follows; answers with the seconds it took."""

    events: int


Question = Fill | Drain | Steady | Flood | Check


class _Unaudited(Relay):
    """A relay that leaves the audit out, which shows what the audit costs."""

    async def _to_audit(self, rows: Sequence[asyncpg.Record]) -> None:
        """Take them as written."""


def serve(place: Arena, pipe: "Pipe[Any, Any]") -> None:
    """Do what is asked through `pipe`; runs in a process of its own, with the collector set as in every service."""
    collect_rarely(GC_THRESHOLD)
    uvloop.run(_serve(place, pipe))


async def _serve(place: Arena, pipe: "Pipe[Any, Any]") -> None:
    async with _outgoing(place) as outgoing:
        await answering(pipe, outgoing.answer)


@asynccontextmanager
async def _outgoing(place: Arena) -> AsyncIterator["_Outgoing"]:
    database, onlooker = Database(place.settings), await connect(place.settings)
    await database.open()
    outgoing = _Outgoing(place, database, onlooker)
    outgoing.committed = {str(row["event_id"]): 0.0 for row in await onlooker.fetch("select event_id from outbox")}
    try:
        yield outgoing
    finally:
        await outgoing.close()
        await onlooker.close()
        await database.close()


@dataclass(slots=True)
class _Outgoing:
    place: Arena
    database: Database
    onlooker: "asyncpg.Connection[asyncpg.Record]"
    committed: dict[str, float] = field(default_factory=dict)  # by id, at which instant
    unaudited: set[str] = field(default_factory=set)  # those that went without the audit
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)  # of the relay that writes the audit
    relays: dict[bool, Relay] = field(init=False)
    writer: Batcher[OutgoingEvent, None] = field(init=False)

    def __post_init__(self) -> None:
        self.writer = Batcher(self._write)
        self.relays = {
            audited: kind(self.database, self.place.settings, registry, busy=lambda: self.writer.busy)
            for audited, kind, registry in ((True, Relay, self.registry), (False, _Unaudited, CollectorRegistry()))
        }

    async def close(self) -> None:
        await self.writer.close()
        for relay in self.relays.values():
            await relay.close()

    async def answer(self, question: Question) -> Any:
        """Do it, and say what came of it."""
        match question:
            case Fill(events):
                return await self._fill(events)
            case Drain(audited):
                return await self._drain(audited=audited)
            case Steady(rate, seconds):
                return await self._steady(rate, seconds)
            case Flood(events):
                return await self._flood(events)
            case Check():
                settings = self.place.settings
                return await compare(settings, settings.schema_name, set(self.committed), self.unaudited)

    async def _write(self, events: Sequence[OutgoingEvent]) -> list[None]:
        """What a service does with the events of a batch: they are committed, and the relay is woken."""
        async with self.database.batch() as connection:
            await append_batch(connection, events)
        now = time.monotonic()
        self.committed |= {str(event.id): now for event in events}
        self.relays[True].wake()
        return [None] * len(events)

    async def _fill(self, events: int) -> None:
        new = partial(next, _events(self.place))
        for begin in range(0, events, FILLED_AT_ONCE):
            await self._write([new() for _ in range(min(FILLED_AT_ONCE, events - begin))])

    async def _drain(self, *, audited: bool) -> float:
        if not audited:
            self.unaudited |= {
                str(row["event_id"]) for row in await self.onlooker.fetch("select event_id from outbox")
            }
        begun = time.monotonic()
        async with running(self.relays[audited].run):
            await self._empty()
            return time.monotonic() - begun

    async def _empty(self) -> None:
        async with asyncio.timeout(DRAIN_LIMIT_SECONDS):
            while await self.onlooker.fetchval("select exists (select from outbox)"):  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(LOOK_SECONDS)

    async def _steady(self, rate: float, seconds: float) -> dict[str, float]:
        """Each event is one writer's at its own instant; those that meet share a commit, as in the services."""
        new, before = partial(next, _events(self.place)), set(self.committed)
        async with running(self.relays[True].run):
            begun = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for number in range(int(rate * seconds)):
                    await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
                    group.create_task(self.writer.submit([new()]))
            await self._empty()
        return {id_: at for id_, at in self.committed.items() if id_ not in before}

    async def _flood(self, events: int) -> float:
        new, written = partial(next, _events(self.place)), 0
        before = self._carried()
        async with running(self.relays[True].run):
            begun = time.monotonic()
            while written < events:
                if written - (self._carried() - before) >= FLOOD_WAITING:
                    await asyncio.sleep(FLOOD_PAUSE_SECONDS)
                    continue
                await self._write([new() for _ in range(min(FLOOD_BATCH, events - written))])
                written += FLOOD_BATCH
            await self._empty()
            return time.monotonic() - begun

    def _carried(self) -> float:
        """How many events both sinks have."""
        return min(self.registry.get_sample_value(f"outbox_{done}_total") or 0 for done in ("published", "audited"))


def _events(place: Arena) -> Any:
    """The events of transfers, one after the other, without end."""
    pairs = contenders.pairs(place, hot=False)
    version = 1
    while True:
        payer, payee = pairs()
        version += 1
        entries = [
            (payer, -AMOUNT_MINOR, FUNDS_MINOR - AMOUNT_MINOR, version),
            (payee, AMOUNT_MINOR, FUNDS_MINOR + AMOUNT_MINOR, version),
        ]
        yield contenders.event_of(new_id(), payer, entries)
