"""Virtual environments that are either complete or built anew."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from infrastructure.embedded import locks
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.processes import last_line

STAMP = "complete"


def fingerprint(files: Iterable[Path]) -> str:
    """A name for the content of `files` under this Python on this machine."""
    content = hashlib.sha256(f"{sys.version_info[:2]} {sys.platform} {os.uname().machine}".encode())
    for file in files:
        content.update(f"\n{file.name}\n".encode() + file.read_bytes())
    return content.hexdigest()[:16]


def is_complete(directory: Path, content: str) -> bool:
    """True when `directory` was built to the end for `content`, at this place, and its Python still runs."""
    try:
        stamp = (directory / STAMP).read_text()
    except OSError:
        return False
    if stamp != _stamp(directory, content):
        return False
    python = directory / "bin" / "python"
    # The interpreter is a link to the one it was made from, which may be gone.
    return python.exists() and os.access(python, os.X_OK)


def ensure(
    directory: Path,
    content: str,
    *,
    install: Sequence[str],
    working_directory: Path,
    log: Path,
    announce: Callable[[], None],
    explain: Callable[[str], str],
) -> None:
    """Make `directory` an environment in which `pip install *install` was done to the end.

    Does nothing when it is one already. Safe against a second caller and against an interruption. Raises
    EmbeddedError with the sentence `explain` makes of pip's last line.
    """
    if is_complete(directory, content):
        return
    with locks.exclusive(log.with_suffix(".lock")):
        if is_complete(directory, content):
            return
        announce()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        if directory.exists():
            shutil.rmtree(directory)
        python = str(directory / "bin" / "python")
        # The running interpreter may be the one of the environment that was just removed.
        base = getattr(sys, "_base_executable", sys.executable)
        _run([base, "-m", "venv", str(directory)], working_directory, log, explain)
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        _run([python, "-m", "pip", "install", *options, *install], working_directory, log, explain)
        partial = directory / f"{STAMP}.partial"
        partial.write_text(_stamp(directory, content))
        partial.replace(directory / STAMP)


def _stamp(directory: Path, content: str) -> str:
    # With its place: the scripts of an environment that was moved or copied point to the old one.
    return f"{content} {directory.resolve()}\n"


def _run(command: Sequence[str], directory: Path, log: Path, explain: Callable[[str], str]) -> None:
    with log.open("ab") as output:
        done = subprocess.run(command, cwd=directory, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise EmbeddedError(f"{explain(last_line(log))} The whole output is in {log}.")
