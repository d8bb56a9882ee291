"""Calls to a neighbouring service: pooled, authenticated, bounded by what is left of the request's time."""

import json
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import PyreqwestError

from shared.auth import ServiceTokens
from shared.http.context import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    TRACEPARENT_HEADER,
    current_context,
    seconds_left,
)

MAX_CONNECTIONS: Final = 32
CALL_TIMEOUT_SECONDS: Final = 5.0
CONNECT_TIMEOUT: Final = timedelta(seconds=2)
KEEP_ALIVE: Final = timedelta(seconds=30)  # less than the 65 s after which a service closes an idle connection

_BODY_AT_FAULT: Final = frozenset({400, 413, 415, 422})


def plain_client(max_connections: int) -> Client:
    """An HTTP/1.1 client that does what it is told: no redirects, no decompression, no proxies, no cookies."""
    return (
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
        .user_agent("payment-system")
        .build()
    )


class ServiceCallError(Exception):
    """No answer that counts: whether the call had its effect is unknown."""


class ServiceRefusedError(ServiceCallError):
    """The service would not have this body (400, 413, 415, 422); with other items in it, it might."""


class ServiceClient:
    """Posts JSON to one service's `/internal` operations. Open for the length of an `async with`."""

    def __init__(self, service: str, base_url: str, tokens: ServiceTokens) -> None:
        self._service = service
        self._base_url = base_url
        self._tokens = tokens
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        self._client = plain_client(MAX_CONNECTIONS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def post(self, path: str, payload: Any) -> Any:
        """The decoded JSON of a 200 answer; anything else raises ServiceCallError: unknown, never a no.

        Raises ServiceRefusedError where the body is at fault.
        """
        answer = await self.post_bytes(path, json.dumps(payload).encode(), "application/json")
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ServiceCallError(f"{self._service} answered something else than JSON") from error

    async def post_bytes(self, path: str, body: bytes, media_type: str) -> bytes:
        """As `post`, with a body that is encoded already and an answer that is not decoded yet."""
        if self._client is None:
            raise RuntimeError("enter the client first")
        timeout = min(CALL_TIMEOUT_SECONDS, seconds_left())
        if timeout <= 0:
            raise ServiceCallError(f"no time left to call {self._service}")
        context = current_context()
        headers = {
            "Content-Type": media_type,
            "Authorization": f"Bearer {self._tokens.issue(self._service)}",
            REQUEST_ID_HEADER: context.trace.request_id,
            TRACEPARENT_HEADER: context.trace.traceparent,
            DEADLINE_HEADER: str(int(timeout * 1000)),
        }
        request = self._client.post(self._base_url + path).headers(headers).body_bytes(body)
        try:
            response = await request.timeout(timedelta(seconds=timeout)).build().send()
            answer = bytes(await response.bytes())
        except (PyreqwestError, OSError) as error:
            raise ServiceCallError(f"{self._service} did not answer: {type(error).__name__}") from error
        if response.status in _BODY_AT_FAULT:
            raise ServiceRefusedError(f"{self._service} answered {response.status}")
        if response.status != 200:
            raise ServiceCallError(f"{self._service} answered {response.status}")
        return answer
