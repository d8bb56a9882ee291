"""Questions that the gateway itself has for the services."""

import json
from typing import Any, Final

from pyreqwest.exceptions import PyreqwestError

from api_gateway.pool import Pool

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024


async def ask(pool: Pool, service: str, path: str, timeout_seconds: float) -> dict[str, Any] | None:
    """The JSON object that a service answers with, whatever its status; None when there is none in time."""
    try:
        async with pool.request(service, "GET", path, {}, timeout_ms=int(timeout_seconds * 1000)) as response:
            content = b""
            while chunk := await response.body_reader.read_chunk():
                content += bytes(chunk)
                if len(content) > MAX_ANSWER_BYTES:
                    return None
        answer = json.loads(content)
    except (PyreqwestError, OSError, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
