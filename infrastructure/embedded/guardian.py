"""Ends a stack and removes its folder when the process that owns the stack ends, in whatever way.

Its standard input is a pipe that only the owner holds open, so that even a kill -9 of the owner is noticed.
"""

import os
import select
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infrastructure.embedded import cleaning, processes

POLL_SECONDS = 1.0


def main(directory: Path, outside: Sequence[Path]) -> None:
    """Wait for the owner's end, then leave nothing of the stack in `directory` behind."""
    owner = os.getppid()
    # A child that the owner forked may hold the pipe open for longer than the owner lives: look at the parent too.
    while os.getppid() == owner and not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        pass
    records = list((directory / cleaning.RECORDS).glob("*.json"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(processes.stop, records))
    cleaning.remove(directory, outside)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
