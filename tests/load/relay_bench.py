"""How fast events leave an outbox: see docs/benchmarks.md.

python tests/load/relay_bench.py                       # a steady stream, a full outbox, the whole platform
python tests/load/relay_bench.py --only drain --profile relay
python tests/load/relay_bench.py --only load --search  # the highest rate that the platform sustains
python tests/load/relay_bench.py --million             # a million events, and how large the table is meanwhile
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "services" / "wallet-service")]

from infrastructure.embedded.errors import EmbeddedError  # noqa: E402 - found by the path above
from infrastructure.embedded.waiting import wait_until  # noqa: E402 - same
from tests.load import listening, outgoing, profiling, relay_report, sustained  # noqa: E402 - same
from tests.load.arena import Arena, arena  # noqa: E402 - same
from tests.load.growth import cleaned, watching  # noqa: E402 - same
from tests.load.measuring import cpu_seconds_of, machine  # noqa: E402 - same
from tests.load.outgoing import Check, Drain, Fill, Flood, Steady  # noqa: E402 - same
from tests.load.own_process import Worker, own_process  # noqa: E402 - same
from tests.load.premises import ENGINE_TITLES  # noqa: E402 - same
from tests.load.relay_report import Delays, Drained, Size, Target  # noqa: E402 - same

RELAY = "relay"
PARTS = ("latency", "drain", "load")
CPUS = 2
WALLETS = 1000
DRAIN_TARGET_PER_SECOND = 5_000
LATENCY_TARGET_MS = 250
TABLE_LIMIT_MB = 200
STEADY_PER_SECOND = 500
WARM_UP_SECONDS = 2.0
HEARD_LIMIT_SECONDS = 5.0
PROFILED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Bench:
    """An outbox with its relay, on engines of its own."""

    place: Arena
    relay: Worker

    def pids(self, title: str = RELAY) -> dict[str, int]:
        """Who takes part; the relay by this `title`."""
        engines = {ENGINE_TITLES[name]: pid for name, pid in self.place.pids.items() if name != "redis"}
        return {title: self.relay.pid} | engines

    def ask(self, question: outgoing.Question, title: str = RELAY) -> tuple[Any, dict[str, float]]:
        """The answer, and the CPU seconds that it took, by process."""
        pids = self.pids(title)
        before = {name: cpu_seconds_of(pid) for name, pid in pids.items()}
        answer = self.relay.ask(question)
        return answer, {name: cpu_seconds_of(pid) - before[name] for name, pid in pids.items()}

    def drained(self, events: int, *, audited: bool, profiled: str) -> Drained:
        """A full outbox, emptied."""
        self.ask(Fill(events))
        with profiling.profiled(profiled, self.pids().get(profiled), PROFILED_SECONDS):
            seconds, cpu = self.ask(Drain(audited))
        return Drained(audited, events, seconds, cpu)

    def delays(self, seconds: float) -> tuple[Delays, int]:
        """A steady stream until a consumer has it, and how many of its events the consumer never had."""
        self.ask(Steady(STEADY_PER_SECOND, WARM_UP_SECONDS))
        with own_process(listening.serve, self.place) as listener:
            listener.ask(listening.LISTEN)
            committed, cpu = self.ask(Steady(STEADY_PER_SECOND, seconds), title="writer and relay")
            arrivals: dict[str, float] = {}

            def all_have_come() -> bool:
                arrivals.update(listener.ask(listening.ARRIVALS))
                return len(arrivals) >= len(committed)

            wait_until(all_have_come, HEARD_LIMIT_SECONDS)
        delays_ms = sorted((arrivals[id_] - at) * 1000 for id_, at in committed.items() if id_ in arrivals)
        return Delays(STEADY_PER_SECOND, delays_ms, seconds, cpu), len(committed) - len(delays_ms)


@contextmanager
def bench() -> Iterator[Bench]:
    """Engines, and a relay that has its connections already."""
    with arena(WALLETS, everything=True) as place, own_process(outgoing.serve, place) as relay:
        found = Bench(place, relay)
        found.ask(Drain())  # what was told of the wallets
        yield found


def run(options: argparse.Namespace) -> list[Target]:
    """Measure and print."""
    targets = []
    with bench() as place:
        if "latency" in options.only:  # first, since the embedded broker is slower with a long topic
            targets.append(_latency(place, options))
        if "drain" in options.only:
            targets.append(_drain(place, options))
        if options.million:
            targets.append(asyncio.run(_million(place, options.million_events)))
        found, _ = place.ask(Check())
    return [*targets, relay_report.once(found)]


def _drain(place: Bench, options: argparse.Namespace) -> Target:
    rounds = [
        place.drained(options.events, audited=audited, profiled=options.profile)
        for _ in range(options.rounds)
        for audited in (True, False)
    ]
    relay_report.print_drained(rounds)
    best = max(each.rate for each in rounds if each.audited)
    wanted = f"a full outbox leaves at {DRAIN_TARGET_PER_SECOND:,} events/s"
    return Target(wanted, f"{best:,.0f}, the best of {options.rounds}", best >= DRAIN_TARGET_PER_SECOND)


def _latency(place: Bench, options: argparse.Namespace) -> Target:
    found, unheard = place.delays(options.steady_seconds)
    relay_report.print_delays(found)
    p95 = found.percentile(0.95)
    wanted = f"at {STEADY_PER_SECOND} events/s, p95 from commit to consumer is below {LATENCY_TARGET_MS} ms"
    heard = f"{unheard} events never came" if unheard else f"{p95:.0f} ms"
    return Target(wanted, heard, p95 < LATENCY_TARGET_MS and not unheard)


async def _million(place: Bench, events: int) -> Target:
    """As many events as the relay follows, and how large the table is meanwhile and when it has been cleaned up."""
    sizes: list[Size] = []
    async with watching(place.place.settings, sizes):
        seconds, _ = await asyncio.to_thread(place.ask, Flood(events))
        await cleaned(sizes)
    relay_report.print_sizes(events, seconds, sizes)
    peak, end = max(each.all_bytes for each in sizes) / 1e6, sizes[-1].all_bytes / 1e6
    wanted = f"the table of an outbox stays below {TABLE_LIMIT_MB} MB"
    return Target(wanted, f"{peak:.0f} MB at its peak, {end:.1f} MB in the end", peak < TABLE_LIMIT_MB)


def main() -> int:
    """Measure and print; 0 when every target is met and no event is lost or there twice."""
    options = _options()
    logging.disable(logging.WARNING)
    cpus = _keep_to(CPUS)
    print(f"{machine()}, {cpus} of them used; fsync on\n")
    try:
        targets = run(options) if options.million or {"drain", "latency"} & options.only else []
        targets += sustained.run(options) if "load" in options.only else []
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    relay_report.print_targets(targets)
    return 0 if all(each.met for each in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts ({','.join(PARTS)})")
    for name, default, meaning in (
        ("--events", 50_000, "drain: events in a full outbox"),
        ("--rounds", 2, "drain: rounds with the audit, of which the best one counts, and as many without"),
        ("--steady-seconds", 20.0, "latency: length of the stream"),
        ("--rate", 1000.0, "load: transfers that are due a second"),
        ("--load-seconds", 45.0, "load: length of the round"),
        ("--connections", 64, "load: keep-alive connections"),
        ("--people", 250, "load: people with a wallet each"),
        ("--million-events", 1_000_000, "with --million: how many it is"),
    ):
        parser.add_argument(name, type=type(default), default=default, help=f"{meaning} ({default})")
    parser.add_argument("--search", action="store_true", help="load: raise the rate until it is not sustained")
    parser.add_argument("--million", action="store_true", help="a million events instead, and the table's size")
    parser.add_argument(
        "--profile", default="", metavar="NAME", help="watch relay, MongoDB or a service by py-spy, if installed"
    )
    options = parser.parse_args()
    options.only = set() if options.million else set(options.only.split(","))
    if options.only - set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    return options


def _keep_to(cpus: int) -> int:
    """Let this process and all that it starts have so many CPUs, where the system can; how many they have."""
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    sys.exit(main())
