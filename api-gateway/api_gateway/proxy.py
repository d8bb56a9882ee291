"""Forwarding: raw bytes in, raw bytes out, nothing of a body is parsed or changed."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api_gateway.addresses import ClientAddresses
from api_gateway.admission import Admission
from api_gateway.breaker import Breaker
from api_gateway.connection import Response
from api_gateway.creations import Creation, Creations
from api_gateway.failures import FAILURES, problem_of
from api_gateway.headers import request_headers, response_headers
from api_gateway.limits import Verdict, rate_limit_headers
from api_gateway.pool import Pool
from api_gateway.routes import CREATE, METHODS, PUBLIC, STREAM, Route, find_route, is_own
from shared.auth import ServiceTokens
from shared.authentication import Authenticator
from shared.errors import AppError, UnavailableError
from shared.http.address import FORWARDED_FOR_HEADER, GATEWAY_TOKEN_HEADER
from shared.http.bundle import Parcel, Reply
from shared.http.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    TRACEPARENT_HEADER,
    current_context,
)

MAX_CONNECTIONS_PER_SERVICE: Final = 512
SAFE_METHOD: Final = "GET"  # repeated once when the service broke off
FAIR_PART: Final = 0.5  # of the time limit: a service that has less to answer in is not to blame
RETRY_PAUSE_SECONDS: Final = (0.01, 0.05)

_QUERY: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:@/?%\[\]|{}]*")
_FORWARDED_FOR: Final = b"x-forwarded-for"

Extra = list[tuple[bytes, bytes]]

_log = logging.getLogger(__name__)


class Forwarder:
    """Pure ASGI: what belongs to a service goes there, all else to the application behind."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        pool: Pool,
        creations: Creations,
        breakers: Mapping[str, Breaker],
        admission: Admission,
        addresses: ClientAddresses,
        callers: Authenticator,
        service_tokens: ServiceTokens,
        timeout_seconds: float,
    ) -> None:
        self._app = app
        self._pool = pool
        self._creations = creations
        self._breakers = breakers
        self._admission = admission
        self._addresses = addresses
        self._callers = callers
        self._service_tokens = service_tokens
        self._timeout_seconds = timeout_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = request_headers(scope["headers"])
        route = find_route(scope["raw_path"])
        if route is None and not is_own(scope["raw_path"]):
            raise AppError("route_not_found", 404, "Not Found.")
        address = self._address(scope)
        verdict = await self._admission.admit(scope["method"], scope["raw_path"], address)
        try:
            if route is None:
                await self._app(scope, receive, _with(verdict, send))
                return
            scope["route"] = route
            _check_request_line(scope)
            if (scope["method"], scope["raw_path"]) not in PUBLIC:
                authorization = headers.get("Authorization", "")
                caller = self._callers.recognise(authorization) or await self._callers.authenticate(authorization)
                if self._admission.limits_users:
                    verdict = await self._admission.admit_user(caller.user_id, address, verdict)
            body = await _whole_body(receive) if scope["has_body"] else b""
            if body is not None:
                await self._answer(route, scope, headers, body, address, receive, _Answer(send, verdict))
        except AppError as error:
            if verdict is not None:
                error.headers |= {name.decode(): value.decode() for name, value in rate_limit_headers(verdict)}
            raise

    def _address(self, scope: Scope) -> str:
        peer = scope["client"][0] if scope["client"] else ""
        if not self._addresses.trusts_somebody:
            return self._addresses.client_address(peer)
        forwarded_for = [value for name, value in scope["headers"] if name == _FORWARDED_FOR]
        return self._addresses.client_address(peer, forwarded_for)

    async def _answer(
        self,
        route: Route,
        scope: Scope,
        headers: dict[str, str],
        body: bytes,
        address: str,
        receive: Receive,
        answer: "_Answer",
    ) -> None:
        context = current_context()
        headers[REQUEST_ID_HEADER] = context.trace.request_id
        headers[TRACEPARENT_HEADER] = context.trace.traceparent
        headers[FORWARDED_FOR_HEADER] = address
        now = time.monotonic()
        ends_at = min(now + self._timeout_seconds, context.deadline)
        if (scope["method"], scope["raw_path"]) == CREATE and not scope["query_string"]:
            reply = await self._creations.send(_creation(headers, body, ends_at - now))
            if reply is not None:
                await answer.give(reply)
                return
        if scope["method"] != SAFE_METHOD:  # what changes something is on record with the caller's address
            headers[GATEWAY_TOKEN_HEADER] = f"Bearer {self._service_tokens.issue(route.service)}"
        hung_up = False
        try:
            if scope["raw_path"].endswith(STREAM):
                async with asyncio.timeout(None) as limit, _HangUp(receive, limit) as hang_up:
                    try:
                        await self._forward(route, scope, headers, body, answer, ends_at)
                    finally:
                        hung_up = hang_up.happened
            else:
                await self._forward(route, scope, headers, body, answer, ends_at)
        except FAILURES as failure:
            if hung_up:
                return
            _log.warning("%s: %s: %s", route.service, type(failure).__name__, failure)
            if answer.begun:
                return  # what is missing is seen by the caller: the server ends the connection
            raise problem_of(failure) from None
        await answer.finish()

    async def _forward(
        self,
        route: Route,
        scope: Scope,
        headers: dict[str, str],
        body: bytes,
        answer: "_Answer",
        ends_at: float,
        *,
        again: bool = False,
    ) -> None:
        seconds = ends_at - time.monotonic()
        if seconds <= 0:
            raise UnavailableError
        headers[DEADLINE_HEADER] = str(int(seconds * 1000))
        breaker = self._breakers[route.service]
        attempt = breaker.begin()
        method: str = scope["method"]
        try:
            with await self._pool.send(
                route.service, method, _target(scope), headers, body, seconds=seconds
            ) as response:
                breaker.succeeded(attempt)
                if scope["raw_path"].endswith(STREAM) and _is_event_stream(response):
                    response.lift_limit()
                await answer.take(response)
            return
        except FAILURES as failure:
            if isinstance(failure, TimeoutError) and seconds < self._timeout_seconds * FAIR_PART:
                breaker.given_up(attempt)  # its own body has used up the time: that says nothing about the service
            else:
                breaker.failed(attempt)
            if again or method != SAFE_METHOD or answer.begun or isinstance(failure, TimeoutError):
                raise
        except asyncio.CancelledError:
            breaker.given_up(attempt)
            raise
        await asyncio.sleep(random.uniform(*RETRY_PAUSE_SECONDS))  # noqa: S311 - jitter, not a secret
        await self._forward(route, scope, headers, body, answer, ends_at, again=True)


def _check_request_line(scope: Scope) -> None:
    if scope["method"] not in METHODS:
        raise AppError(
            "method_not_allowed", 405, "Method Not Allowed.", headers={"Allow": ", ".join(sorted(METHODS))}
        )
    if scope["query_string"] and not _QUERY.fullmatch(scope["query_string"]):
        raise AppError("url_invalid", 400, "The URL contains characters that must be escaped.")


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


def _creation(headers: Mapping[str, str], body: bytes, timeout_seconds: float) -> Creation:
    parcel = Parcel(
        body,
        headers.get("Content-Type", ""),
        headers.get("Authorization", ""),
        headers.get("Idempotency-Key"),
        headers[REQUEST_ID_HEADER],
        headers[TRACEPARENT_HEADER],
        headers[FORWARDED_FOR_HEADER] or None,
    )
    return Creation(parcel, asyncio.get_running_loop().time() + timeout_seconds)


def _with(verdict: Verdict | None, send: Send) -> Send:
    """`send` for an answer of the gateway's own, which tells what is left to the caller as well."""
    if verdict is None:
        return send

    async def send_with_verdict(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *rate_limit_headers(verdict)]
        await send(message)

    return send_with_verdict


def _is_event_stream(response: Response) -> bool:
    """True for server-sent events, which have no total time limit."""
    return response.header(b"content-type").startswith(b"text/event-stream")


class _Answer:
    """A service's answer on its way to the caller: a small one goes on once it is whole, a large one as it comes."""

    def __init__(self, send: Send, verdict: Verdict | None) -> None:
        self.begun = False
        self._send = send
        self._verdict = verdict
        self._status = 0
        self._headers: Extra = []
        self._rest = b""

    async def give(self, reply: Reply) -> None:
        """Send an answer that came whole."""
        headers = response_headers((name.encode(), value.encode()) for name, value in reply.headers)
        headers.append((b"content-length", b"%d" % len(reply.body)))
        await self._send(self._head(reply.status, headers))
        await self._send({"type": "http.response.body", "body": reply.body})

    async def take(self, response: Response) -> None:
        """Read the answer to its end; may raise whatever breaks, with nothing sent of a small one."""
        self._status, self._headers = response.status, response_headers(response.headers)
        if response.complete:
            self._rest = await response.read()
            return
        await self._send(self._head(self._status, self._headers))
        while chunk := await response.read():
            await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self) -> None:
        """Send what is left."""
        if not self.begun:
            await self._send(self._head(self._status, self._headers))
        await self._send({"type": "http.response.body", "body": self._rest})

    def _head(self, status: int, headers: Extra) -> Message:
        self.begun = True
        if self._verdict is not None:
            headers += rate_limit_headers(self._verdict)
        return {"type": "http.response.start", "status": status, "headers": headers}


class _HangUp:
    """Ends a block, by its time limit, when the caller hangs up."""

    def __init__(self, receive: Receive, limit: asyncio.Timeout) -> None:
        self.happened = False
        self._receive = receive
        self._limit = limit
        self._watching = asyncio.ensure_future(self._watch())

    async def __aenter__(self) -> "_HangUp":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        self._limit.reschedule(asyncio.get_running_loop().time())
