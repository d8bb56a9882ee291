"""What the relay's benchmark says, in tables of Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tests.load.report import print_table


class Target(NamedTuple):
    """What was wanted, and what came of it."""

    wanted: str
    found: str
    met: bool


@dataclass(frozen=True, slots=True)
class Drained:
    """How a full outbox was emptied; CPU seconds by process."""

    audited: bool
    events: int
    seconds: float
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


@dataclass(frozen=True, slots=True)
class Delays:
    """From each commit until a consumer had the event, in ms and sorted; CPU seconds by process."""

    rate: float
    delays_ms: Sequence[float]
    seconds: float
    cpu: Mapping[str, float]

    def percentile(self, part: float) -> float:
        """What `part` (0 to 1) of the events did not exceed."""
        return self.delays_ms[min(int(len(self.delays_ms) * part), len(self.delays_ms) - 1)]


def print_drained(rounds: Sequence[Drained]) -> None:
    """How fast a full outbox is emptied, and whose CPU that takes."""
    names = list(rounds[0].cpu)
    head = ["audit", "events", "seconds", "events/s", *(f"us {name}" for name in names), "us all"]
    rows = []
    for each in rounds:
        micros = [each.cpu[name] / each.events * 1e6 for name in names]
        row = ["on" if each.audited else "off", f"{each.events:,}", f"{each.seconds:.1f}", f"{each.rate:,.0f}"]
        rows.append(row + [f"{value:.0f}" for value in (*micros, sum(micros))])
    print("A full outbox, and the relay alone; us of CPU per event:\n")
    print_table(head, rows, words=1)


def print_delays(found: Delays) -> None:
    """How long after its commit an event can be seen."""
    names = list(found.cpu)
    head = ["events/s", "events", "p50 ms", "p95", "p99", "max", *(f"us {name}" for name in names)]
    delays = [f"{found.percentile(part):.0f}" for part in (0.5, 0.95, 0.99, 1.0)]
    micros = [f"{found.cpu[name] / len(found.delays_ms) * 1e6:.0f}" for name in names]
    print("Events committed steadily, until a consumer has them; us of CPU per event:\n")
    print_table(head, [[f"{found.rate:,.0f}", f"{len(found.delays_ms):,}", *delays, *micros]], words=0)


def print_targets(targets: Sequence[Target]) -> None:
    """What was wanted, and whether it is so."""
    for each in targets:
        print(f"{'met' if each.met else 'MISSED'}: {each.wanted}: {each.found}")
