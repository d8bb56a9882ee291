"""How fast events leave an outbox: see docs/benchmarks.md.

python tests/load/relay_bench.py                       # a full outbox, a steady stream, the whole platform
python tests/load/relay_bench.py --only drain --profile relay
"""

import argparse
import logging
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
from tests.load import listening, outgoing, profiling, relay_report  # noqa: E402 - same
from tests.load.arena import Arena, arena  # noqa: E402 - same
from tests.load.measuring import cpu_seconds_of, machine  # noqa: E402 - same
from tests.load.outgoing import Check, Drain, Fill, Found, Steady  # noqa: E402 - same
from tests.load.own_process import Worker, own_process  # noqa: E402 - same
from tests.load.premises import ENGINE_TITLES  # noqa: E402 - same
from tests.load.relay_report import Delays, Drained, Target  # noqa: E402 - same

RELAY = "relay"
PARTS = ("drain", "latency")
WALLETS = 1000
DRAIN_TARGET_PER_SECOND = 5_000
LATENCY_TARGET_MS = 250
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
        if "drain" in options.only:
            targets.append(_drain(place, options))
        if "latency" in options.only:
            targets.append(_latency(place, options))
        found, _ = place.ask(Check())
    return [*targets, once(found)]


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
    found, unheard = place.delays(options.seconds)
    relay_report.print_delays(found)
    p95 = found.percentile(0.95)
    wanted = f"at {STEADY_PER_SECOND} events/s, p95 from commit to consumer is below {LATENCY_TARGET_MS} ms"
    heard = f"{unheard} events never came" if unheard else f"{p95:.0f} ms"
    return Target(wanted, heard, p95 < LATENCY_TARGET_MS and not unheard)


def once(found: Found) -> Target:
    """Whether every event came where it had to, once."""
    wanted = f"each of {found.committed:,} events is in Kafka and in the audit once"
    what = (
        f"{found.lost} lost, {found.duplicated} duplicated, {found.unaudited} not in the audit, "
        f"{found.foreign} that nobody committed"
    )
    return Target(wanted, what, found.is_good)


def main() -> int:
    """Measure and print; 0 when every target is met and no event is lost or there twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts ({','.join(PARTS)})")
    parser.add_argument("--events", type=int, default=50_000, help="drain: events in a full outbox (50000)")
    parser.add_argument("--rounds", type=int, default=2, help="drain: rounds with the audit, and as many without (2)")
    parser.add_argument("--seconds", type=float, default=20.0, help="latency: length of the stream (20)")
    parser.add_argument(
        "--profile", default="", metavar="NAME", help="drain: whom to watch by py-spy, if installed: relay, MongoDB"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        print(f"{machine()}; fsync on\n")
        targets = run(options)
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    relay_report.print_targets(targets)
    return 0 if all(each.met for each in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
