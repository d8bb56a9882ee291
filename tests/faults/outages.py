"""What can be taken from a platform that runs: its broker, its MongoDB and its mail server."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from infrastructure.embedded import ports, processes
from infrastructure.embedded.install import CHECKOUT
from infrastructure.embedded.lifecycle import REPLAY
from shared.testing.waiting import eventually
from tests.faults.mail_server import HOST
from tests.load.premises import Premises

LIMIT_SECONDS: Final = 60.0


class Engine:
    """One of the engines of `make up`."""

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

    def freeze(self) -> None:
        """Have it take connections and answer nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it answer again, also what was asked meanwhile."""
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
