"""Processes that outlive the one that started them, found again by a record that a recycled pid cannot fool."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infrastructure.embedded.accounts import Account
from infrastructure.embedded.waiting import wait_until

LOG_LIMIT_BYTES = 20 * 1024 * 1024
KILL_LIMIT_SECONDS = 10.0
TAIL_BYTES = 16_384

# Children of this process: they must be polled, or a dead one stays in the process table as a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class StopSignal:
    """A signal that asks a process to end, and how long it may take before the next, harsher one."""

    number: int
    limit_seconds: float


TERMINATE = (StopSignal(signal.SIGTERM, 10.0),)


@dataclass(frozen=True, slots=True)
class Process:
    """A running process: its pid, when that pid began (so that a recycled one differs) and its port."""

    pid: int
    began: str
    port: int
    stop_signals: tuple[StopSignal, ...]


def began(pid: int) -> str | None:
    """When process `pid` began, in words that no other process of that pid shares; None if it does not run."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]
        return None
    if sys.platform == "linux":
        return _began_linux(pid)
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    return None if not answer or answer.startswith("Z") else answer.split(None, 1)[1]


def _began_linux(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, threads, ticks = fields[0], int(fields[17]), fields[19]
    # A zombie whose other threads have yet to go still holds its port and its files.
    return None if state in "ZX" and threads <= 1 else f"{boot}/{ticks}"


def start(
    command: Sequence[str],
    *,
    record: Path,
    log: Path,
    port: int,
    environment: Mapping[str, str],
    directory: Path,
    account: Account | None = None,
    stop_signals: tuple[StopSignal, ...] = TERMINATE,
) -> Process:
    """Start `command` in a session of its own, its output appended to `log`, and write its `record`."""
    for file in (record, log):
        file.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_LIMIT_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=dict(environment),
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    process = Process(child.pid, began(child.pid) or "", port, stop_signals)
    _children[child.pid] = child
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({"record": str(record.resolve()), **asdict(process)}))
    partial.replace(record)
    return process


def recorded(record: Path) -> Process | None:
    """The process `record` was written for, whether it still runs or not."""
    try:
        content = json.loads(record.read_text())
        # A copied folder brings records of processes that belong to the original.
        if content["record"] != str(record.resolve()):
            return None
        signals = tuple(StopSignal(**each) for each in content["stop_signals"])
        return Process(content["pid"], content["began"], content["port"], signals)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_running(process: Process) -> bool:
    """True while this very process runs; another one with its pid does not count."""
    return began(process.pid) == process.began != ""


def running(record: Path) -> Process | None:
    """The process `record` was written for if it still runs."""
    process = recorded(record)
    return process if process is not None and is_running(process) else None


def stop(record: Path) -> bool:
    """End the process of `record`, by SIGKILL when it does not listen, and drop the record.

    False when it did not run any more.
    """
    process = running(record)
    if process is not None:
        end(process)
    record.unlink(missing_ok=True)
    return process is not None


def end(process: Process) -> None:
    """End `process`: each of its stop signals in turn, then SIGKILL."""
    for each in (*process.stop_signals, StopSignal(signal.SIGKILL, KILL_LIMIT_SECONDS)):
        if not is_running(process):
            return
        try:
            os.kill(process.pid, each.number)
        except ProcessLookupError:
            return
        if wait_until(lambda: not is_running(process), each.limit_seconds):
            return


def reap() -> None:
    """Take note of the children that have ended, whoever ended them."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


def tail(log: Path) -> str:
    """The end of `log`, or an empty string when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def last_line(log: Path) -> str:
    """The last line of `log` that says something, or an empty string."""
    return next((line.strip() for line in reversed(tail(log).splitlines()) if line.strip()), "")
