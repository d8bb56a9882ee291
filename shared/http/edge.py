"""The outermost layer of every service: request id, size, encoding and time limits, plain headers."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.auth import ServiceTokens
from shared.errors import AppError
from shared.http.address import INTERNAL_PATH, caller_address
from shared.http.context import (
    DEADLINE_HEADER,
    DEFAULT_DEADLINE_SECONDS,
    REQUEST_ID_HEADER,
    TRACEPARENT_HEADER,
    enter_context,
)
from shared.http.problems import problem_response, unexpected_error
from shared.metrics import HttpMetrics

MAX_BODY_BYTES: Final = 64 * 1024
MAX_INTERNAL_BODY_BYTES: Final = 1024 * 1024  # a batch from a neighbour
BODY_TIMEOUT_SECONDS: Final = 10.0

_REQUEST_ID: Final = REQUEST_ID_HEADER.lower().encode()
_TRACEPARENT: Final = TRACEPARENT_HEADER.encode()
_DEADLINE: Final = DEADLINE_HEADER.lower().encode()
_ENCODING: Final = b"content-encoding"
_LENGTH: Final = b"content-length"
_CHUNKED: Final = b"transfer-encoding"
_OWN_HEADERS: Final = frozenset({_REQUEST_ID, _TRACEPARENT, _DEADLINE, _ENCODING, _LENGTH, _CHUNKED})
_PERCENT: Final = ord("%")  # looked for as a number: looking for a string of bytes costs ten times as much
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})  # whatever has no effect that anybody is told of
_CLOSE: Final = (b"connection", b"close")
# Of every answer that says nothing else.
_HEADERS: Final = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

_log = logging.getLogger(__name__)


class Edge:
    """Pure ASGI middleware (a BaseHTTPMiddleware costs as much as the endpoint behind it).

    `scope["has_body"]` tells the application whether a body comes, before it waits for one. `headers`, their names in
    lower case, are those of every answer that does not have them already. With `tokens`, by which the gateway proves
    itself, the context of what may change something has the caller's address.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: HttpMetrics,
        *,
        trust_deadline: bool,
        body_timeout_seconds: float = BODY_TIMEOUT_SECONDS,
        headers: Mapping[str, str] | None = None,
        tokens: ServiceTokens | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._trust_deadline = trust_deadline
        self._body_timeout_seconds = body_timeout_seconds
        self._tokens = tokens
        self._headers = [*_HEADERS, *((name.encode(), value.encode()) for name, value in (headers or {}).items())]
        self._names = {_REQUEST_ID, *(name for name, _ in self._headers)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _in_one_sentence(send))
            return
        head = _own_headers(scope)
        context = enter_context(
            head[_REQUEST_ID].decode("latin-1") if _REQUEST_ID in head else "",
            head[_TRACEPARENT].decode("latin-1") if _TRACEPARENT in head else "",
            self._deadline_seconds(head[_DEADLINE]) if _DEADLINE in head else DEFAULT_DEADLINE_SECONDS,
            None if self._tokens is None or scope["method"] in _READING else caller_address(scope, self._tokens),
        )
        request_id = (_REQUEST_ID, context.trace.request_id.encode())
        started_at = perf_counter()
        status = 0
        ended = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = self._completed(message.get("headers", ()), request_id, status)
            else:
                ended = not message.get("more_body", False)
            await send(message)

        try:
            _check_target(scope)
            scope["has_body"] = False
            if head:
                max_bytes = MAX_INTERNAL_BODY_BYTES if scope["path"].startswith(INTERNAL_PATH) else MAX_BODY_BYTES
                _check_head(head, max_bytes)
                if _CHUNKED in head or head.get(_LENGTH, b"0") != b"0":
                    scope["has_body"] = True
                    receive = _BoundedBody(receive, self._body_timeout_seconds, max_bytes).receive
            await self._app(scope, receive, send_with_headers)
        except AppError as error:
            if status:
                raise
            await problem_response(error, scope)(scope, receive, send_with_headers)
        except ClientDisconnect:
            return  # nobody is there to be answered
        except Exception:
            _log.exception("unexpected error")
            if status and not ended:
                raise  # what is missing of the answer is seen by the caller: the server ends the connection
            if not status:
                await problem_response(unexpected_error(), scope)(scope, receive, send_with_headers)
        finally:
            self._metrics.observe(scope, status, perf_counter() - started_at)

    def _completed(
        self, headers: Iterable[tuple[bytes, bytes]], request_id: tuple[bytes, bytes], status: int
    ) -> list[tuple[bytes, bytes]]:
        """An answer's headers with those that every answer has."""
        kept = [*headers]
        named = dict(kept)
        if self._names.isdisjoint(named):
            kept += self._headers
        else:
            kept = [header for header in kept if header[0] != _REQUEST_ID]
            kept += [header for header in self._headers if header[0] not in named]
        kept.append(request_id)
        if status in {408, 413}:
            kept.append(_CLOSE)  # what is left of the body is not read
        return kept

    def _deadline_seconds(self, value: bytes) -> float:
        if self._trust_deadline and value.isdigit() and len(value) <= 6:
            return min(int(value) / 1000, DEFAULT_DEADLINE_SECONDS)
        return DEFAULT_DEADLINE_SECONDS


def _in_one_sentence(send: Send) -> Send:
    """A setting that stops the start is told as it was worded, without the way through the code that led there."""

    async def send_sentence(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            last = message.get("message", "").strip().rpartition("\n")[2]
            name, _, sentence = last.partition(": ")
            if name.endswith("SettingsError"):
                message = {**message, "message": sentence}
        await send(message)

    return send_sentence


def _own_headers(scope: Scope) -> dict[bytes, bytes]:
    """Those headers that are read here; of several with one name the first one counts."""
    return {name: value for name, value in reversed(scope["headers"]) if name in _OWN_HEADERS}


def _check_target(scope: Scope) -> None:
    for part in (scope.get("raw_path", b""), scope["query_string"]):
        if 0 in part or (_PERCENT in part and b"%00" in part):
            raise AppError("url_invalid", 400, "The URL contains a NUL character.")


def _check_head(head: Mapping[bytes, bytes], max_bytes: int) -> None:
    if head.get(_ENCODING, b"identity").lower() != b"identity":
        raise AppError("content_encoding_unsupported", 415, "Send the body uncompressed.")
    length = head.get(_LENGTH, b"0")
    if not length.isdigit():
        raise AppError("content_length_invalid", 400, "Content-Length is not a number.")
    if len(length) > 9 or int(length) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> AppError:
    return AppError("body_too_large", 413, f"The body is larger than {max_bytes // 1024} KB.")


class _BoundedBody:
    """A request body that must arrive whole in time and within its size."""

    def __init__(self, receive: Receive, timeout_seconds: float, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._ends_at = asyncio.get_running_loop().time() + timeout_seconds
        self._size = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._ends_at):
                message = await self._receive()
        except TimeoutError:
            raise AppError("body_timeout", 408, "The body did not arrive in time.") from None
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message
