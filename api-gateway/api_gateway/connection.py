"""One HTTP/1.1 connection to a service. What comes back is parsed by llhttp, as what callers send is."""

import asyncio
import select
import socket
from collections.abc import Callable
from typing import Any, Final, Self, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_WHOLE_BYTES: Final = 256 * 1024  # an answer of up to this length is awaited whole
MAX_UNREAD_BYTES: Final = MAX_WHOLE_BYTES  # of a longer one, before the service has to wait
KEEP_ALIVE_SECONDS: Final = 15  # after so much silence a host is asked whether it is still there

_WITHOUT_BODY: Final = frozenset({204, 304})


class NotSentError(Exception):
    """Nothing of the request was sent."""


class NoConnectionInTimeError(NotSentError, TimeoutError):
    """Nothing of the request was sent, as no connection was free or came about in time."""


class BrokenOffError(Exception):
    """The connection ended before the answer, or what came is no answer: what became of the request is unknown."""


class Response:
    """The answer to a request. Whoever leaves its block does not want what has not come by then.

    The names of `headers` are in lower case. A long body, and one whose length is not told, is not yet `complete`.
    """

    __slots__ = (
        "_chunks",
        "_connection",
        "_failure",
        "_head_bytes",
        "_limit",
        "_parser",
        "_waiter",
        "_whole",
        "complete",
        "headers",
        "reusable",
        "status",
        "unread_bytes",
    )

    def __init__(self, connection: "Connection", seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.reusable = False  # the connection is, after this answer
        self.unread_bytes = 0
        self._connection = connection
        self._parser: Any = HttpResponseParser(self)
        self._head_bytes = 0
        self._whole = False
        self._chunks: list[bytes] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] = loop.create_future()
        self._limit = loop.call_later(seconds, self.fail, TimeoutError())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def header(self, name: bytes) -> bytes:
        """The value of a header; empty when there is none."""
        for known, value in self.headers:
            if known == name:
                return value
        return b""

    async def begun(self) -> None:
        """Return when the head has come, and all of a body that is short.

        Raises BrokenOffError, and TimeoutError when the time for the whole answer is over.
        """
        await self._waiter
        if self._failure is not None:
            raise self._failure

    async def read(self) -> bytes:
        """What has come of the body since the last time, at least a byte of it; nothing at its end.

        Raises as `begun`.
        """
        while not self._chunks and not self.complete:
            if self._failure is None:
                self._waiter = asyncio.get_running_loop().create_future()
            await self.begun()
        body = b"".join(self._chunks)  # copies nothing where there is one
        self._chunks.clear()
        self.unread_bytes = 0
        self._connection.go_on(self)
        return body

    async def whole(self, max_bytes: int) -> bytes:
        """The body; raises as `begun`, and BrokenOffError when it is longer than this."""
        chunks, size = [], 0
        while chunk := await self.read():
            chunks.append(chunk)
            size += len(chunk)
            if size > max_bytes:
                raise BrokenOffError("the answer is too long")
        return b"".join(chunks)

    def lift_limit(self) -> None:
        """From now on it may take any time."""
        self._limit.cancel()

    def give_up(self) -> None:
        """What has not come by now is not waited for."""
        self.fail(BrokenOffError("given up"))

    def feed(self, data: bytes) -> None:
        """Take what the connection has received."""
        self._head_bytes += len(data)  # of what is no body, since there was one
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.reusable = False  # where a whole answer was followed by more
            self.fail(BrokenOffError(f"no HTTP: {error.__context__ or error}"))
        else:
            if not self.complete and self._head_bytes > MAX_HEAD_BYTES:
                self.fail(BrokenOffError("a head, or what follows a body, without an end"))

    def fail(self, failure: Exception) -> None:
        """It will not come whole."""
        if not self.complete and self._failure is None:
            self._failure = failure
            self._over()
            self._connection.finish(self)

    def _over(self) -> None:
        self._limit.cancel()
        self._parser = None  # which refers to this
        self._wake()

    def _wake(self) -> None:
        if not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser finds. What is raised here comes out of it as an HttpParserError.

    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # what comes after a body is none
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if not 100 <= status < 600:
            raise ValueError(f"the status {status}")
        if status < 200:  # the answer is still to come
            return
        length = self.header(b"content-length")
        if not (length or status in _WITHOUT_BODY or self.header(b"transfer-encoding").lower() == b"chunked"):
            raise ValueError("an answer that does not tell where it ends")
        self.status = status
        self._whole = status in _WITHOUT_BODY or bool(length and int(length) <= MAX_WHOLE_BYTES)
        if not self._whole:
            self._wake()

    def on_body(self, body: bytes) -> None:
        if not self.status:
            raise ValueError("an informational answer with a body")
        self._head_bytes = 0
        self._chunks.append(body)
        self.unread_bytes += len(body)
        if not self._whole:
            self._wake()

    def on_message_complete(self) -> None:
        if not self.status:
            self.headers.clear()
            return
        self.complete = True
        self.reusable = self._parser.should_keep_alive()
        self._over()


class Connection(asyncio.Protocol):
    """Carries requests, one at a time. `free` is told when that one is over, `lost` when the connection is."""

    def __init__(self, free: "Callable[[Connection], None]", lost: "Callable[[Connection], None]") -> None:
        self.idle_since = 0.0  # by the event loop's clock
        self._free = free
        self._lost = lost
        self._transport = cast("asyncio.Transport", None)  # until it is made
        self._arrivals: Any = None
        self._response: Response | None = None  # that is under way
        self._paused = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent."""
        return self._response is None and not self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Whether nothing has come since it is idle, not even what the event loop has not looked at yet.

        It would be the end of the connection, after which a request is lost, or an answer that nobody asked for.
        """
        return self._arrivals is None or not self._arrivals.poll(0)

    def send(self, request: bytes, seconds: float) -> Response:
        """Send a request, whose answer has to come whole in this time."""
        response = self._response = Response(self, seconds)
        self._transport.write(request)
        return response

    def go_on(self, response: Response) -> None:
        """All of this answer that has come was read."""
        if self._paused and self._response is response:
            self._paused = False
            self._transport.resume_reading()

    def finish(self, response: Response) -> None:
        """This answer is over. What came of it later would be taken for the next one's beginning."""
        if self._response is not response:
            return
        self._response = None
        if not response.reusable or self._paused or self._transport.get_write_buffer_size():
            self._transport.abort()
        self._free(self)

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connected = transport.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # macOS has none
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_SECONDS)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEP_ALIVE_SECONDS)
        if hasattr(select, "poll"):  # Windows has none
            self._arrivals = select.poll()
            self._arrivals.register(connected.fileno(), select.POLLIN)
        if transport.get_extra_info("sslcontext") is not None:
            # uvloop forgets what is not yet decrypted when the service closes: no more of it than can be helped.
            cast("Any", transport).set_read_buffer_limits(1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None:
            self._response.fail(BrokenOffError("the connection has ended"))
        self._lost(self)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody has asked for anything
            self._transport.abort()
            return
        response.feed(data)
        if response.complete:
            self.finish(response)
        elif response.unread_bytes > MAX_UNREAD_BYTES and not self._paused and self._response is response:
            self._paused = True
            self._transport.pause_reading()
