"""Network lines that break at the worst moment."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

CHUNK_BYTES: Final = 65_536


class CommitLine:
    """A line to PostgreSQL that loses the answer to one COMMIT; `for_good` ends everything with it."""

    def __init__(self, host: str, port: int, statement: bytes, *, for_good: bool) -> None:
        self.cuts = 0
        self.port = 0
        self._far = (host, port)
        self._statement = statement
        self._for_good = for_good
        self._ends: set[asyncio.StreamWriter] = set()
        self._meant: asyncio.StreamWriter | None = None

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either side ends it, or the answer to its COMMIT is lost."""
        if self.cuts and self._for_good:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection(*self._far)
        ends = {writer, far_writer}
        self._ends |= ends
        await asyncio.gather(self._out(reader, far_writer), self._back(far_reader, writer, far_writer))
        self._ends -= ends

    def cut(self) -> None:
        """End every connection."""
        for end in self._ends:
            end.transport.abort()

    async def _out(self, reader: asyncio.StreamReader, far_writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                far_writer.write(data)
                await far_writer.drain()
                if self._statement in data:
                    self._meant = far_writer
        far_writer.close()

    async def _back(
        self, far_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, far_writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await far_reader.read(CHUNK_BYTES):
                if not self.cuts and self._meant is far_writer and b"COMMIT\x00" in data:
                    self.cuts += 1
                    writer.transport.abort()
                    if self._for_good:
                        self.cut()
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def losing_a_commit(host: str, port: int, statement: bytes, *, for_good: bool) -> AsyncIterator[CommitLine]:
    """Cut the connection that has sent `statement`, when the server has committed and is about to say so."""
    line = CommitLine(host, port, statement, for_good=for_good)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        line.cut()
        await server.wait_closed()
