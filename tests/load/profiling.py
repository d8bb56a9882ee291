"""Where a process spends its time, by py-spy where that is installed."""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAMPLES_PER_SECOND = 200
TOP = 20
STOP_LIMIT_SECONDS = 30.0


@contextmanager
def profiled(name: str, pid: int | None, seconds: float) -> Iterator[None]:
    """Watch process `pid` during the block, and print its dearest functions; without a `name` nobody is watched."""
    program = shutil.which("py-spy")
    if not name:
        yield
        return
    if pid is None or program is None:
        sys.stderr.write(f"{name} is not watched: {'there is no such process' if pid is None else 'no py-spy'}\n")
        yield
        return
    stacks = Path(tempfile.gettempdir()) / f"{name}.stacks"
    stacks.unlink(missing_ok=True)
    options = ["--rate", str(SAMPLES_PER_SECOND), "--gil", "--function", "--format", "raw", "--output", str(stacks)]
    watching = subprocess.Popen(
        [program, "record", "--pid", str(pid), "--duration", str(int(seconds)), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield
        _, said = watching.communicate(timeout=STOP_LIMIT_SECONDS)
    finally:
        watching.kill()
    if not stacks.exists():
        sys.stderr.write(f"py-spy: {said.decode()}\n")
        return
    _print_top(name, stacks.read_text())
    print(f"  ({stacks} is for a flame graph)\n")


def _print_top(name: str, stacks: str) -> None:
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    total = own.total()
    for title, counted in (("in the function itself", own), ("in the function and what it calls", within)):
        print(f"{name}, {total} samples: % of the time {title}")
        for frame, samples in counted.most_common(TOP):
            print(f"  {samples / total * 100:5.1f} {frame}")
