"""What the relay's benchmark says, in tables of Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from tests.load.measuring import percentile
from tests.load.report import print_table
from tests.load.sinks import Found

ROWS = 12  # of a table over time

Sample = TypeVar("Sample")


class Target(NamedTuple):
    """What was wanted, and what came of it."""

    wanted: str
    found: str
    met: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits at an instant: in the outboxes that a transfer writes to, before the consumers, and to be sent."""

    seconds: float
    transactions: int
    wallets: int
    lag: int
    mails: int

    @property
    def depth(self) -> int:
        """Of both outboxes."""
        return self.transactions + self.wallets


@dataclass(frozen=True, slots=True)
class Size:
    """An outbox table at an instant; `all_bytes` with its indexes."""

    seconds: float
    all_bytes: int
    dead_rows: int


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
        return percentile(self.delays_ms, part)


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


def print_waiting(rate: float, samples: Sequence[Waiting]) -> None:
    """What waited over time."""
    head = ["second", "outbox of transactions", "of wallets", "consumer lag", "mails to send"]
    rows = [
        [f"{each.seconds:.0f}", *(f"{value:,}" for value in (each.transactions, each.wallets, each.lag, each.mails))]
        for each in _some(samples)
    ]
    print(f"{rate:,.0f} transfers/s offered; what waits:\n")
    print_table(head, rows, words=0)


def print_sizes(events: int, seconds: float, sizes: Sequence[Size]) -> None:
    """How large the table was over time."""
    rows = [[f"{each.seconds:.0f}", f"{each.all_bytes / 1e6:.1f}", f"{each.dead_rows:,}"] for each in _some(sizes)]
    print(f"{events:,} events through one outbox in {seconds:.0f} s, {events / seconds:,.0f} a second:\n")
    print_table(["second", "MB with indexes", "dead rows"], rows, words=0)


def _some(samples: Sequence[Sample]) -> list[Sample]:
    """Some of the samples, evenly, the last one among them."""
    step = -(-len(samples) // ROWS)
    return list(samples[::-1][::step][::-1])


def once(found: Found) -> Target:
    """Whether every event came where it had to, once."""
    wanted = f"each of {found.committed:,} events is in Kafka and in the audit once"
    what = (
        f"{found.lost} lost, {found.duplicated} duplicated, {found.unaudited} not in the audit, "
        f"{found.foreign} where they do not belong"
    )
    return Target(wanted, what, found.is_good)


def print_targets(targets: Sequence[Target]) -> None:
    """What was wanted, and whether it is so."""
    for each in targets:
        print(f"{'met' if each.met else 'MISSED'}: {each.wanted}: {each.found}")
