"""wallet-service as it runs: a process of its own behind HTTP, with all engines, and how much memory it takes."""

import argparse
import asyncio
import itertools
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import msgspec
import uvloop

from infrastructure.embedded import cleaning, ports, processes, services
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.processes import Process
from infrastructure.embedded.waiting import wait_until
from shared.ids import new_id
from shared.testing.tokens import service_headers
from tests.load import contenders
from tests.load.arena import CURRENCY, Arena, Wallet, arena, violations
from tests.load.measuring import Round, cpu_seconds_of, drive, machine, peak_rss_of
from wallet_service.app import FOLDER

READY_LIMIT_SECONDS = 60.0
CALL_TIMEOUT_SECONDS = 60.0
MEMORY_BUDGET_BYTES = 150_000_000
WARM_UP_SECONDS = 2.0
# More than the ledger lets wait (10,000 postings) by far.
OVERLOAD_CONNECTIONS, OVERLOAD_UNITS = 256, 1000
REPEATED_CALLS = 64

Pairs = Callable[[], tuple[Wallet, Wallet]]

SERVE = "from shared.serve import main; raise SystemExit(main())"


@dataclass(slots=True)
class Caller:
    """Posts lists of transfers, and counts the answers by status."""

    place: Arena
    session: aiohttp.ClientSession
    url: str
    statuses: Counter[int] = field(default_factory=Counter)

    async def post(self, body: bytes) -> None:
        """One call; whatever else than 200 is only counted."""
        headers = service_headers("transaction-service", "wallet-service")
        async with self.session.post(f"{self.url}/internal/postings", data=body, headers=headers) as response:
            answer = await response.read()
        self.statuses[response.status] += 1
        if response.status == 200 and (b'"refused"' in answer or b'"unknown"' in answer):
            raise AssertionError(answer[:300])

    def body(self, pairs: Pairs, units: int) -> bytes:
        """A call of this many transfers, each a unit of its own."""
        return msgspec.json.encode({"units": [[_posting(*pairs())] for _ in range(units)]})

    def transfers(self, units: int, *, hot: bool) -> Callable[[], Awaitable[None]]:
        """Calls of new transfers."""
        pairs = contenders.pairs(self.place, hot=hot)
        return lambda: self.post(self.body(pairs, units))

    def repeats(self, units: int) -> Callable[[], Awaitable[None]]:
        """The same few calls again and again, which cost the caller nothing."""
        pairs = contenders.pairs(self.place, hot=False)
        bodies = itertools.cycle([self.body(pairs, units) for _ in range(REPEATED_CALLS)])
        return lambda: self.post(next(bodies))


def run(options: argparse.Namespace) -> int:
    """Measure and print; 1 when the ledger is not right afterwards or took too much memory."""
    with arena(options.wallets, everything=True) as place:
        with _wallet_service(place, options.gc_threshold) as service:
            uvloop.run(_measure(place, service, options))
            peak = peak_rss_of(service.pid)
        found = asyncio.run(violations(place.settings, relayed=True))
    print(f"\nThe ledger's invariants, by SQL: {found or 'all hold'}")
    return 1 if found or peak > MEMORY_BUDGET_BYTES else 0


async def _measure(place: Arena, service: Process, options: argparse.Namespace) -> None:
    print(machine())
    print(f"wallet-service alone over HTTP, fsync on, events relayed; {options.wallets} wallets\n")
    print(f"at rest: peak memory {peak_rss_of(service.pid) / 1e6:.0f} MB")
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        caller = Caller(place, session, services.url(service.port))
        await drive(caller.transfers(options.units, hot=False), options.connections, WARM_UP_SECONDS)
        for load in ("spread", "hot"):
            rounds = [
                await _round(caller, service, options.units, options.connections, options.seconds, hot=load == "hot")
                for _ in range(options.rounds)
            ]
            best = max(rounds, key=lambda each: each.rate)
            _print(f"{load}, {options.connections} connections with {options.units} transfers a call", best)
        caller.statuses.clear()
        await drive(caller.repeats(OVERLOAD_UNITS), OVERLOAD_CONNECTIONS, options.seconds)
        answers = ", ".join(f"{count} x {status}" for status, count in sorted(caller.statuses.items()))
    peak = peak_rss_of(service.pid)
    print(f"overload, {OVERLOAD_CONNECTIONS} connections with {OVERLOAD_UNITS} transfers a call: {answers}")
    print(
        f"peak memory of the process after all of it: {peak / 1e6:.0f} MB; "
        f"its budget of {MEMORY_BUDGET_BYTES / 1e6:.0f} MB is {'kept' if peak <= MEMORY_BUDGET_BYTES else 'BROKEN'}"
    )


async def _round(
    caller: Caller, service: Process, units: int, connections: int, seconds: float, *, hot: bool
) -> Round:
    pids = (service.pid, caller.place.postgres_pid)
    before = [cpu_seconds_of(pid) for pid in pids]
    measured = await drive(caller.transfers(units, hot=hot), connections, seconds, transfers_each=units)
    python_cpu, postgres_cpu = (cpu_seconds_of(pid) - begun for pid, begun in zip(pids, before, strict=True))
    return replace(
        measured, python_cpu=python_cpu, postgres_cpu=postgres_cpu, peak_rss_bytes=peak_rss_of(service.pid)
    )


def _print(title: str, measured: Round) -> None:
    print(
        f"{title}: {measured.rate:,.0f} transfers/s, a call p50 {measured.percentile(0.5):.1f} ms, "
        f"p95 {measured.percentile(0.95):.1f} ms, p99 {measured.percentile(0.99):.1f} ms; CPU per transfer: service "
        f"{measured.python_cpu / measured.transfers * 1e6:.0f} us, "
        f"PostgreSQL {measured.postgres_cpu / measured.transfers * 1e6:.0f} us; "
        f"peak memory {measured.peak_rss_bytes / 1e6:.0f} MB"
    )


@contextmanager
def _wallet_service(place: Arena, gc_threshold: int) -> Iterator[Process]:
    """The service on a free port, ended with the block, or with this process like the engines."""
    port = ports.choose([])
    log = place.directory / cleaning.LOGS / "wallet-service.log"
    rarely = f"import gc; gc.set_threshold({gc_threshold}); " if gc_threshold else ""
    process = processes.start(
        [sys.executable, "-c", rarely + SERVE, "--port", str(port)],
        record=place.directory / cleaning.RECORDS / "wallet-service.json",
        log=log,
        port=port,
        environment={**os.environ, **place.variables, "ENV_FILE": ""},
        directory=FOLDER,
        stop_signals=services.DRAIN,
    )
    try:
        if not wait_until(lambda: services.is_ready(port), READY_LIMIT_SECONDS):
            raise EmbeddedError(f"wallet-service does not start: {services.error_in(log)}.")
        yield process
    finally:
        processes.end(process)


def _posting(payer: Wallet, payee: Wallet) -> dict[str, object]:
    return {
        "id": new_id(),
        "action": "move",
        "user_id": payer.user_id,
        "source": payer.id,
        "target": payee.id,
        "amount_minor": contenders.AMOUNT_MINOR,
        "currency": CURRENCY,
        "trace": contenders.TRACE,
    }
