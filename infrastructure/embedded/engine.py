"""What the stack asks of each of its engines."""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from infrastructure.embedded.accounts import Account
from infrastructure.embedded.ports import LOOPBACK
from infrastructure.embedded.processes import TERMINATE, StopSignal

PROBE_TIMEOUT_SECONDS = 2.0
INHERITED = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Engine(ABC):
    """One dependency of the platform: how it is started, asked whether it is ready, and reached."""

    name: str
    """As in the README's docker-compose."""

    title: str
    """For people."""

    usual_port: int
    """The README's."""

    account: Account | None = None
    """Runs under this account instead of the caller's."""

    stop_signals: tuple[StopSignal, ...] = TERMINATE

    def prepare(self) -> None:  # noqa: B027 - most need nothing
        """Make whatever must be there before the first start; cheap when it is."""

    @abstractmethod
    def command(self, port: int) -> list[str]:
        """The command line of a server on `port` of 127.0.0.1 that stays in the foreground."""

    @abstractmethod
    def answers(self, port: int) -> bool:
        """True when the server on `port` answers its own protocol."""

    def finish(self, port: int) -> None:  # noqa: B027 - most need nothing
        """Set up what needs a running server; harmless when it is there."""

    @abstractmethod
    def variables(self, port: int) -> dict[str, str]:
        """The environment variables by which services reach the server on `port`."""

    def data_directories(self) -> list[Path]:
        """The folders that hold what must survive a restart."""
        return []

    def environment(self) -> dict[str, str]:
        """The server's own environment: the caller's might hold variables that mean something to it."""
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        return {**inherited, "LC_ALL": "C"}


def exchange(port: int, request: bytes, expected_bytes: int) -> bytes:
    """What the server on `port` answers to `request`, at least `expected_bytes` of it; empty when it does not."""
    answer = b""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=PROBE_TIMEOUT_SECONDS) as connection:
            connection.sendall(request)
            while len(answer) < expected_bytes:
                received = connection.recv(4096)
                if not received:
                    return b""
                answer += received
    except OSError:
        return b""
    return answer


def setting(environ: Mapping[str, str], name: str, default: str) -> str:
    """The value of variable `name`; an empty one counts as unset."""
    return environ.get(name) or default
