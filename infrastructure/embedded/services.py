"""The services: where they are, how they are migrated, started and asked whether they are well."""

import hashlib
import http.client
import json
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infrastructure.embedded import processes
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.ports import LOOPBACK
from infrastructure.embedded.processes import StopSignal

READY_PATH = "/health/ready"
PROBE_TIMEOUT_SECONDS = 2.0
MIGRATION_LIMIT_SECONDS = 120.0
DRAIN = (StopSignal(signal.SIGTERM, 30.0),)
SERVERS_LAST_WORDS = "Application startup failed. Exiting."
ERROR_LINE = re.compile(r"^(\w+\.)*\w*(Error|Exception|Failed)\b.*|^FAILED.*", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Service:
    """One service of the platform. A port that is not fixed is another one where a stranger has it.

    Whom nobody waits for is `nice`, as the command of that name: it gets what the others leave of the CPUs.
    """

    name: str
    folder: str
    port: int
    port_is_fixed: bool = True
    nice: int = 0

    def command(self, python: Path, port: int) -> list[str]:
        """What serves it on `port`."""
        first = ["nice", "-n", str(self.nice)] if self.nice else []
        return [*first, str(python), "-m", "shared.serve", "--port", str(port)]

    @property
    def url(self) -> str:
        """Where a person reaches it on its own port."""
        return url(self.port)


def url(port: int) -> str:
    """Where a person reaches what listens on this port."""
    return f"http://localhost:{port}"


GATEWAY = Service("api-gateway", "api-gateway", 8000)
RECONCILER = Service("reconciler", "reconciler", 8006, port_is_fixed=False, nice=10)
USERS = Service("user-service", "services/user-service", 8001)
SERVICES = (
    USERS,
    Service("wallet-service", "services/wallet-service", 8002),
    Service("transaction-service", "services/transaction-service", 8003),
    Service("payment-gateway", "services/payment-gateway", 8004),
    Service("notification-service", "services/notification-service", 8005, nice=10),
    RECONCILER,
    GATEWAY,
)


def is_ready(port: int) -> bool:
    """True when the service on `port` says that it can do its work."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=PROBE_TIMEOUT_SECONDS)
    try:
        connection.request("GET", READY_PATH)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def has_migrations(folder: Path) -> bool:
    """True when the service in `folder` keeps tables."""
    return (folder / "alembic.ini").exists()


def schema_version(folder: Path, environment: Mapping[str, str]) -> str:
    """A name for the tables that the migrations in `folder` make, and for the database they make them in."""
    version = hashlib.sha256(f"{environment.get('POSTGRES_USER')} {environment.get('POSTGRES_DB')}".encode())
    for file in sorted([folder / "alembic.ini", *folder.glob("migrations/**/*.py")]):
        version.update(f"\n{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return version.hexdigest()


def migrate(name: str, folder: Path, python: Path, environment: Mapping[str, str], log: Path) -> None:
    """Bring the tables of the service in `folder` up to its code. Raises EmbeddedError with what went wrong."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        try:
            status = subprocess.run(
                [python, "-m", "alembic", "upgrade", "head"],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=MIGRATION_LIMIT_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            limit = f"{MIGRATION_LIMIT_SECONDS:.0f} s"
            raise EmbeddedError(f"The migration of {name} did not end within {limit}: see {log}.") from None
    if status != 0:
        raise EmbeddedError(f"The migration of {name} failed: {error_in(log)} (all of it in {log}).")


def error_in(log: Path) -> str:
    """The line of `log` that names an error: the last one that looks like it, or else the last one."""
    lines = [_message(line) for line in processes.tail(log).splitlines() if line.strip()]
    said = [line for line in lines if line and line != SERVERS_LAST_WORDS]
    found = [match.group() for line in said if (match := ERROR_LINE.search(line))]
    return (found or said or ["it said nothing"])[-1]


def _message(line: str) -> str:
    """What a line of a service's JSON log says, or the line itself."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, LookupError, TypeError):
        return line.strip()
