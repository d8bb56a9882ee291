"""A process that takes from one limit as fast as it can, and prints when it was let through and when not.

python hammer.py PORT PREFIX LIMIT WINDOW_SECONDS LOT_SECONDS SECONDS
"""

import asyncio
import json
import sys
import time

from prometheus_client import CollectorRegistry

from api_gateway.limits import Limit, RateLimiter
from shared.redis import connect
from shared.settings import Settings

CALLERS = 4
PATIENCE_MS = 5_000  # on a busy machine the usual 50 ms pass now and then, and each process would go on alone
REFUSED_PAUSE_SECONDS = 0.002

Taken = tuple[float, float, bool]  # the clock before and after, and whether it was let through


async def hammer(limiter: RateLimiter, limit: Limit, seconds: float) -> list[Taken]:
    """What several callers were told until the time was over."""
    taken: list[Taken] = []
    ends_at = time.monotonic() + seconds

    async def call() -> None:
        after = 0.0
        while after < ends_at:
            before = time.monotonic()
            verdict = await limiter.take(limit, "192.0.2.1")
            after = time.monotonic()
            taken.append((before, after, verdict.allowed))
            await asyncio.sleep(0 if verdict.allowed else REFUSED_PAUSE_SECONDS)

    await asyncio.gather(*(call() for _ in range(CALLERS)))
    return taken


async def main() -> None:
    """Hammer, and print what came of it."""
    port, prefix, *numbers = sys.argv[1:]
    per_window, window_seconds, lot_seconds, seconds = map(float, numbers)
    redis = connect(
        Settings(_env_file=None, redis_host="127.0.0.1", redis_port=int(port), redis_timeout_ms=PATIENCE_MS)
    )
    limiter = RateLimiter(redis, prefix, CollectorRegistry(), window_seconds=window_seconds, lot_seconds=lot_seconds)
    taken = await hammer(limiter, Limit("address", int(per_window)), seconds)
    await limiter.close()
    await redis.aclose()
    sys.stdout.write(json.dumps(taken))


if __name__ == "__main__":
    asyncio.run(main())
