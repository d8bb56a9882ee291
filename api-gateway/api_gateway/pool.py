"""Connections to the services."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final

import aiohttp
from yarl import URL

KEEP_ALIVE_SECONDS: Final = 30  # less than the 65 s after which a service closes an idle connection
CONNECT_TIMEOUT_SECONDS: Final = 2.0

_AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Pool:
    """At most `max_connections` to each service, so that one that hangs takes none from the others.

    `open()` and `close()` belong to the lifespan.
    """

    def __init__(self, urls: Mapping[str, str], max_connections: int) -> None:
        self.services = tuple(urls)
        self._urls = dict(urls)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the pool; needs a running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=self._max_connections, keepalive_timeout=KEEP_ALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_AUTOMATIC_HEADERS,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_SECONDS),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def request(
        self, service: str, method: str, target: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request as it is: `target` is path and query, encoded already. Has no time-out beyond connecting."""
        if self._session is None:
            raise RuntimeError("open() comes first")
        url = URL(self._urls[service] + target, encoded=True)
        return self._session.request(method, url, headers=headers, data=body or None, allow_redirects=False)
