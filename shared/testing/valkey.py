"""A Valkey of a test's own, to be killed, frozen and brought back."""

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from infrastructure.embedded import install
from infrastructure.embedded.ports import LOOPBACK, choose
from infrastructure.embedded.valkey import Valkey
from shared.testing.waiting import eventually


class OwnValkey:
    """Keeps its port over a restart and its keys nowhere."""

    def __init__(self, engine: Valkey, port: int) -> None:
        self.port = port
        self._engine = engine
        self._process: asyncio.subprocess.Process | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to it."""
        return {"REDIS_HOST": LOOPBACK, "REDIS_PORT": str(self.port)}

    async def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        self._engine.prepare()
        self._process = await asyncio.create_subprocess_exec(
            *self._engine.command(self.port), stdout=asyncio.subprocess.DEVNULL
        )

        async def answers() -> bool:
            return await asyncio.to_thread(self._engine.answers, self.port)

        await eventually(answers)

    async def kill(self) -> None:
        """End it without a farewell."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Have it take connections and answer nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it answer again, also what was asked meanwhile."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@asynccontextmanager
async def own_valkey() -> AsyncIterator[OwnValkey]:
    """A running Valkey for the length of the block."""
    programs = await asyncio.to_thread(install.ensure)
    with tempfile.TemporaryDirectory(prefix="payment-system-valkey-") as folder:
        valkey = OwnValkey(Valkey(programs, Path(folder), {}, durable=False), choose([]))
        await valkey.start()
        try:
            yield valkey
        finally:
            await valkey.kill()
