"""Calls to a neighbouring service: pooled, authenticated, bounded by what is left of the request's time."""

import json
from types import TracebackType
from typing import Any, Final, Self

import aiohttp

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

_BODY_AT_FAULT: Final = frozenset({400, 413, 415, 422})
_CONFLICT: Final = 409


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
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def open(self) -> None:
        """Make the pool, in the running loop; connections follow when they are needed."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=30),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )

    async def close(self) -> None:
        """Close every connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str) -> Any:
        """As `post`, for what only looks."""
        return await self._call("GET", path, None)

    async def post(self, path: str, payload: Any) -> Any:
        """The decoded JSON of a 200 answer; anything else raises ServiceCallError: unknown, never a no.

        Raises ServiceRefusedError where the body is at fault, ServiceConflictError for a 409.
        """
        return await self._call("POST", path, json.dumps(payload).encode())

    async def _call(self, method: str, path: str, data: bytes | None) -> Any:
        if self._session is None:
            raise RuntimeError("enter the client first")
        timeout = min(CALL_TIMEOUT_SECONDS, seconds_left())
        if timeout <= 0:
            raise ServiceCallError(f"no time left to call {self._service}")
        context = current_context()
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                data=data,
                headers={
                    "Content-Type": "application/json",
                    "Authorization": f"Bearer {self._tokens.issue(self._service)}",
                    REQUEST_ID_HEADER: context.trace.request_id,
                    TRACEPARENT_HEADER: context.trace.traceparent,
                    DEADLINE_HEADER: str(int(timeout * 1000)),
                },
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,
            ) as response:
                body = await response.read()
                if response.status in _BODY_AT_FAULT:
                    raise ServiceRefusedError(f"{self._service} answered {response.status}")
                if response.status == _CONFLICT:
                    raise ServiceConflictError(_code(body))
                if response.status != 200:
                    raise ServiceCallError(f"{self._service} answered {response.status}")
                return json.loads(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ServiceCallError(f"{self._service} did not answer: {type(error).__name__}") from error


def _code(problem: bytes) -> str:
    """The code of a problem document; empty where there is none."""
    document = json.loads(problem)
    return str(document.get("code", "")) if isinstance(document, dict) else ""
