"""Bytes on a socket, as no HTTP client would send them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

LIMIT_SECONDS: Final = 20.0
CHUNK_BYTES: Final = 16 * 1024


async def talk(
    url: str, data: bytes, until: Callable[[asyncio.StreamReader], Awaitable[bytes]] | None = None
) -> bytes:
    """What is answered to `data` until the server ends the connection, or as much as `until` reads.

    The server may answer and leave before all of it was sent.
    """
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), CHUNK_BYTES):
                writer.write(data[start : start + CHUNK_BYTES])
                await writer.drain()

    sending = asyncio.create_task(send())
    answer = b""
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            if until is not None:
                return await until(reader)
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(CHUNK_BYTES):
                    answer += part
            return answer
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        writer.close()


def head(method: str, target: str, *lines: str, host: str = "gateway") -> bytes:
    """A request's head, after which the server ends the connection."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *lines, "", ""]).encode(
        "latin-1"
    )


def status_of(answer: bytes) -> int:
    """The status of the only answer on a connection."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer[:500]
    return int(answer[9:12])
