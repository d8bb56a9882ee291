"""What is measured of a round, and how."""

import asyncio
import gc
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT = 3, 4


def percentile(values: Sequence[float], part: float) -> float:
    """What `part` (0 to 1) of the values, which are sorted, did not exceed; none without values."""
    return values[min(int(len(values) * part), len(values) - 1)] if values else math.nan


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender; `latencies_ms` are sorted, CPU is in seconds."""

    transfers: int
    seconds: float
    latencies_ms: Sequence[float]
    python_cpu: float = 0.0
    postgres_cpu: float = 0.0
    peak_rss_bytes: int = 0

    @property
    def rate(self) -> float:
        """Transfers per second."""
        return self.transfers / self.seconds

    def percentile(self, part: float) -> float:
        """The latency in ms that `part` (0 to 1) of the calls did not exceed; none without calls."""
        return percentile(self.latencies_ms, part)


async def drive(work: Callable[[], Awaitable[None]], clients: int, seconds: float, transfers_each: int = 1) -> Round:
    """Have each of `clients` do `work` again and again; whatever was begun is finished and counts."""
    latencies: list[float] = []
    begun = time.perf_counter()
    end = begun + seconds

    async def client() -> None:
        now = time.perf_counter()
        while now < end:
            await work()
            before, now = now, time.perf_counter()
            latencies.append((now - before) * 1000)

    cpu = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return Round(
        transfers=len(latencies) * transfers_each,
        seconds=time.perf_counter() - begun,
        latencies_ms=sorted(latencies),
        python_cpu=time.process_time() - cpu,
        peak_rss_bytes=peak_rss_bytes(),
    )


def machine() -> str:
    """Where this is measured."""
    return f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"


def collect_rarely(threshold: int) -> None:
    """Let Python's collector run only after `threshold` new objects, and forget those of the imports; 0: as ever."""
    if threshold:
        gc.collect()
        gc.freeze()
        gc.set_threshold(threshold)


def peak_rss_bytes() -> int:
    """The most memory that this process ever had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_rss_of(pid: int) -> int:
    """The most memory that process `pid` ever had, in bytes; 0 outside Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process and its children have in memory, in bytes; `pss` counts a shared page by its part."""

    rss: int
    pss: int


def memory_of(pid: int) -> Memory:
    """The memory of process `pid` and its children now; nothing outside Linux."""
    rss = pss = 0
    for each in (pid, *_children(pid)):
        try:
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines[1:])}
        rss += int(sizes["Rss"]) * 1024
        pss += int(sizes["Pss"]) * 1024
    return Memory(rss, pss)


def machine_cpu_seconds() -> float:
    """The CPU that all programs of this machine have used, with what the hypervisor kept; 0.0 outside Linux."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]) / _TICKS_PER_SECOND


def cpu_seconds_of(pid: int) -> float:
    """The CPU that process `pid`, its children and those of them that have ended have used; 0.0 outside Linux."""
    own = _cpu_ticks(pid)
    return (sum(own) + sum(sum(_cpu_ticks(child)[:2]) for child in _children(pid))) / _TICKS_PER_SECOND


def _children(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _cpu_ticks(pid: int) -> list[int]:
    """utime, stime, cutime and cstime, see proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [0, 0, 0, 0]
    return [int(field) for field in fields[11:15]]
