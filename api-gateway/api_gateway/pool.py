"""Connections to the services."""

from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Final

from pyreqwest.client import Client
from pyreqwest.request import StreamRequest

from shared.http.client import plain_client

MAX_WHOLE_BYTES: Final = 256 * 1024


class Pool:
    """At most `max_connections` to each service, so that one that hangs takes none from the others.

    `open()` and `close()` belong to the lifespan.
    """

    def __init__(self, urls: Mapping[str, str], max_connections: int) -> None:
        self.services = tuple(urls)
        self._urls = dict(urls)
        self._max_connections = max_connections
        self._clients: dict[str, Client] = {}

    async def open(self) -> None:
        """Make the clients; they connect when they are used."""
        # A caller who does not say what program it is has none.
        self._clients = {service: plain_client(self._max_connections, user_agent="") for service in self.services}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()

    def request(
        self,
        service: str,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        timeout_ms: int | None = None,
    ) -> StreamRequest:
        """A request as it is: `target` is path and query, encoded already. Enter it to send it and have the answer.

        An answer of up to 256 KB has come whole by then. `timeout_ms` bounds everything up to the answer's end,
        also when nobody waits for it any more. Without it, the answer is an endless one and comes as it is sent.
        """
        request = self._clients[service].request(method, self._urls[service] + target).headers(headers)
        if body:
            request = request.body_bytes(body)
        if timeout_ms is None:
            return request.streamed_read_buffer_limit(0).build_streamed()
        request = request.timeout(_milliseconds(timeout_ms))
        return request.streamed_read_buffer_limit(MAX_WHOLE_BYTES).build_streamed()


@lru_cache(maxsize=128)  # most requests have all their time left
def _milliseconds(number: int) -> timedelta:
    return timedelta(milliseconds=number)
