"""The checkout's own virtual environment: what the services, the tests and the checks run in."""

import sys
from collections.abc import Callable
from pathlib import Path

from infrastructure.embedded import cleaning, virtualenv
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.services import SERVICES

CONSTRAINTS = "constraints.txt"
PROJECT = "pyproject.toml"


def ensure(root: Path, run: Path, report: Callable[[str], None]) -> Path:
    """The folder of the environment of the checkout `root`, built first when it is missing, stale or broken."""
    folders = [service.folder for service in SERVICES]
    requirements = ["requirements-dev.txt", *(f"{folder}/requirements.txt" for folder in folders)]
    files = [root / name for name in (*requirements, CONSTRAINTS, PROJECT)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise EmbeddedError(f"{missing[0].relative_to(root)} is missing from the checkout.")
    environment = root / ".venv"
    arguments = [part for name in requirements for part in ("-r", name)]
    virtualenv.ensure(
        environment,
        virtualenv.fingerprint(files),
        install=[*arguments, "-c", CONSTRAINTS],
        working_directory=root,
        log=run / cleaning.LOGS / "install.log",
        announce=lambda: report(f"installing into .venv with Python {sys.version.split()[0]}, about a minute"),
        explain=lambda line: f"The dependencies could not be installed: {line}.",
    )
    return environment
