"""What the platform's benchmark says, in tables of Markdown."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.load.generator import Driven
from tests.load.measuring import Memory

EXPECTED = {"spread": "201", "hot": "201", "reads": "200"}
LEAST_MICROS = 0.5
TRANSFERS = frozenset({"spread", "hot"})


@dataclass(frozen=True, slots=True)
class Drain:
    """How the events left: the outboxes' depth when the load stopped, what of it never left, and the seconds until
    they were empty and until no consumer was at work any more."""

    depth: int
    left: int
    seconds: float
    quiet_seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One round; CPU seconds by process, during the load and after it."""

    load: str
    connections: int
    warm_up: Driven
    driven: Driven
    cpu: Mapping[str, float]
    others_cpu: float
    drain: Drain
    cpu_afterwards: Mapping[str, float]

    @property
    def title(self) -> str:
        """For a column."""
        return f"{self.load} {self.connections}"

    def micros(self, cpu_seconds: float) -> float:
        """Of a round's CPU, what one answer took, in microseconds."""
        return cpu_seconds / max(1, self.driven.round.transfers) * 1e6


@dataclass(frozen=True, slots=True)
class Books:
    """The money of all people, of all accounts, and the transfers on record."""

    people_minor: int
    all_minor: int
    completed: int
    not_completed: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it was all right."""

    rounds: Sequence[Measured]
    before: Books
    after: Books
    reconciled: bool
    findings: str

    @property
    def acknowledged(self) -> int:
        """Transfers that were answered 201, warm-ups included."""
        return sum(
            driven.round.transfers
            for measured in self.rounds
            if measured.load in TRANSFERS
            for driven in (measured.warm_up, measured.driven)
        )

    @property
    def errors(self) -> int:
        """Of all rounds and warm-ups."""
        return sum(measured.driven.errors + measured.warm_up.errors for measured in self.rounds)

    @property
    def is_good(self) -> bool:
        """No error, no money made or lost, nothing acknowledged that is not on record, nothing left behind."""
        return (
            not self.errors
            and self.before.people_minor == self.after.people_minor
            and self.after.all_minor == 0
            and self.acknowledged == self.after.completed - self.before.completed
            and not any(measured.drain.left for measured in self.rounds)
            and self.reconciled
        )


def print_rounds(rounds: Sequence[Measured]) -> None:
    """How much, and how fast."""
    head = ["load", "connections", "answers/s", "p50 ms", "p95", "p99", "errors"]
    head += ["outbox at its end", "empty after s", "events/s", "quiet after s"]
    rows = []
    for each in rounds:
        measured, drain = each.driven.round, each.drain
        percentiles = [f"{measured.percentile(part):.1f}" for part in (0.5, 0.95, 0.99)]
        row = [each.load, str(each.connections), f"{measured.rate:,.0f}", *percentiles, str(each.driven.errors)]
        if each.load in TRANSFERS:
            rate = f"{drain.depth / drain.seconds:,.0f}" if drain.depth else ""
            row += [f"{drain.depth:,}", f"{drain.seconds:.1f}", rate, f"{drain.quiet_seconds:.1f}"]
        rows.append(row + [""] * (len(head) - len(row)))
    print_table(head, rows, words=1)
    found = {each.title: each.driven.round.rate for each in rounds}
    for each in rounds:
        spread = found.get(f"spread {each.connections}")
        if each.load == "hot" and spread:
            print(f"{each.title} : spread {each.connections} = {each.driven.round.rate / spread:.2f}")
    print()


def print_cpu(rounds: Sequence[Measured]) -> None:
    """Who used the CPU."""
    _print_cpu("us of CPU per answer", rounds, [each.cpu for each in rounds])
    told = [each for each in rounds if each.load in TRANSFERS]
    if told:
        _print_cpu("and until it is quiet", told, [each.cpu_afterwards for each in told])
    cpus = os.cpu_count() or 1
    for each in rounds:
        own, seconds = sum(each.cpu.values()), each.driven.round.seconds
        print(
            f"{each.title}: {own / seconds:.2f} of {cpus} CPUs busy, other programs {each.others_cpu / seconds:.2f}"
        )
    print()


def _print_cpu(title: str, rounds: Sequence[Measured], used: Sequence[Mapping[str, float]]) -> None:
    """CPU microseconds per answer by process, and all of them together."""
    micros = [
        {name: each.micros(seconds) for name, seconds in cpu.items()} for each, cpu in zip(rounds, used, strict=True)
    ]
    rows = [
        [name, *(f"{each[name]:.0f}" for each in micros)]
        for name in micros[0]
        if any(each[name] >= LEAST_MICROS for each in micros)
    ]
    rows.append(["all of them", *(f"{sum(each.values()):.0f}" for each in micros)])
    print_table([title, *(each.title for each in rounds)], rows, words=1)


def print_memory(at_rest: Mapping[str, Memory], under_load: Mapping[str, Memory]) -> None:
    """Who has how much memory."""
    rows = [
        [name, *(f"{value / 1e6:.0f}" for memory in (at_rest[name], found) for value in (memory.rss, memory.pss))]
        for name, found in under_load.items()
    ]
    print_table(["MB", "before: RSS", "PSS", "after: RSS", "PSS"], rows, words=1)


def print_verdict(verdict: Verdict) -> None:
    """Whether it was all right, and what was not."""
    before, after = verdict.before, verdict.after
    for each in verdict.rounds:
        for driven, when in ((each.warm_up, "warm-up"), (each.driven, "round")):
            if driven.errors:
                statuses: Counter[str] = driven.statuses
                found = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
                print(f"{each.title}, {when}: {found}\n" + "\n".join(f"  {sample!r}" for sample in driven.samples))
    print(f"errors: {verdict.errors}")
    print(f"transfers answered 201: {verdict.acknowledged:,}; on record: {after.completed - before.completed:,}")
    print(f"not completed: {after.not_completed:,}")
    print(f"money of all people in minor units: {before.people_minor:,} before, {after.people_minor:,} after")
    print(f"sum of all accounts: {after.all_minor}")
    print(f"reconciler: {verdict.findings.splitlines()[-1] if verdict.reconciled else verdict.findings}")
    print("all is well" if verdict.is_good else "NOT ALL IS WELL")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int) -> None:
    """The first `words` columns to the left, figures to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    print(line(head))
    print(line(["-" * width if column < words else "-" * (width - 1) + ":" for column, width in enumerate(widths)]))
    for row in rows:
        print(line(row))
    print()
