"""A service that costs nothing: answers every request with the same small JSON."""

import asyncio
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import uvloop

from tests.load.generator import HEAD_END, content_length
from tests.load.own_process import answering

BODY = (
    b'{"currency":"USD","balance":"1000000.00","held":"0.00","available":"1000000.00",'
    b'"wallet_id":"0193f0c0-0000-7000-8000-000000000000"}'
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


def serve(pipe: "Pipe[Any, Any]") -> None:
    """Serve in a process of its own; its port is the answer to the first question."""
    uvloop.run(_serve(pipe))


async def _serve(pipe: "Pipe[Any, Any]") -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def which(_: object) -> int:
        return int(port)

    await answering(pipe, which)
    server.close()


class _Connection(asyncio.Protocol):
    __slots__ = ("_rest", "_transport")

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
            data = data[size:]
        self._rest = data
