"""What can be taken from a platform that runs: its broker, its MongoDB and its mail server."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

from infrastructure.embedded import ports, processes
from infrastructure.embedded.install import CHECKOUT
from infrastructure.embedded.lifecycle import REPLAY
from shared.testing.waiting import eventually
from tests.faults.mail_server import HOST
from tests.load.premises import Premises

LIMIT_SECONDS: Final = 60.0
SCRIPT_LIMIT_SECONDS: Final = 120.0


class Engine:
    """One of the engines of `make up`."""

    keeps: ClassVar = False
    """Whether a broker that ends has what it had when it starts again."""

    def __init__(self, premises: Premises, name: str) -> None:
        self._premises = premises
        self._name = name

    async def stop(self) -> None:
        """End it in good order."""
        await asyncio.to_thread(self._premises.stack.halt, [self._name])

    async def kill(self) -> None:
        """End it without a farewell."""
        self._signal(signal.SIGKILL)

        async def gone() -> bool:
            return self._premises.stack.process(self._name) is None

        await eventually(gone, LIMIT_SECONDS)

    @asynccontextmanager
    async def out(self) -> AsyncIterator[None]:
        """For the length of the block it takes connections and answers nothing; then it has what it had."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    async def start(self) -> None:
        """Start it again as anybody would, by `make up`, and wait until a replay that belongs to it has ended."""
        await asyncio.to_thread(self._premises.platform.up)

        async def replayed() -> bool:
            return processes.running(self._premises.stack.record(REPLAY)) is None

        await eventually(replayed, LIMIT_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        process = self._premises.stack.process(self._name)
        assert process is not None, f"{self._name} does not run"
        os.kill(process.pid, number)


class KafkaByScript:
    """An Apache Kafka, by a script that knows `up`, which returns when it answers, `down`, `kill` and `purge`."""

    keeps: ClassVar = True

    def __init__(self, script: Path, data: Path) -> None:
        self._script = script
        self._port = ports.choose([])
        self._told = {
            "KAFKA_PORT": str(self._port),
            "KAFKA_CONTROLLER_PORT": str(ports.choose([])),
            "KAFKA_DATA": str(data),
        }

    @property
    def variables(self) -> dict[str, str]:
        """Those that lead to it."""
        return {"KAFKA_BOOTSTRAP_SERVERS": f"{HOST}:{self._port}", "KAFKA_PRODUCER_IDEMPOTENCE": "true"}

    async def start(self) -> None:
        """Start it, with what it has on disk."""
        await self._run("up")

    async def stop(self) -> None:
        """End it in good order."""
        await self._run("down")

    async def kill(self) -> None:
        """End it without a farewell."""
        await self._run("kill")

    async def purge(self) -> None:
        """End it and remove what it has on disk."""
        await self._run("purge")

    @asynccontextmanager
    async def out(self) -> AsyncIterator[None]:
        """It is dead for the length of the block; then it has what it had."""
        await self.kill()
        try:
            yield
        finally:
            await self.start()

    async def _run(self, verb: str) -> None:
        process = await asyncio.create_subprocess_exec(self._script, verb, env=os.environ | self._told)
        async with asyncio.timeout(SCRIPT_LIMIT_SECONDS):
            assert await process.wait() == 0, f"{self._script} {verb} has failed"


class Taken(NamedTuple):
    """A mail that the server has taken; `answered` unless it was killed before it could say so."""

    message_id: str
    recipient: str
    digest: str
    answered: bool


@dataclass
class MailServer:
    """A mail server on a port that stays the same, and what it has taken in all its lives."""

    journal: Path
    port: int
    _process: Process | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "MailServer":
        """One that has not been started yet."""
        return cls(folder / "mails", ports.choose([]))

    async def start(self) -> None:
        """Take mails."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults.mail_server", str(self.port), str(self.journal)), cwd=CHECKOUT
        )

        async def greets() -> bool:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, self.port)
                greeting = await reader.readline()
                writer.close()
                return greeting.startswith(b"220")
            return False

        await eventually(greets, LIMIT_SECONDS)

    async def stop(self) -> None:
        """End it when what it has taken is answered."""
        await self._end(signal.SIGTERM)

    async def kill_within_a_mail(self) -> None:
        """End it when it has taken the next mail and not said so; that mail is there before this returns."""
        await self._end(signal.SIGUSR1)

    def taken(self) -> list[Taken]:
        """Every mail that it has taken, in the order of their coming."""
        if not self.journal.exists():
            return []
        return [Taken(**json.loads(line)) for line in self.journal.read_text().splitlines()]

    def unanswered(self) -> list[Taken]:
        """Those that it has taken and never said so."""
        return [mail for mail in self.taken() if not mail.answered]

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            async with asyncio.timeout(LIMIT_SECONDS):
                await process.wait()
