"""Waiting for a condition, with a limit: never a fixed sleep."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

INTERVAL_SECONDS: Final = 0.02

Result = TypeVar("Result")


async def eventually(look: Callable[[], Awaitable[Result]], limit_seconds: float = 15.0) -> Result:
    """The first truthy answer of `look`; fails when there is none in time."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + limit_seconds
    while True:
        found = await look()
        if found:
            return found
        if loop.time() >= ends_at:
            raise AssertionError(f"not within {limit_seconds} s; last seen: {found!r}")
        await asyncio.sleep(INTERVAL_SECONDS)
