"""A service that costs nothing: answers every request with the same small JSON, and counts those for itself."""

import asyncio
from multiprocessing.connection import Connection as Pipe
from typing import Any, ClassVar, cast

import uvloop

from tests.load.generator import HEAD_END, content_length
from tests.load.own_process import answering

BODY = (
    b'{"currency":"USD","balance":"1000000.00","held":"0.00","available":"1000000.00",'
    b'"wallet_id":"0193f0c0-0000-7000-8000-000000000000"}'
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


PORT, QUESTIONS = "port", "questions"
QUESTION = b" /internal/sessions/"


def serve(pipe: "Pipe[Any, Any]") -> None:
    """Serve in a process of its own, which tells its PORT, and how many QUESTIONS about sessions have come."""
    uvloop.run(_serve(pipe))


async def _serve(pipe: "Pipe[Any, Any]") -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]

    async def tell(asked: str) -> int:
        return {PORT: port, QUESTIONS: _Connection.questions}[asked]

    await answering(pipe, tell)
    server.close()


class _Connection(asyncio.Protocol):
    __slots__ = ("_rest", "_transport")
    questions: ClassVar[int] = 0  # of all connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while (head_end := data.find(HEAD_END)) >= 0:
            size = head_end + len(HEAD_END) + content_length(data, head_end)
            if len(data) < size:
                break
            self._transport.write(ANSWER)
            _Connection.questions += data.startswith(QUESTION, data.index(b" "))
            data = data[size:]
        self._rest = data
