"""Stand-ins for the services, on real sockets, that answer what a test tells them to."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Received:
    """A request as it came over the wire."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the only header of this name."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(values) < 2, values
        return values[0] if values else None


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def http_answer(status: str, body: bytes, *headers: str) -> bytes:
    """An HTTP/1.1 answer with its length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def json_answer(value: Any, status: str = "200 OK") -> Answer:
    """Answer each request with this JSON."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(http_answer(status, json.dumps(value).encode(), "Content-Type: application/json"))

    return answer


@dataclass
class Service:
    """A service as the gateway sees it; `answer` is what a test makes of it."""

    url: str = ""
    answer: Answer = field(default_factory=lambda: json_answer({"ok": True}))
    requests: list[Received] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    connections: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while True:
                received = await _read_request(reader)
                if received.target.startswith("/internal/sessions/"):  # what the gateway asks for itself
                    await json_answer({"ended": False})(received, writer)
                    continue
                self.requests.append(received)
                answering = asyncio.ensure_future(self.answer(received, writer))
                reading = asyncio.ensure_future(reader.read(1)) if "watched" in received.target else None
                if reading is not None and await reading == b"":
                    self.hung_up.set()
                    answering.cancel()
                    return
                await answering
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    @property
    def open_connections(self) -> int:
        """How many there are now."""
        return len(self._open)

    def say(self, data: bytes) -> None:
        """Send this to whoever is connected, unasked."""
        for writer in self._open:
            writer.write(data)

    def drop(self) -> None:
        """End all connections."""
        for writer in list(self._open):
            writer.transport.abort()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    return Received(method, target, headers, await reader.readexactly(length))


@asynccontextmanager
async def standing_in(tls: ssl.SSLContext | None = None) -> AsyncIterator[Service]:
    """A service on a free port for the length of the block."""
    service = Service()
    server = await asyncio.start_server(service.talk, "127.0.0.1", 0, ssl=tls)
    service.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield service
    finally:
        server.close()
        service.drop()
        await server.wait_closed()
