"""Calls to a neighbouring service: pooled, authenticated, bounded by what is left of the request's time."""

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from shared.auth import ServiceTokens
from shared.http.address import FORWARDED_FOR_HEADER
from shared.http.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    TRACEPARENT_HEADER,
    current_context,
    seconds_left,
)

MAX_CONNECTIONS: Final = 32
CALL_TIMEOUT_SECONDS: Final = 5.0
USER_AGENT: Final = "payment-system"
CONNECT_TIMEOUT: Final = timedelta(seconds=2)
KEEP_ALIVE: Final = timedelta(seconds=30)  # less than the 65 s after which a service closes an idle connection

_BODY_AT_FAULT: Final = frozenset({400, 413, 415, 422})
_CONFLICT: Final = 409


def plain_client(max_connections: int) -> Client:
    """An HTTP/1.1 client that does what it is told: no redirects, no decompression, no proxies, no cookies."""
    builder = (
        ClientBuilder()
        .max_connections(max_connections)
        .pool_max_idle_per_host(max_connections)
        .pool_idle_timeout(KEEP_ALIVE)
        .pool_timeout(CONNECT_TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .follow_redirects(False)
        .referer(False)
        .gzip(False)
        .brotli(False)
        .zstd(False)
        .deflate(False)
        .no_proxy()
        .user_agent(USER_AGENT)
    )
    with _patient_threads():
        return builder.build()


@contextmanager
def _patient_threads() -> Iterator[None]:
    """Threads that start within the block interrupt nobody when they wake up, where the system has such (Linux).

    The first client of a process starts the thread that does the network's work of all its clients, and each request
    and each answer wakes it. On a core that it shares with Python it would take over every time, only to wait for the
    interpreter soon after. As a batch thread it waits until Python does, and then has many to look after at once.
    """
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class ServiceCallError(Exception):
    """No answer that counts: whether the call had its effect is unknown."""


class ServiceRefusedError(ServiceCallError):
    """The service would not have this body (400, 413, 415, 422); with other items in it, it might."""


class ServiceConflictError(ServiceCallError):
    """The service refuses because of how things are (409); `code` is that of its problem document."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ServiceClient:
    """Calls one service's `/internal` operations in JSON. Open for the length of an `async with`."""

    def __init__(self, service: str, base_url: str, tokens: ServiceTokens) -> None:
        self._service = service
        self._base_url = base_url
        self._tokens = tokens
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open(self) -> None:
        """Make the pool, in the running loop; connections follow when they are needed."""
        if self._client is None:
            self._client = plain_client(MAX_CONNECTIONS)

    async def close(self) -> None:
        """Close every connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def get(self, path: str) -> Any:
        """As `post`, for what only looks."""
        return await self._call("GET", path, None)

    async def post(self, path: str, payload: Any) -> Any:
        """The decoded JSON of a 200 answer; anything else raises ServiceCallError: unknown, never a no.

        Raises ServiceRefusedError where the body is at fault, ServiceConflictError for a 409.
        """
        return await self._call("POST", path, json.dumps(payload).encode())

    async def _call(self, method: str, path: str, body: bytes | None) -> Any:
        if self._client is None:
            raise RuntimeError("enter the client first")
        timeout = min(CALL_TIMEOUT_SECONDS, seconds_left())
        if timeout <= 0:
            raise ServiceCallError(f"no time left to call {self._service}")
        trace = current_context().trace
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self._tokens.issue(self._service)}",
            REQUEST_ID_HEADER: trace.request_id,
            TRACEPARENT_HEADER: trace.traceparent,
            DEADLINE_HEADER: str(int(timeout * 1000)),
        }
        if trace.ip:
            headers[FORWARDED_FOR_HEADER] = trace.ip
        request = self._client.request(method, self._base_url + path).headers(headers)
        if body is not None:
            request = request.body_bytes(body)
        try:
            response = await request.timeout(timedelta(seconds=timeout)).build().send()
            answer = bytes(await response.bytes())
            if response.status in _BODY_AT_FAULT:
                raise ServiceRefusedError(f"{self._service} answered {response.status}")
            if response.status == _CONFLICT:
                raise ServiceConflictError(_code(answer))
            if response.status != 200:
                raise ServiceCallError(f"{self._service} answered {response.status}")
            return json.loads(answer)
        except (PyreqwestError, OSError, ValueError) as error:
            raise ServiceCallError(f"{self._service} did not answer: {type(error).__name__}") from error


def _code(problem: bytes) -> str:
    """The code of a problem document; empty where there is none."""
    document = json.loads(problem)
    return str(document.get("code", "")) if isinstance(document, dict) else ""
