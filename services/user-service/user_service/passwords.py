"""Password hashes: bcrypt over SHA-256, so that all 1,024 characters count, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from passlib.hash import bcrypt_sha256

from shared.errors import UnavailableError

THREADS: Final = 2
MAX_WAITING: Final = 32  # some four seconds of work for the two

Result = TypeVar("Result")


class Passwords:
    """Hashes and verifies in a bounded pool of threads; bcrypt gives up the GIL while it works."""

    def __init__(self, rounds: int) -> None:
        self._scheme = bcrypt_sha256.using(rounds=rounds)  # type: ignore[no-untyped-call]
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bcrypt")
        self._waiting = 0
        self._nobody = self._scheme.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """The hash to store."""
        return await self._run(self._scheme.hash, password)

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether the password is right; without a stored hash it takes the same time and is not."""
        matches: bool = await self._run(self._scheme.verify, password, stored or self._nobody)
        return matches and stored is not None

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """In a thread; a flood is turned away, and what was cancelled while it waited costs no thread."""
        if self._waiting >= MAX_WAITING:
            raise UnavailableError
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1
