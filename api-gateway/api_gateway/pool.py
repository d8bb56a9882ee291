"""Connections to the services."""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit
from weakref import WeakSet

from api_gateway.connection import Connection, NoConnectionInTimeError, NotSentError, Response

CONNECT_SECONDS: Final = 2.0  # and so long it is waited for one that is free
IDLE_SECONDS: Final = 30.0  # less than the 65 s after which a service closes an idle connection

T = TypeVar("T")

_BODILESS: Final = frozenset({"GET", "DELETE"})


class Pool:
    """At most `max_connections` to each service, so that one that hangs takes none from the others."""

    def __init__(self, urls: Mapping[str, str], max_connections: int) -> None:
        self.services = tuple(urls)
        self._services = {service: _Service(url, max_connections) for service, url in urls.items()}

    def close(self) -> None:
        """Close all connections."""
        for service in self._services.values():
            service.close()

    def send(
        self,
        service: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        seconds: float,
    ) -> Coroutine[Any, Any, Response]:
        """Send a request as it is and return its answer's head, with the body of a short one.

        `target` is path and query, encoded already; `seconds` is the time until the answer has come whole. Raises
        NotSentError, BrokenOffError and TimeoutError. Cancelled, it takes the request's connection with it.
        """
        return self._services[service].send(method, target, headers, body, seconds)


class _Service:
    """One service's connections."""

    def __init__(self, url: str, max_connections: int) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path
        self._host_line = f"Host: {parts.netloc.rpartition('@')[2]}"
        self._slots = asyncio.Semaphore(max_connections)  # for requests under way
        self._idle: deque[Connection] = deque()  # the one that was used last is the last one
        self._looking_up: asyncio.Future[Any] | None = None
        self._open: WeakSet[Connection] = WeakSet()

    def close(self) -> None:
        for connection in list(self._open):
            connection.abort()

    async def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> Response:
        request = self._request(method, target, headers, body)
        clock = asyncio.get_running_loop().time
        ends_at = clock() + seconds
        if self._slots.locked():
            await _in_time(self._slots.acquire(), min(seconds, CONNECT_SECONDS))
        else:
            await self._slots.acquire()
        try:
            if ends_at <= clock():
                raise NoConnectionInTimeError("no time left")
            connection = self._take_idle(clock()) or await self._connect(ends_at - clock())
        except BaseException:
            self._slots.release()
            raise
        response = connection.send(request, ends_at - clock())
        try:
            await response.begun()
        except asyncio.CancelledError:
            response.give_up()
            raise
        return response

    def _request(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        lines = [f"{method} {self._path}{target} HTTP/1.1", self._host_line]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method not in _BODILESS:
            lines.append(f"Content-Length: {len(body)}")
        text = "".join(lines)
        if "\r" in text or "\n" in text or "\0" in text:  # a line would bring another one
            raise ValueError("a control character in the head of a request")
        return "\r\n".join((*lines, "", "")).encode() + body

    def _take_idle(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS and connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self, seconds: float) -> Connection:
        """A new connection, to the first of the service's addresses that takes it."""
        clock = asyncio.get_running_loop().time
        ends_at = clock() + min(seconds, CONNECT_SECONDS)
        addresses = await _in_time(self._look_up(), ends_at - clock())
        failure = NotSentError("no address")
        while addresses:
            address = addresses.pop(0)
            try:
                return await self._connect_to(address, (ends_at - clock()) / (1 + len(addresses)))
            except NotSentError as error:
                failure = error
        raise failure

    async def _connect_to(self, address: tuple[str, int], seconds: float) -> Connection:
        connecting = asyncio.get_running_loop().create_connection(
            lambda: Connection(self._freed, self._lost),
            *address,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        _, connection = await _in_time(connecting, seconds)
        if not (connection.usable and connection.is_quiet()):
            connection.abort()
            raise NotSentError("closed as soon as it was made")
        self._open.add(connection)
        return connection

    async def _look_up(self) -> list[tuple[str, int]]:
        """The service's addresses.

        Whoever wants them meanwhile waits for the same look-up. One that hangs takes one of the few threads for all
        look-ups of the process, and not each of them.
        """
        if self._looking_up is None:
            looking_up = asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._looking_up = asyncio.ensure_future(looking_up)
            self._looking_up.add_done_callback(self._looked_up)
        return [address[:2] for *_, address in await asyncio.shield(self._looking_up)]

    def _looked_up(self, looking_up: "asyncio.Future[Any]") -> None:
        self._looking_up = None
        if not looking_up.cancelled():
            looking_up.exception()  # seen, whether or not somebody still waits

    def _freed(self, connection: Connection) -> None:
        self._slots.release()
        now = asyncio.get_running_loop().time()
        if connection.usable:
            connection.idle_since = now
            self._idle.append(connection)
        while self._idle and now - self._idle[0].idle_since >= IDLE_SECONDS:
            self._idle.popleft().abort()

    def _lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


async def _in_time(coming: Coroutine[Any, Any, T], seconds: float) -> T:
    try:
        async with asyncio.timeout(seconds):
            return await coming
    except TimeoutError:
        raise NoConnectionInTimeError("no connection in time") from None
    except (OSError, UnicodeError) as error:  # the latter of a name that can be no host's
        raise NotSentError(str(error)) from error
