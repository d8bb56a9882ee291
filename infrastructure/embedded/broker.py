"""Tansu, a broker that speaks Kafka's protocol and keeps everything in memory."""

import struct

from infrastructure.embedded.engine import Engine, exchange
from infrastructure.embedded.install import Programs
from infrastructure.embedded.ports import LOOPBACK

API_VERSIONS = 18
CORRELATION = 27_017


class Broker(Engine):
    """A broker whose topics are gone when it stops: nothing that matters may live only there."""

    name = "kafka"
    title = "Kafka-protocol broker"
    usual_port = 9092

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def prepare(self) -> None:
        self._programs.broker.chmod(0o755)

    def command(self, port: int) -> list[str]:
        url = f"tcp://{LOOPBACK}:{port}"
        return [
            *(str(self._programs.broker), "broker", "--storage-engine", "memory://tansu/"),
            *("--listener-url", url, "--advertised-listener-url", url),
        ]

    def answers(self, port: int) -> bool:
        body = struct.pack(">hhih", API_VERSIONS, 0, CORRELATION, -1)
        answer = exchange(port, struct.pack(">i", len(body)) + body, 10)
        return answer[4:10] == struct.pack(">ih", CORRELATION, 0)

    def variables(self, port: int) -> dict[str, str]:
        # It refuses idempotent producers.
        return {"KAFKA_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{port}", "KAFKA_PRODUCER_IDEMPOTENCE": "false"}
