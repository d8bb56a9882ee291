"""Valkey, which speaks Redis' protocol."""

from collections.abc import Mapping
from pathlib import Path

from infrastructure.embedded.engine import Engine, exchange, setting
from infrastructure.embedded.install import Programs
from infrastructure.embedded.ports import LOOPBACK

PONG = b"+PONG\r\n"


class Valkey(Engine):
    """A Valkey whose keys survive a restart (all but the last second's after a crash)."""

    name = "redis"
    title = "Valkey"
    usual_port = 6379

    def __init__(self, programs: Programs, data: Path, environ: Mapping[str, str], *, durable: bool) -> None:
        self._programs = programs
        self._data = data
        self._database = setting(environ, "REDIS_DB", "0")
        self._durable = durable

    def prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        self._programs.valkey.chmod(0o755)

    def command(self, port: int) -> list[str]:
        return [
            *(str(self._programs.valkey), "--bind", LOOPBACK, "--port", str(port)),
            *("--dir", str(self._data), "--save", "", "--daemonize", "no"),
            *("--appendonly", "yes" if self._durable else "no", "--appendfsync", "everysec"),
        ]

    def answers(self, port: int) -> bool:
        return exchange(port, b"PING\r\n", len(PONG)) == PONG  # while it loads its data it says -LOADING

    def variables(self, port: int) -> dict[str, str]:
        return {"REDIS_HOST": LOOPBACK, "REDIS_PORT": str(port), "REDIS_DB": self._database}

    def data_directories(self) -> list[Path]:
        return [self._data]
