"""Where `make reconcile` finds what it looks at."""

from collections.abc import Mapping
from pathlib import Path

from infrastructure.embedded import environment
from infrastructure.embedded.errors import EmbeddedError

READ = ("postgres", "mongodb")


class NothingToReconcileError(EmbeddedError):
    """There is no platform to look at: neither money that adds up nor any that does not."""

    status = 2


def variables(file: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that lead to the databases: those that `environ` names, and what `make up` wrote to `file`.

    Raises NothingToReconcileError when neither knows a PostgreSQL. `.env` does not count, as for `make up`.
    """
    found = environment.leading_to(READ, file, environ)
    if found is None:
        raise NothingToReconcileError(
            "There is nothing to reconcile: run `make up` first, or name a database by the POSTGRES_* variables."
        )
    return found
