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
    written = environment.read(file)
    found: dict[str, str] = {}
    for engine in READ:
        if environment.is_embedded(engine, environ):
            prefix = environment.PREFIXES[engine]
            found |= {name: value for name, value in written.items() if name.startswith(prefix)}
        else:
            found |= environment.given(engine, environ)
    if environment.HOSTS["postgres"] not in found:
        raise NothingToReconcileError(
            "There is nothing to reconcile: run `make up` first, or name a database by the POSTGRES_* variables."
        )
    return {**environ, **found, "ENV_FILE": ""}
