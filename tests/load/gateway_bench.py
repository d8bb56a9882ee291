"""What the gateway forwards on one core, token check and limit on, next to a bare forward: see docs/benchmarks.md.

python tests/load/gateway_bench.py
python tests/load/gateway_bench.py --memory      # and what a million requests leave in its memory

All are served by the same server on CPU 0; the service behind them, the load and Valkey have CPU 1.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from infrastructure.embedded import cleaning, ports, processes, services  # noqa: E402 - found by the path above
from infrastructure.embedded.errors import EmbeddedError  # noqa: E402 - same
from infrastructure.embedded.processes import Process  # noqa: E402 - same
from infrastructure.embedded.stack import Stack  # noqa: E402 - same
from infrastructure.embedded.waiting import wait_until  # noqa: E402 - same
from shared.ids import new_id  # noqa: E402 - same
from shared.testing.tokens import Person  # noqa: E402 - same
from tests.load import backend, generator, heartbeat, profiling  # noqa: E402 - same
from tests.load.generator import Driven, Load  # noqa: E402 - same
from tests.load.measuring import cpu_seconds_of, machine, memory_of, peak_rss_of  # noqa: E402 - same
from tests.load.own_process import Worker, own_process  # noqa: E402 - same
from tests.load.report import print_table  # noqa: E402 - same

CORE, OTHER_CORE = 0, 1
PEOPLE = 250
WARM_UP_SECONDS = 1.0
PROFILE_SECONDS = 4.0
READY_LIMIT_SECONDS = 60.0
SLICES = 10
SATURATED = 0.95
RATE_WANTED = 5000
RATIO_WANTED = 0.6
MEMORY_BUDGET_BYTES = 120_000_000
GROWTH_BUDGET_BYTES = 3_000_000  # in the second half of the requests
MILLION = 1_000_000
GATEWAY, BARE, BARE_POOL = "gateway", "bare forward", "bare, own client"
FORWARDERS = {
    GATEWAY: ROOT / services.GATEWAY.folder,
    BARE: ROOT / "tests/load/bare",
    BARE_POOL: ROOT / "tests/load/bare_pool",
}

SETTINGS = {"RATE_LIMIT_PER_MINUTE": "10000000", "ENV_FILE": "", "LOG_LEVEL": "WARNING"}


@dataclass(frozen=True, slots=True)
class Place:
    """Those that forward to the same stand-in, by their names, and who calls them."""

    forwarders: Mapping[str, Process]
    behind: Worker
    load: Worker
    requests: Sequence[bytes]
    connections: int

    def drive(self, name: str, seconds: float) -> Driven:
        """Have as many requests forwarded as can be."""
        port = self.forwarders[name].port
        driven: Driven = self.load.ask(Load(port, self.requests, self.connections, seconds, "200"))
        return driven


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one of them; CPU is in seconds."""

    driven: Driven
    cpu: float
    other_cpu: float

    @property
    def busy(self) -> float:
        """The part of the turn in which its core worked for it."""
        return self.cpu / self.driven.round.seconds

    @property
    def per_cpu_second(self) -> float:
        """Requests in a second of its core, which another program cannot spoil by taking a part of it."""
        return self.driven.round.transfers / self.cpu


def run(options: argparse.Namespace) -> bool:
    """Measure and print; whether there was no error and everything is within its bounds."""
    with _place(options.connections) as place:
        print(machine())
        print(
            f"{options.connections} connections, the middle pair of {options.rounds} turns of {options.seconds:g} s\n"
        )
        for name in place.forwarders:
            place.drive(name, WARM_UP_SECONDS)
        asked = place.behind.ask(backend.QUESTIONS)
        turns = _turns(place, options.rounds, options.seconds)
        questions = place.behind.ask(backend.QUESTIONS) - asked
        own, bare = _middle_pair(turns, BARE)
        beside_own_client = _middle_pair(turns, BARE_POOL)
        _print({GATEWAY: own, BARE: bare, BARE_POOL: beside_own_client[1]})
        errors = sum(turn.driven.errors for each in turns.values() for turn in each)
        ratio = _ratio((own, bare))
        print(f"errors: {errors}; questions about sessions: {questions} (0 wanted)")
        print(f"gateway: {own.per_cpu_second:,.0f} requests per second of its core ({RATE_WANTED:,} wanted)")
        print(f"gateway : bare forward = {ratio:.2f} ({RATIO_WANTED} wanted)")
        print(f"gateway : {BARE_POOL} = {_ratio(beside_own_client):.2f}\n")
        if options.profile:
            with profiling.profiled(GATEWAY, place.forwarders[GATEWAY].pid, PROFILE_SECONDS):
                place.drive(GATEWAY, PROFILE_SECONDS)
        flat = _memory(place, options.memory)
    return not errors and not questions and ratio >= RATIO_WANTED and flat


def _turns(place: Place, rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """They take short turns, now the one first and now the other, so that a busy machine is unfair to both alike."""
    turns: dict[str, list[Turn]] = {name: [] for name in place.forwarders}
    order = list(place.forwarders.items())
    for _ in range(rounds):
        order.reverse()
        for name, process in order:
            pids = (process.pid, place.behind.pid, place.load.pid)
            before = [cpu_seconds_of(pid) for pid in pids]
            driven = place.drive(name, seconds)
            own, *others = (cpu_seconds_of(pid) - begun for pid, begun in zip(pids, before, strict=True))
            turns[name].append(Turn(driven, own, sum(others)))
    return turns


def _middle_pair(turns: Mapping[str, Sequence[Turn]], other: str) -> tuple[Turn, Turn]:
    """Of the turns of the gateway and of another, the pair with the middle one of all ratios."""
    pairs = sorted(zip(turns[GATEWAY], turns[other], strict=True), key=_ratio)
    return pairs[len(pairs) // 2]


def _ratio(pair: tuple[Turn, Turn]) -> float:
    own, bare = pair
    return own.per_cpu_second / bare.per_cpu_second


def _print(pair: Mapping[str, Turn]) -> None:
    head = ["", "requests/s", "p50 ms", "p95", "p99", "per second of CPU", "its core busy", "the other core busy"]
    rows = []
    for name, turn in pair.items():
        measured = turn.driven.round
        percentiles = [f"{measured.percentile(part):.1f}" for part in (0.5, 0.95, 0.99)]
        busy = [f"{part:.0%}" for part in (turn.busy, turn.other_cpu / measured.seconds)]
        rows.append([name, f"{measured.rate:,.0f}", *percentiles, f"{turn.per_cpu_second:,.0f}", *busy])
    print_table(head, rows, words=1)
    for name, turn in pair.items():
        if turn.busy < SATURATED:
            print(f"{name} had {turn.busy:.0%} of its core: there were other programs, or too little load.")
        for sample in turn.driven.samples:
            print(f"  {sample!r}")


def _memory(place: Place, requests: int) -> bool:
    """Whether the gateway's memory is small and stays so over this many requests."""
    pid = place.forwarders[GATEWAY].pid
    marks = [(0, memory_of(pid).rss)]
    done = 0
    while done < requests:
        goal = requests * len(marks) // SLICES
        while done < goal:
            done += place.drive(GATEWAY, 1.0).statuses.total()
        marks.append((done, memory_of(pid).rss))
    print("requests, and the gateway's memory (RSS) after them in MB:")
    print(", ".join(f"{count:,}: {rss / 1e6:.1f}" for count, rss in marks))
    peak, growth = peak_rss_of(pid), marks[-1][1] - marks[len(marks) // 2][1]
    small, flat = peak < MEMORY_BUDGET_BYTES, growth < GROWTH_BUDGET_BYTES
    print(
        f"peak {peak / 1e6:.1f} MB ({'kept' if small else 'BROKEN'}: {MEMORY_BUDGET_BYTES / 1e6:.0f} MB), "
        f"growth in the second half {growth / 1e6:.1f} MB ({'flat' if flat else 'NOT FLAT'})"
    )
    return small and flat


@contextmanager
def _place(connections: int) -> Iterator[Place]:
    """Everything on its core; nothing of it is left."""
    with tempfile.TemporaryDirectory(prefix="payment-system-load-") as folder:
        stack = Stack(Path(folder), ports="free", detached=False, durable=False, environ={})
        started: list[Process] = []
        try:
            os.sched_setaffinity(0, {OTHER_CORE})  # and with this process its children
            redis = stack.start(["redis"])
            with (
                own_process(backend.serve) as behind,
                own_process(generator.serve) as load,
                own_process(heartbeat.serve, redis["REDIS_HOST"], redis["REDIS_PORT"]) as heart,
            ):
                assert heart.ask("told?")
                url = f"http://127.0.0.1:{behind.ask(backend.PORT)}"
                urls = {f"{each.name.upper().replace('-', '_')}_URL": url for each in services.SERVICES}
                told = {**os.environ, **redis, **urls, **SETTINGS, "BARE_FORWARD_URL": url}
                for name, directory in FORWARDERS.items():
                    started.append(_served(stack.directory, name, directory, told))
                forwarders = dict(zip(FORWARDERS, started, strict=True))
                yield Place(forwarders, behind, load, _requests(), connections)
        finally:
            for process in started:
                processes.end(process)
            stack.stop()


def _served(directory: Path, name: str, folder: Path, environment: Mapping[str, str]) -> Process:
    """The application in `folder`, on the core that is measured."""
    port = ports.choose([])
    log = directory / cleaning.LOGS / f"{name}.log"
    os.sched_setaffinity(0, {CORE})
    try:
        process = processes.start(
            [sys.executable, "-m", "shared.serve", "--port", str(port)],
            record=directory / cleaning.RECORDS / f"{name}.json",
            log=log,
            port=port,
            environment=environment,
            directory=folder,
            stop_signals=services.DRAIN,
        )
    finally:
        os.sched_setaffinity(0, {OTHER_CORE})
    if not wait_until(lambda: not ports.is_free(port) or not processes.is_running(process), READY_LIMIT_SECONDS):
        raise EmbeddedError(f"{name} does not start: {services.error_in(log)}.")
    if not processes.is_running(process):
        raise EmbeddedError(f"{name} has ended: {services.error_in(log)}.")
    return process


def _requests() -> list[bytes]:
    """People who look at their wallets."""
    made = []
    for _ in range(PEOPLE):
        token = Person().headers["Authorization"]
        made.append(
            f"GET /wallets/{new_id()}/balance HTTP/1.1\r\nHost: load\r\nAuthorization: {token}\r\n\r\n".encode()
        )
    return made


def main() -> int:
    """Measure and print; 0 when there was no error and everything is within its bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn (1)")
    parser.add_argument("--rounds", type=int, default=25, help="turns of each; the middle pair counts (25)")
    parser.add_argument("--connections", type=int, default=64, help="keep-alive connections (64)")
    parser.add_argument(
        "--memory",
        type=int,
        nargs="?",
        const=MILLION,
        default=MILLION // 20,
        metavar="REQUESTS",
        help=f"requests over which the memory is watched ({MILLION:,}; without the option {MILLION // 20:,})",
    )
    parser.add_argument("--profile", action="store_true", help="watch the gateway by py-spy, if installed")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if not hasattr(os, "sched_setaffinity") or not {CORE, OTHER_CORE} <= os.sched_getaffinity(0):
        sys.stderr.write("This needs Linux and two CPUs.\n")
        return 1
    try:
        return 0 if run(options) else 1
    except EmbeddedError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
