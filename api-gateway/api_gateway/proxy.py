"""Forwarding: raw bytes in, raw bytes out, nothing of a body is parsed or changed."""

import asyncio
import logging
import re
from types import TracebackType
from typing import Final

import aiohttp
from multidict import CIMultiDict
from starlette.types import ASGIApp, Receive, Scope, Send

from api_gateway.headers import request_headers, response_headers
from api_gateway.pool import Pool
from api_gateway.routes import METHODS, PUBLIC, Route, find_route, is_own
from shared.authentication import Authenticator
from shared.errors import AppError
from shared.http.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    TRACEPARENT_HEADER,
    current_context,
    seconds_left,
)

MAX_CONNECTIONS_PER_SERVICE: Final = 512
MAX_WHOLE_BYTES: Final = 256 * 1024
WATCH_AFTER_SECONDS: Final = 0.1

_RETRY: Final = {"Retry-After": "1"}
_QUERY: Final = re.compile(rb"[\x21-\x7e]*")

_log = logging.getLogger(__name__)


class Forwarder:
    """Pure ASGI: what belongs to a service goes there, all else to the application behind."""

    def __init__(self, app: ASGIApp, *, pool: Pool, authenticator: Authenticator, timeout_seconds: float) -> None:
        self._app = app
        self._pool = pool
        self._authenticator = authenticator
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = request_headers(scope["headers"])
        route = find_route(scope["raw_path"])
        if route is None:
            if not is_own(scope["raw_path"]):
                raise AppError("route_not_found", 404, "Not Found.")
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        await self._admit(scope, headers)
        body = await _whole_body(receive)
        if body is not None:
            await self._forward(route, scope, headers, body, receive, send)

    async def _admit(self, scope: Scope, headers: CIMultiDict[str]) -> None:
        """Let a request with a known method and, off the public paths, a valid token pass."""
        if scope["method"] not in METHODS:
            raise AppError(
                "method_not_allowed", 405, "Method Not Allowed.", headers={"Allow": ", ".join(sorted(METHODS))}
            )
        if not _QUERY.fullmatch(scope["query_string"]):
            raise AppError("url_invalid", 400, "The URL contains characters that must be escaped.")
        if (scope["method"], scope["raw_path"]) not in PUBLIC:
            await self._authenticator.authenticate(headers.get("Authorization", ""))

    async def _forward(
        self, route: Route, scope: Scope, headers: CIMultiDict[str], body: bytes, receive: Receive, send: Send
    ) -> None:
        timeout = min(self._timeout_seconds, seconds_left())
        _add_context(headers, scope, timeout)
        answer = _Answer(send)
        try:
            async with (
                asyncio.timeout(timeout) as limit,
                _HangUp(receive, limit) as hang_up,
                self._pool.request(route.service, scope["method"], _target(scope), headers, body) as response,
            ):
                if answer.is_endless(response):
                    limit.reschedule(None)
                    hang_up.watch()
                await answer.take(response)
        except (aiohttp.ClientError, OSError) as error:  # a time-out of asyncio's is an OSError too
            if hang_up.happened:
                return
            _log.warning("%s: %s", route.service, type(error).__name__)
            if answer.begun:
                return  # what is missing is seen by the caller: the server ends the connection
            raise _problem(error) from None
        await answer.finish()


def _problem(error: Exception) -> AppError:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return AppError(
            "service_unavailable", 503, "The service cannot be reached; nothing was done.", headers=_RETRY
        )
    if isinstance(error, TimeoutError):
        return AppError(
            "gateway_timeout", 504, "The service did not answer in time; the outcome is unknown.", headers=_RETRY
        )
    return AppError("bad_gateway", 502, "The service broke off; the outcome is unknown.", headers=_RETRY)


async def _whole_body(receive: Receive) -> bytes | None:
    """The request's body, bounded by the edge; None when the caller has hung up."""
    body: bytes = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return body


def _target(scope: Scope) -> str:
    path: str = scope["raw_path"].decode("ascii")
    query: bytes = scope["query_string"]
    return f"{path}?{query.decode('ascii')}" if query else path


def _add_context(headers: CIMultiDict[str], scope: Scope, timeout_seconds: float) -> None:
    context = current_context()
    headers[REQUEST_ID_HEADER] = context.trace.request_id
    headers[TRACEPARENT_HEADER] = context.trace.traceparent
    headers[DEADLINE_HEADER] = str(max(0, int(timeout_seconds * 1000)))
    if scope["client"]:
        headers["X-Forwarded-For"] = scope["client"][0]


class _Answer:
    """A service's answer on its way to the caller: a small one goes on once it is whole, a large one as it comes."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send
        self._response: aiohttp.ClientResponse | None = None
        self._rest = b""

    @staticmethod
    def is_endless(response: aiohttp.ClientResponse) -> bool:
        """True for server-sent events, which have no total time limit."""
        return response.content_type == "text/event-stream"

    async def take(self, response: aiohttp.ClientResponse) -> None:
        """Read the answer to its end; may raise whatever breaks, with nothing sent of a small one."""
        self._response = response
        length = response.content_length
        if length is not None and length <= MAX_WHOLE_BYTES:
            self._rest = await response.read()
            return
        await self._begin()
        async for chunk in response.content.iter_any():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self) -> None:
        """Send what is left."""
        if not self.begun:
            await self._begin()
        await self._send({"type": "http.response.body", "body": self._rest})

    async def _begin(self) -> None:
        assert self._response is not None  # noqa: S101 - take() comes first
        self.begun = True
        await self._send(
            {
                "type": "http.response.start",
                "status": self._response.status,
                "headers": response_headers(self._response.raw_headers),
            }
        )


class _HangUp:
    """Ends a time limit early when the caller hangs up. Most answers come before watching is worth a task."""

    def __init__(self, receive: Receive, limit: asyncio.Timeout) -> None:
        self.happened = False
        self._receive = receive
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self.watch)

    async def __aenter__(self) -> "_HangUp":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def watch(self) -> None:
        """Begin to watch now."""
        if self._task is None:
            self._task = self._loop.create_task(self._wait())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        if not self._limit.expired():
            self._limit.reschedule(self._loop.time())
