"""How fast the whole platform is, through the gateway: see docs/benchmarks.md.

python tests/load/platform_bench.py                        # transfers and balance reads, at 64 and 128 connections
python tests/load/platform_bench.py --only transfers --connections 64 --seconds 20
python tests/load/platform_bench.py --profile wallet-service    # and where its time goes, by py-spy
"""

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from infrastructure.embedded.errors import EmbeddedError  # noqa: E402 - found by the path above
from tests.load import generator, people, profiling, report  # noqa: E402 - same
from tests.load.generator import Driven, Load  # noqa: E402 - same
from tests.load.measuring import cpu_seconds_of, machine, machine_cpu_seconds, memory_of  # noqa: E402 - same
from tests.load.own_process import Worker, own_process  # noqa: E402 - same
from tests.load.people import Person  # noqa: E402 - same
from tests.load.premises import Premises, premises  # noqa: E402 - same
from tests.load.report import Books, Drain, Measured, Verdict  # noqa: E402 - same

REQUESTS = 8192
WARM_UP_SECONDS = 2.0
DRAIN_LIMIT_SECONDS = 600.0
DRAIN_PAUSE_SECONDS = 0.1
QUIET_LIMIT_SECONDS = 120.0
QUIET_CPU_SHARE = 0.1
GENERATOR = "load generator"

SETTINGS = {
    # Above what the load can reach: the limiter counts every request and stops none.
    "RATE_LIMIT_PER_MINUTE": "10000000",
    # People are made by the hundred from one address, with a cheap hash.
    "RATE_LIMIT_LOGIN_PER_MINUTE": "0",
    "BCRYPT_ROUNDS": "4",
    "ACCESS_TOKEN_EXPIRE_MINUTES": "240",
}
OUTBOXES = ("users", "wallets", "transactions", "payments", "notifications")
BOOKS = """
select
    (select coalesce(sum(balance_minor), 0)::bigint from wallets.accounts where user_id is not null) as people_minor,
    (select coalesce(sum(balance_minor), 0)::bigint from wallets.accounts) as all_minor,
    count(*) filter (where status = 'completed') as completed,
    count(*) filter (where status <> 'completed') as not_completed
from transactions.transactions where type = 'transfer'
"""


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rounds need; `requests` are the prepared ones by the name of their load.

    With a `rate`, so many requests are due a second; else as many are sent as are answered.
    """

    place: Premises
    load: Worker
    database: "asyncpg.Connection[asyncpg.Record]"
    requests: Mapping[str, Sequence[bytes]]
    seconds: float
    rate: float = 0.0

    @property
    def pids(self) -> dict[str, int]:
        """Every process that takes part."""
        return {**self.place.pids, GENERATOR: self.load.pid}

    def cpu(self) -> dict[str, float]:
        """The CPU seconds of each so far."""
        return {name: cpu_seconds_of(pid) for name, pid in self.pids.items()}

    async def round(
        self,
        load: str,
        connections: int,
        profiled: str,
        watching: AbstractAsyncContextManager[object] | None = None,
    ) -> Measured:
        """One load after a warm-up, `watching` it, and then everything until the platform is quiet again."""
        expected, requests = report.EXPECTED[load], self.requests[load]
        plan = Load(self.place.gateway_port, requests, connections, WARM_UP_SECONDS, expected, self.rate)
        warm_up: Driven = await asyncio.to_thread(self.load.ask, plan)
        with profiling.profiled(profiled, self.pids.get(profiled), self.seconds):
            before, of_all = self.cpu(), machine_cpu_seconds()
            async with watching or nullcontext():
                driven: Driven = await asyncio.to_thread(self.load.ask, replace(plan, seconds=self.seconds))
            after = self.cpu()
            cpu = _difference(after, before)
            others = machine_cpu_seconds() - of_all - sum(cpu.values())
        drain = await self._drain()
        return Measured(load, connections, warm_up, driven, cpu, others, drain, _difference(self.cpu(), after))

    async def books(self) -> Books:
        """What is on record."""
        row = await self.database.fetchrow(BOOKS)
        assert row is not None
        return Books(**dict(row))

    async def _drain(self) -> Drain:
        """Wait until every outbox is empty, and then until nobody works any more."""
        begun = time.perf_counter()
        depth = left = sum((await self.outboxes()).values())
        while left and time.perf_counter() - begun < DRAIN_LIMIT_SECONDS:
            await asyncio.sleep(DRAIN_PAUSE_SECONDS)
            left = sum((await self.outboxes()).values())
        drained = time.perf_counter() - begun
        return Drain(depth, left, drained, drained + await self._quiet())

    async def outboxes(self) -> dict[str, int]:
        """How many events wait, by schema."""
        depths = ", ".join(f"(select count(*) from {schema}.outbox) as {schema}" for schema in OUTBOXES)
        row = await self.database.fetchrow(f"select {depths}")
        assert row is not None
        return dict(row)

    async def _quiet(self) -> float:
        """The seconds until no service is at work on what the load has left: consumers lag behind the outbox."""
        begun = time.perf_counter()
        while time.perf_counter() - begun < QUIET_LIMIT_SECONDS:
            before, at = self.cpu(), time.perf_counter()
            await asyncio.sleep(1.0)
            share = max(_difference(self.cpu(), before).values()) / (time.perf_counter() - at)
            if share < QUIET_CPU_SHARE:
                return at - begun
        return QUIET_LIMIT_SECONDS


def _difference(after: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds - before[name] for name, seconds in after.items()}


async def measure(place: Premises, load: Worker, options: argparse.Namespace) -> bool:
    """Measure and print; whether everything was as it must be."""
    merchant, persons = await people.settle(place.gateway_port, options.people)
    async with place.connection() as database:
        bench = Bench(place, load, database, _requests(merchant, persons, options), options.seconds)
        at_rest = {name: memory_of(pid) for name, pid in bench.pids.items()}
        before = await bench.books()
        rounds = [
            await bench.round(name, connections, options.profile)
            for connections in map(int, options.connections.split(","))
            for name in bench.requests
        ]
        after = await bench.books()
        under_load = {name: memory_of(pid) for name, pid in bench.pids.items()}
    verdict = Verdict(rounds, before, after, *await asyncio.to_thread(place.reconcile))
    print(machine())
    keys = "each transfer with an Idempotency-Key" if options.keys else "no Idempotency-Key"
    print(
        f"The whole platform, fsync on, token check, relay and audit on; {options.people} wallets and a merchant's, "
        f"rounds of {options.seconds:g} s, {keys}\n"
    )
    report.print_rounds(rounds)
    report.print_cpu(rounds)
    report.print_memory(at_rest, under_load)
    report.print_verdict(verdict)
    return verdict.is_good


def _requests(merchant: Person, persons: Sequence[Person], options: argparse.Namespace) -> dict[str, list[bytes]]:
    made: dict[str, list[bytes]] = {}
    if options.only in {"", "transfers"}:
        made["spread"] = people.spread(persons, REQUESTS, keys=options.keys)
        made["hot"] = people.hot(persons, merchant, REQUESTS, keys=options.keys)
    if options.only in {"", "reads"}:
        made["reads"] = people.reads(persons)
    return made


def main() -> int:
    """Measure and print; 0 when there was no error and the money adds up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one round (10)")
    parser.add_argument("--connections", default="64,128", help="keep-alive connections, one round each (64,128)")
    parser.add_argument("--people", type=int, default=250, help="people with a wallet each (250)")
    parser.add_argument("--only", default="", choices=["transfers", "reads"], help="leave the rest out")
    parser.add_argument("--keys", action="store_true", help="send an Idempotency-Key with each transfer")
    parser.add_argument(
        "--profile", default="", metavar="NAME", help="a service to be watched by py-spy, if installed"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        with premises(SETTINGS) as place, own_process(generator.serve) as load:
            good = asyncio.run(measure(place, load, options))
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
