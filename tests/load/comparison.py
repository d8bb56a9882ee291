"""The ledger beside others, in rounds that take turns, so that a busy machine is unfair to all of them alike."""

import argparse
import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from tests.load import contenders, floor
from tests.load.arena import Arena, Wallet, arena, violations
from tests.load.measuring import Round, collect_rarely, cpu_seconds_of, drive, machine
from tests.load.own_process import answering, own_process

WARM_UP_SECONDS = 1.0

CONTENDERS: Mapping[str, contenders.Contender] = {
    "set-based": contenders.set_based,
    "naive": contenders.naive,
    "orm": contenders.orm,
}
PGBENCH = "pgbench"
TITLES = {
    "set-based": "wallet-service's ledger, set-based",
    "naive": "a transaction per transfer, asyncpg",
    "orm": "a transaction per transfer, ORM",
    PGBENCH: "pgbench: two rows, no ledger",
}
LOADS = ("spread", "hot")
COLUMNS = "| {:35} | {:6} | {:>11} | {:>6} | {:>6} | {:>6} | {:>9} | {:>13} | {:>7} |"
WIDTHS = (11, 6, 6, 6, 9, 13, 7)

Best = dict[tuple[str, str], Round]
Runner = Callable[[bool, float], Round]
"""Runs one round of a contender: whether one wallet is hot, and for how many seconds."""


def run(options: argparse.Namespace) -> int:
    """Measure and print; 1 when the ledger is not right afterwards."""
    chosen = options.only.split(",") if options.only else [*CONTENDERS, PGBENCH]
    with arena(options.wallets, everything=options.relay) as place, ExitStack() as stack:
        runners = {name: stack.enter_context(_runner(name, place, options)) for name in chosen}
        best = _best_rounds(place, runners, options)
        _print_table(best, options)
        _print_ratios(best)
        found = asyncio.run(violations(place.settings, relayed=options.relay))
    print(f"\nThe ledger's invariants, by SQL: {found or 'all hold'}")
    return 1 if found else 0


def _best_rounds(place: Arena, runners: Mapping[str, Runner], options: argparse.Namespace) -> Best:
    best: Best = {}
    for number in range(options.rounds + 1):
        for name, runner in runners.items():
            for load in LOADS:
                before = cpu_seconds_of(place.postgres_pid)
                measured = runner(load == "hot", options.seconds if number else WARM_UP_SECONDS)
                measured = replace(measured, postgres_cpu=cpu_seconds_of(place.postgres_pid) - before)
                if number and ((name, load) not in best or measured.rate > best[name, load].rate):
                    best[name, load] = measured
    return best


# ------------------------------------------------------------------------------- a contender's process


@contextmanager
def _runner(name: str, place: Arena, options: argparse.Namespace) -> Iterator[Runner]:
    """The contender in a process of its own, so that memory and CPU are its own, its callers' included."""
    if name == PGBENCH:
        asyncio.run(floor.lay_floor(place))
        yield lambda hot, seconds: floor.run_pgbench(place, options.connections, seconds, hot=hot)
        return
    with own_process(_contend, name, place, options) as worker:
        yield lambda hot, seconds: worker.ask((hot, seconds))


def _contend(name: str, place: Arena, options: argparse.Namespace, pipe: "Connection[Any, Any]") -> None:
    collect_rarely(options.gc_threshold)
    uvloop.run(_serve(name, place, options, pipe))


async def _serve(name: str, place: Arena, options: argparse.Namespace, pipe: "Connection[Any, Any]") -> None:
    """Run the rounds that are asked for, until there are no more."""
    pairs = {hot: contenders.pairs(place, hot=hot) for hot in (False, True)}
    async with CONTENDERS[name](place, options.connections, options.relay) as transfer:

        async def one_round(asked: tuple[bool, float]) -> Round:
            hot, seconds = asked
            return await drive(partial(_pay, transfer, pairs[hot]), options.clients, seconds)

        await answering(pipe, one_round)


async def _pay(transfer: contenders.Transfer, pair: Callable[[], tuple[Wallet, Wallet]]) -> None:
    await transfer(*pair())


# ------------------------------------------------------------------------------------------ the report


def _print_table(best: Best, options: argparse.Namespace) -> None:
    print(machine())
    print(
        f"fsync on; {options.clients} callers, {options.wallets} wallets, the best of {options.rounds} rounds of "
        f"{options.seconds:g} s; the others have {options.connections} connections; "
        f"{'events are relayed' if options.relay else 'no relay runs'}\n"
    )
    print(COLUMNS.format("", "load", "transfers/s", "p50 ms", "p95", "p99", "us Python", "us PostgreSQL", "peak MB"))
    print(COLUMNS.format("-" * 35, "-" * 6, *("-" * (width - 1) + ":" for width in WIDTHS)))
    for (name, load), measured in best.items():
        percentiles = [f"{measured.percentile(part):.1f}" for part in (0.5, 0.95, 0.99)]
        python, postgres = (f"{cpu / measured.transfers * 1e6:.0f}" for cpu in _cpu(measured))
        peak = f"{measured.peak_rss_bytes / 1e6:.0f}"
        own = ("", postgres, "") if name == PGBENCH else (python, postgres, peak)
        print(COLUMNS.format(TITLES[name], load, f"{measured.rate:,.0f}", *percentiles, *own))
    print("\nCPU is per transfer; that of Python and its memory include the callers.")


def _cpu(measured: Round) -> tuple[float, float]:
    return measured.python_cpu, measured.postgres_cpu


def _print_ratios(best: Best) -> None:
    pairs = [(("set-based", load), (other, load)) for other in ("naive", "orm", PGBENCH) for load in LOADS]
    pairs += [((name, "hot"), (name, "spread")) for name in TITLES]
    print()
    for one, other in pairs:
        if one in best and other in best:
            print(f"{' '.join(one):>16} : {' '.join(other):15} {best[one].rate / best[other].rate:6.2f}")
