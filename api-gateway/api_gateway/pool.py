"""Connections to the services."""

import asyncio
import ssl
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
    """One service's connections; of those that are idle, the one that was used last goes first."""

    def __init__(self, url: str, max_connections: int) -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path
        self._host_line = f"Host: {parts.netloc.rpartition('@')[2]}"
        self._slots = asyncio.Semaphore(max_connections)  # for requests under way
        self._idle: list[Connection] = []
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
            await _in_time(self._slots.acquire(), seconds)
        else:
            await self._slots.acquire()
        try:
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
        connecting = asyncio.get_running_loop().create_connection(
            lambda: Connection(self._freed, self._lost), self._host, self._port, ssl=self._tls
        )
        _, connection = await _in_time(connecting, seconds)
        if not connection.usable:
            raise NotSentError("closed as soon as it was made")
        self._open.add(connection)
        return connection

    def _freed(self, connection: Connection) -> None:
        self._slots.release()
        if connection.usable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)


async def _in_time(coming: Coroutine[Any, Any, T], seconds: float) -> T:
    try:
        async with asyncio.timeout(min(seconds, CONNECT_SECONDS)):
            return await coming
    except TimeoutError:
        raise NoConnectionInTimeError("no connection in time") from None
    except OSError as error:
        raise NotSentError(str(error)) from error
