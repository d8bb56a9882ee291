"""Questions that the gateway itself has for the services."""

import json
from typing import Any, Final

from api_gateway.failures import FAILURES
from api_gateway.pool import Pool

MAX_ANSWER_BYTES: Final = 2 * 1024 * 1024


async def ask(pool: Pool, service: str, path: str, timeout_seconds: float) -> dict[str, Any] | None:
    """The JSON object that a service answers with, whatever its status; None when there is none in time."""
    try:
        with await pool.send(service, "GET", path, {}, seconds=timeout_seconds) as response:
            answer = json.loads(await response.whole(MAX_ANSWER_BYTES))
    except (*FAILURES, ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None
