"""NX-27017, which speaks MongoDB's protocol and keeps documents in SQLite."""

import struct
from collections.abc import Mapping
from pathlib import Path

from infrastructure.embedded.engine import Engine, exchange, setting
from infrastructure.embedded.install import Programs
from infrastructure.embedded.ports import LOOPBACK

OP_MSG = 2013
HEADER_BYTES = 16
SERVER = Path(__file__).with_name("mongo_server.py")  # run with -P: what lies beside it is not for its imports


class Mongo(Engine):
    """A MongoDB-protocol server without logins whose documents survive a restart."""

    name = "mongodb"
    title = "MongoDB-protocol server"
    usual_port = 27017

    def __init__(self, programs: Programs, data: Path, environ: Mapping[str, str]) -> None:
        self._programs = programs
        self._data = data
        self._database = setting(environ, "MONGO_DB", "payment_logs")

    @property
    def _pid_file(self) -> Path:
        return self._data / "server.pid"

    def prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        # Left by a kill -9, it would stop the next start once another process has that pid.
        self._pid_file.unlink(missing_ok=True)

    def command(self, port: int) -> list[str]:
        return [
            *(str(self._programs.python), "-P", str(SERVER), "--host", LOOPBACK, "--port", str(port)),
            *("--data-dir", str(self._data / "databases"), "--pid-file", str(self._pid_file)),
            # It writes each line to its output, which is the log, as well.
            *("--log-file", "/dev/null"),
        ]

    def answers(self, port: int) -> bool:
        document = b"\x10hello\0" + struct.pack("<i", 1) + b"\x02$db\0" + struct.pack("<i", 6) + b"admin\0\0"
        body = struct.pack("<IBi", 0, 0, len(document) + 4) + document
        header = struct.pack("<iiii", HEADER_BYTES + len(body), 1, 0, OP_MSG)
        answer = exchange(port, header + body, HEADER_BYTES)
        return answer[12:HEADER_BYTES] == struct.pack("<i", OP_MSG)

    def variables(self, port: int) -> dict[str, str]:
        return {
            "MONGO_HOST": LOOPBACK,
            "MONGO_PORT": str(port),
            "MONGO_DB": self._database,
            "MONGO_USER": "",
            "MONGO_PASSWORD": "",
        }

    def data_directories(self) -> list[Path]:
        return [self._data]
