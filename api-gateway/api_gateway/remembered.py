"""Values that many callers want and that are made once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """What `make` answers, kept for some seconds; callers at the same time share one making."""

    def __init__(self, make: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._making: asyncio.Task[T] | None = None
        self._stale_at = 0.0

    async def get(self) -> T:
        """The value; a caller that is cancelled does not disturb the others."""
        now = asyncio.get_running_loop().time()
        if self._making is None or (self._making.done() and now >= self._stale_at):
            self._making = asyncio.create_task(self._run())
        return await asyncio.shield(self._making)

    async def _run(self) -> T:
        value = await self._make()
        self._stale_at = asyncio.get_running_loop().time() + self._seconds
        return value
