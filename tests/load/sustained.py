"""Transfers at a steady rate through the whole platform, and whether what they have to tell keeps up with them."""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from statistics import linear_regression

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from shared.background import running
from shared.testing.sandbox import settings_of
from tests.load import generator, people, relay_report, report, sinks
from tests.load.own_process import Worker, own_process
from tests.load.platform_bench import OUTBOXES, REQUESTS, SETTINGS, Bench
from tests.load.premises import Premises, premises
from tests.load.relay_report import Target, Waiting
from tests.load.report import Measured, Verdict
from tests.load.sinks import Found
from wallet_service.settings import WalletSettings

CONSUMERS = ("NOTIFICATION_SERVICE_URL", "WALLET_SERVICE_URL", "TRANSACTION_SERVICE_URL")
LOAD = "spread"
SAMPLE_SECONDS = 1.0
SEARCH_FACTOR, SEARCH_STEPS = 1.25, 6
ACHIEVED_SHARE = 0.98
GROWTH_SHARE = 0.02
PATIENCE_SECONDS = 5.0
EVENTS_OF_A_TRANSFER = 2
TOLD = {
    "transactions": "select id from transactions.transactions where status <> 'pending'",
    "wallets": "select id from wallets.postings where refusal is null",
}
MAILS_WAITING = "select count(*) from notifications.notifications where state = 'pending'"


@dataclass(frozen=True, slots=True)
class Sustained:
    """A round at a fixed rate."""

    rate: float
    measured: Measured
    samples: Sequence[Waiting]

    def _growth(self, values: Sequence[int]) -> float:
        """By how much it grew a second: the slope of the line that fits the round's second half best."""
        half = len(values) // 2
        return linear_regression([each.seconds for each in self.samples[half:]], values[half:]).slope

    @property
    def allowed_growth(self) -> float:
        """Events a second, above which it is none that a round's noise explains."""
        return self.rate * EVENTS_OF_A_TRANSFER * GROWTH_SHARE

    @property
    def growths(self) -> dict[str, float]:
        """Of the outboxes and of the lag."""
        return {
            "outboxes": self._growth([each.depth for each in self.samples]),
            "lag": self._growth([each.lag for each in self.samples]),
        }

    @property
    def allowed_waiting(self) -> float:
        """Events, above which they do not wait for the next batch but for better times."""
        return self.rate * EVENTS_OF_A_TRANSFER * PATIENCE_SECONDS

    @property
    def is_flat(self) -> bool:
        """Whether it could go on like this for ever, and what was offered was done."""
        return (
            max(self.growths.values()) <= self.allowed_growth
            and self.most_waiting <= self.allowed_waiting
            and self.measured.driven.round.rate >= self.rate * ACHIEVED_SHARE
        )

    @property
    def most_waiting(self) -> int:
        """The most events that waited at an instant of the second half, in the outboxes or before the consumers."""
        return max(each.depth + each.lag for each in self.samples[len(self.samples) // 2 :])


def run(options: argparse.Namespace) -> list[Target]:
    """Measure and print."""
    with premises(SETTINGS) as place, own_process(generator.serve) as load:
        return asyncio.run(_measure(place, load, options))


async def _measure(place: Premises, load: Worker, options: argparse.Namespace) -> list[Target]:
    _, persons = await people.settle(place.gateway_port, options.people)
    requests = {LOAD: people.spread(persons, REQUESTS, keys=False)}
    async with place.connection() as database:
        bench = Bench(place, load, database, requests, options.load_seconds)
        before = await bench.books()
        rounds = await _rounds(bench, options)
        after = await bench.books()
        found = await _compared(bench)
    measured = [each.measured for each in rounds]
    verdict = Verdict(measured, before, after, *await asyncio.to_thread(place.reconcile))
    print(f"The whole platform, transfers at a steady rate, {options.connections} connections:\n")
    report.print_rounds(measured)
    report.print_cpu(measured)
    report.print_verdict(verdict)
    print()
    return [_target(rounds), relay_report.once(found), _sound(verdict)]


async def _rounds(bench: Bench, options: argparse.Namespace) -> list[Sustained]:
    """At the rate that is wanted; in a search at higher ones too, until one is not sustained."""
    rounds: list[Sustained] = []
    for step in range(SEARCH_STEPS if options.search else 1):
        rate = options.rate * SEARCH_FACTOR**step
        samples: list[Waiting] = []
        watching = _watching(bench, samples)
        measured = await replace(bench, rate=rate).round(LOAD, options.connections, options.profile, watching)
        rounds.append(Sustained(rate, measured, samples))
        relay_report.print_waiting(rate, samples)
        if not rounds[-1].is_flat:
            break
    return rounds


@asynccontextmanager
async def _watching(bench: Bench, samples: list[Waiting]) -> AsyncIterator[None]:
    """Take a sample each second, for the length of the block."""
    begun = time.perf_counter()
    async with aiohttp.ClientSession() as session:

        async def watch() -> None:
            while True:
                await asyncio.sleep(max(0.0, begun + (len(samples) + 1) * SAMPLE_SECONDS - time.perf_counter()))
                outboxes = await bench.outboxes()
                lag = sum([await _lag(session, bench.place.variables[name]) for name in CONSUMERS])
                mails = int(await bench.database.fetchval(MAILS_WAITING))
                now = time.perf_counter() - begun
                samples.append(Waiting(now, outboxes["transactions"], outboxes["wallets"], lag, mails))

        async with running(watch):
            yield


async def _lag(session: aiohttp.ClientSession, url: str) -> int:
    """The messages that a service's consumer has before it, as it says itself."""
    async with session.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    return int(sum(sample.value for family in families if family.name == "consumer_lag" for sample in family.samples))


async def _compared(bench: Bench) -> Found:
    """Kafka and the audit beside each other, and beside the transfers and the postings that they have to tell of."""
    settings, found = settings_of(WalletSettings, bench.place.variables), Found()
    for schema in OUTBOXES:
        rows = await bench.database.fetch(TOLD[schema]) if schema in TOLD else []
        found += await sinks.compare_subjects(settings, schema, {str(row["id"]) for row in rows})
    return found


def _target(rounds: Sequence[Sustained]) -> Target:
    first = rounds[0]
    flat = [each.measured.driven.round.rate for each in rounds if each.is_flat]
    rate = first.measured.driven.round.rate
    growth = ", ".join(f"{what} {value:+.0f} a second" for what, value in first.growths.items())
    highest = f"; the highest such rate: {max(flat):,.0f}" if len(rounds) > 1 else ""
    wanted = (
        f"at {first.rate:,.0f} transfers/s what waits grows by {first.allowed_growth:.0f} events a second at most, "
        f"and is no more than {first.allowed_waiting:,.0f}"
    )
    found = f"{rate:,.0f} transfers/s, {growth}, {first.most_waiting:,} at most{highest}"
    return Target(wanted, found, first.is_flat)


def _sound(verdict: Verdict) -> Target:
    wanted = "each transfer is answered, on record and told once, and the reconciler finds nothing"
    return Target(wanted, "so it is" if verdict.is_good else "it is not", verdict.is_good)
