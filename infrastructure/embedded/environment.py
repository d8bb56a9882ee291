"""Which engines are embedded, and the file that tells a shell where they are."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

# An engine whose variable is set in the process environment is somebody else's, and used as it is.
HOSTS = {
    "postgres": "POSTGRES_HOST",
    "redis": "REDIS_HOST",
    "kafka": "KAFKA_BOOTSTRAP_SERVERS",
    "mongodb": "MONGO_HOST",
}
PREFIXES = {"postgres": "POSTGRES_", "redis": "REDIS_", "kafka": "KAFKA_", "mongodb": "MONGO_"}
# What somebody else's server is taken to have where the environment does not say.
DEFAULTS = {
    "postgres": {
        "POSTGRES_PORT": "5432",
        "POSTGRES_USER": "paymentuser",
        "POSTGRES_PASSWORD": "paymentpass",
        "POSTGRES_DB": "payment_system",
    },
    "redis": {"REDIS_PORT": "6379", "REDIS_DB": "0"},
    "kafka": {"KAFKA_PRODUCER_IDEMPOTENCE": "true"},
    "mongodb": {"MONGO_PORT": "27017", "MONGO_DB": "payment_logs", "MONGO_USER": "", "MONGO_PASSWORD": ""},
}
ENGINES = tuple(HOSTS)


def is_embedded(engine: str, environ: Mapping[str, str]) -> bool:
    """True unless the environment names a server for `engine`; an empty name counts as none."""
    return not environ.get(HOSTS[engine])


def given(engine: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that lead to somebody else's `engine`: the environment's, and the README's for the rest."""
    found = {name: value for name, value in environ.items() if name.startswith(PREFIXES[engine]) and value}
    return DEFAULTS[engine] | found


def read(file: Path) -> dict[str, str]:
    """What `write` has written to `file`, or nothing where it is not there."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)}


def write(file: Path, variables: Mapping[str, str]) -> None:
    """Write `variables` to `file`, readable by its owner only, as lines that a shell can source."""
    partial = file.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.writelines(f"{name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    partial.replace(file)


def leading_to(engines: Sequence[str], file: Path, environ: Mapping[str, str]) -> dict[str, str] | None:
    """The environment for a command on the platform's data: what `environ` names, or else `make up` wrote to `file`.

    None when neither knows the first of the engines. `.env` does not count, as for `make up`.
    """
    written = read(file)
    found: dict[str, str] = {}
    for engine in engines:
        if is_embedded(engine, environ):
            found |= {name: value for name, value in written.items() if name.startswith(PREFIXES[engine])}
        else:
            found |= given(engine, environ)
    if HOSTS[engines[0]] not in found:
        return None
    return {**environ, **found, "ENV_FILE": ""}
