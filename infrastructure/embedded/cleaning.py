"""What a stack keeps in its folder, and its removal."""

import shutil
from collections.abc import Iterable
from pathlib import Path

RECORDS = "processes"
LOGS = "logs"
DATA = "data"
ENVIRONMENT = "env"
POSTGRES_POINTER = "postgres-folder"


def remove(directory: Path, outside: Iterable[Path]) -> None:
    """Remove a stack from `directory`, its data included, and whatever it keeps `outside`; nothing else."""
    for folder in (directory / RECORDS, directory / LOGS, directory / DATA, *outside):
        shutil.rmtree(folder, ignore_errors=True)
    for file in (directory / ENVIRONMENT, directory / POSTGRES_POINTER):
        file.unlink(missing_ok=True)
    try:
        directory.rmdir()
    except OSError:  # somebody else's files are in it, or it is gone
        return
