"""What a look at the ledger has found, how it is told, and what of it is new. Pure: no database, clock or network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

LISTED: Final = 20  # rows of an invariant that a report names


class Scope(StrEnum):
    """How much is looked at: everything, or what has changed since the last look."""

    FULL = "full"
    RECENT = "recent"


class CannotCheckError(Exception):
    """Nothing can be said about the ledger; the text is one sentence that says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A row that breaks an invariant: which one it is, and a sentence about it for whoever is called at night."""

    invariant: str
    subject: str
    told: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.told}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a look at one invariant found: of `total` findings the first ones. `not_checked` says why there was none.

    `number` is the invariant's in the design, `promise` says it in a sentence; `rows` of `looked_at` were looked at.
    """

    number: int
    invariant: str
    promise: str
    looked_at: str
    rows: int
    total: int = 0
    findings: tuple[Finding, ...] = ()
    not_checked: str | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """One look at the ledger, as it was at `taken_at` by the database's clock."""

    scope: Scope
    taken_at: datetime
    seconds: float
    results: tuple[Result, ...]

    @property
    def total(self) -> int:
        """How many findings there are."""
        return sum(result.total for result in self.results)


def report(done: Pass) -> Iterable[str]:
    """The pass in lines for a person: one an invariant, what breaks it below."""
    for result in done.results:
        head = f"{result.number:>2}  {result.invariant:<12}"
        if result.not_checked is not None:
            yield f"{head}not checked: {result.not_checked}"
            continue
        found = _counted(result.total, "finding") if result.total else "ok"
        yield f"{head}{result.rows:>14,} {result.looked_at:<14}{found}"
        if result.total:
            yield f"      expected: {result.promise}"
        for finding in result.findings[:LISTED]:
            yield f"      {finding}"
        if result.total > LISTED:
            yield f"      … and {result.total - LISTED:,} more"
    skipped = sum(result.not_checked is not None for result in done.results)
    yield (
        f"{_counted(done.total, 'finding') if done.total else 'No finding'} in {done.seconds:.1f} s"
        + (f", {_counted(skipped, 'invariant')} not checked" if skipped else "")
        + (": reconciler/README.md says what each means and what to do." if done.total else ".")
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class Watch:
    """What is known to be wrong: what the last full pass found, and what the recent ones have found since.

    A recent pass does not look again at what it has passed, so only a full one takes a finding away.
    """

    totals: dict[str, int] = field(default_factory=dict)
    _known: dict[str, set[str]] = field(default_factory=dict)

    def learn(self, done: Pass) -> Sequence[Finding]:
        """Take the pass into account; the findings that were not known before."""
        new: list[Finding] = []
        for result in done.results:
            if result.not_checked is not None:
                continue
            known = self._known.get(result.invariant, set())
            unknown = [finding for finding in result.findings if finding.subject not in known]
            new += unknown
            if done.scope is Scope.FULL:
                self._known[result.invariant] = {finding.subject for finding in result.findings}
                self.totals[result.invariant] = result.total
            else:
                self._known[result.invariant] = known | {finding.subject for finding in unknown}
                self.totals[result.invariant] = self.totals.get(result.invariant, 0) + len(unknown)
        return new
