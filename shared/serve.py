"""`python -m shared.serve --port 8001`, run in a service's folder: serve its `main:app`.

What uvicorn's command line leaves open is closed here: header size and time, forwarded headers that nobody vouched
for, and a bounded drain on SIGTERM.
"""

import argparse
import asyncio
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from shared.settings import SettingsError

HEAD_TIMEOUT_SECONDS: Final = 10.0
MAX_HEAD_BYTES: Final = 32 * 1024
MAX_BODIES_BYTES: Final = 2 * 1024 * 1024
MAX_UNFINISHED: Final = 0.75  # of these bytes may belong to bodies of which more is to come
BODY_PATIENCE_SECONDS: Final = 0.25  # what a body has in any case, however little room there is
MAX_CONNECTIONS: Final = 4096
DRAIN_SECONDS: Final = 15
# A batch makes thousands of objects that live for milliseconds: looking for cycles among them after each 700 new ones
# costs the ledger a fifth of its time.
GC_THRESHOLD: Final = 10_000

_UNUSUAL: Final = (b"connection", b"transfer-encoding")
_HASH: Final = ord("#")
_CR, _LF = b"\r\n"
_END_OF_HEAD: Final = b"\r\n\r\n"
_LAST_END_OF_HEAD: Final = b"\r\nconnection: close\r\n\r\n"
_REQUEST_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MUCH_AT_ONCE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)
_HEAD_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
)


class JoinedAnswer(RequestResponseCycle):
    """Sends an answer's head together with its body: one packet, one system call, one wake-up for whoever waits.

    That is for a plain answer, whose length is told; the others go uvicorn's way.
    """

    _head = b""  # that waits for its body

    async def send(self, message: Any) -> None:
        """Take the next part of the answer."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()  # whoever does not read is not answered
        if self.disconnected or self.transport.is_closing():
            self.disconnected = True  # of the requests on a connection, only the last one is told
            return
        if message["type"] == "http.response.start" and not self.response_started:
            message["headers"] = headers = list(message.get("headers", ()))
            self._head = self._plain_head(message["status"], headers)
            if self._head:
                return
        elif message["type"] == "http.response.body" and self._head:
            head, self._head = self._head, b""
            body = message.get("body", b"")
            if len(body) == self.expected_content_length and not message.get("more_body"):
                self._end(head + body)
                return
            self.transport.write(head)
        await super().send(message)

    def _plain_head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The head as it is sent, after which the body is due; nothing where that is not so plain."""
        headers = [*self.default_headers, *headers]
        named = dict(headers)
        length = named.get(b"content-length")
        if (
            length is None
            or len(named) < len(headers)
            or not named.keys().isdisjoint(_UNUSUAL)
            or self.scope["method"] == "HEAD"
            or self.access_log
        ):
            return b""
        lines = [*map(b": ".join, headers)]
        text = b"".join(lines)
        if _CR in text or _LF in text or 0 in text:  # a header would bring another one
            return b""
        self.response_started = True
        self.waiting_for_100_continue = False
        self.chunked_encoding = False
        self.expected_content_length = int(length)
        end = _END_OF_HEAD if self.keep_alive else _LAST_END_OF_HEAD
        return b"".join((STATUS_LINE[status], b"\r\n".join(lines), end))

    def _end(self, answer: bytes) -> None:
        self.transport.write(answer)
        self.expected_content_length = 0
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


# What uvicorn's protocol makes for each request.
httptools_impl.RequestResponseCycle = JoinedAnswer  # type: ignore[misc]


class BoundedProtocol(HttpToolsProtocol):
    """HTTP/1.1 whose request line and headers must arrive within 10 s and 32 KB.

    The bodies of all requests in hand may be 2 MB together: what comes on top is refused before it is kept, so that
    no number of callers makes the process grow. Whoever sends a body and does not end it keeps nobody out: bodies
    that are complete have a quarter of the room to themselves, and where there is none left, the one that has been
    incomplete for longest is broken off.
    """

    head_timeout_seconds = HEAD_TIMEOUT_SECONDS
    max_bodies_bytes = MAX_BODIES_BYTES
    body_patience_seconds = BODY_PATIENCE_SECONDS
    bodies_bytes: ClassVar[int] = 0  # of all connections
    unfinished_bytes: ClassVar[int] = 0
    _unfinished: ClassVar[dict["BoundedProtocol", float]] = {}  # and since when, the oldest first
    _body_bytes = 0
    _unfinished_bytes = 0
    _to_come: int | None = None  # of the body that is being read; never 0 where its length was not told
    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _head_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._let_go_of_bodies()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # One read can bring 256 KB: a head is fed to the parser up to its limit only, or it would be over by then.
        while data and not self.transport.is_closing():
            part = data
            if self._in_head:
                part = data[: MAX_HEAD_BYTES - self._head_bytes]
                self._head_bytes += len(part)
            super().data_received(part)
            if self._in_head and (self._head_bytes or self._head_begun):
                self._start_timer()
                if self._head_bytes >= MAX_HEAD_BYTES:
                    self._refuse(_HEAD_TOO_LARGE)
            data = data[len(part) :]

    def on_message_begin(self) -> None:
        self._head_begun = True  # perhaps within the read that ended the request before
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        # A fragment is no part of a request's target (RFC 9112 section 3.2); the parser would pass over it, so that
        # what stands in front reads another path. What is raised here becomes a 400.
        if _HASH in url:
            raise ValueError("a target with a fragment")
        super().on_url(url)

    def on_headers_complete(self) -> None:
        self._in_head = self._head_begun = False
        self._stop_timer()
        self._to_come = None
        super().on_headers_complete()
        self.headers = []  # a trailer after the body is no header of the request (RFC 9110 section 6.5.1)

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle.response_complete:  # the rest of what was answered already, which nobody keeps
            return
        if self._to_come is None:
            # The parser has seen to it that there is one at most, and that it is a number.
            lengths = (int(value) for name, value in self.scope["headers"] if name == b"content-length")
            self._to_come = next(lengths, -1)
        self._to_come -= len(body)
        if not self._has_room(len(body)):
            self._refuse(_TOO_MUCH_AT_ONCE)
            return
        BoundedProtocol.bodies_bytes += len(body)
        self._body_bytes += len(body)
        if self._to_come:
            BoundedProtocol.unfinished_bytes += len(body)
            self._unfinished_bytes += len(body)
            self._unfinished.setdefault(self, self.loop.time())
        else:
            self._finish_body()
        super().on_body(body)

    def on_response_complete(self) -> None:
        self._let_go_of_bodies()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._finish_body()
        super().on_message_complete()

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more of this body can be kept, after breaking off those that have had their time."""
        while not self._fits(size):
            oldest = next(iter(self._unfinished), None)
            if oldest in {None, self} or self.loop.time() - self._unfinished[oldest] < oldest.body_patience_seconds:
                return False
            oldest._break_off()  # noqa: SLF001 - one of us
        return True

    def _fits(self, size: int) -> bool:
        if self.bodies_bytes + size > self.max_bodies_bytes:
            return False
        return not self._to_come or self.unfinished_bytes + size <= self.max_bodies_bytes * MAX_UNFINISHED

    def _break_off(self) -> None:
        """End the connection whose body has been incomplete for longest."""
        self._let_go_of_bodies()
        if self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(_REQUEST_TIMEOUT)

    def _finish_body(self) -> None:
        """More of it is not to come, or not wanted."""
        if not self._unfinished_bytes:
            return
        BoundedProtocol.unfinished_bytes -= self._unfinished_bytes
        self._unfinished_bytes = 0
        self._unfinished.pop(self, None)

    def _let_go_of_bodies(self) -> None:
        if not self._body_bytes:
            return
        self._finish_body()
        BoundedProtocol.bodies_bytes -= self._body_bytes
        self._body_bytes = 0

    def _refuse(self, response: bytes) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.write(response)
            self.transport.close()

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_seconds, self._refuse, _REQUEST_TIMEOUT)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def server_options(host: str, port: int) -> dict[str, Any]:
    """uvicorn's settings for every service."""
    return {
        "host": host,
        "port": port,
        "http": BoundedProtocol,
        "ws": "none",
        "proxy_headers": False,
        "server_header": False,
        "access_log": False,
        "log_config": None,
        "limit_concurrency": MAX_CONNECTIONS,
        "timeout_keep_alive": 65,
        "timeout_graceful_shutdown": DRAIN_SECONDS,
    }


def main() -> int:
    """Serve until SIGTERM; 1 with one sentence when the service cannot start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=os.environ.get("SERVICE_HOST", "127.0.0.1"))
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - where the service's main.py is
    gc.set_threshold(GC_THRESHOLD)
    server = uvicorn.Server(uvicorn.Config("main:app", **server_options(arguments.host, arguments.port)))
    try:
        server.run()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except SystemExit:  # uvicorn's way of saying that it has logged why
        return 0 if server.started else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
