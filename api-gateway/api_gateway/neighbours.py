"""Questions that the gateway itself has for the services."""

import asyncio
import json
from typing import Any, Final

import aiohttp

from api_gateway.pool import Pool

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024


async def ask(pool: Pool, service: str, path: str, timeout_seconds: float) -> dict[str, Any] | None:
    """The JSON object that a service answers with, whatever its status; None when there is none in time."""
    try:
        async with asyncio.timeout(timeout_seconds), pool.request(service, "GET", path, {}) as response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    return None
        answer = json.loads(content)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
