"""Password hashes: bcrypt over SHA-256, so that all 1,024 characters count, off the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from passlib.hash import bcrypt_sha256
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from shared.errors import FieldInvalidError, UnavailableError

MIN_LENGTH: Final = 8
MAX_LENGTH: Final = 1024
THREADS: Final = 2
MAX_WAITING: Final = 32  # some four seconds of work for the two
_CHEAPEST_ROUNDS: Final = 4

_COMMON: Final = frozenset(word for word in FREQUENCY_LISTS["passwords"] if len(word) >= MIN_LENGTH)

Result = TypeVar("Result")


def refuse_guessable(password: str, email: str, field: str) -> None:
    """Refuse what is guessed first: a common password, or the own address; raises FieldInvalidError for `field`."""
    folded = password.casefold()
    if folded in _COMMON:
        raise FieldInvalidError(field, "password_common", "Is among the most common passwords.")
    if folded in {email.casefold(), email.partition("@")[0].casefold()}:
        raise FieldInvalidError(field, "password_is_email", "Must not be the e-mail address.")


class Passwords:
    """Hashes and verifies in a bounded pool of threads; bcrypt gives up the GIL while it works."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._scheme = bcrypt_sha256.using(rounds=rounds)  # type: ignore[no-untyped-call]
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bcrypt")
        self._waiting = 0
        cheapest = bcrypt_sha256.using(rounds=_CHEAPEST_ROUNDS)  # type: ignore[no-untyped-call]
        self._nobody: str = cheapest.hash("nobody has this password")

    async def hash(self, password: str) -> str:
        """The hash to store."""
        return await self._run(self._scheme.hash, password)

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether the password is right. A no takes as long as the present cost does, whether there is a stored hash,
        and whether it is of that cost or an earlier, lower one."""
        return await self._run(self._verify, password, stored)

    async def renewed(self, password: str, stored: str) -> str | None:
        """A new hash of the right password where the cost has risen since the stored one was made; None if not."""
        if _rounds_of(stored) >= self._rounds:
            return None
        try:
            return await self.hash(password)
        except UnavailableError:
            return None

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _verify(self, password: str, stored: str | None) -> bool:
        if stored is None:
            self._scheme.verify(password, self._nobodys(self._rounds))
            return False
        if self._scheme.verify(password, stored):
            return True
        # Each round doubles the work: r, r, r + 1, … n - 1 is the work of n.
        for rounds in range(_rounds_of(stored), self._rounds):
            self._scheme.verify(password, self._nobodys(rounds))
        return False

    def _nobodys(self, rounds: int) -> str:
        """A hash of this cost that no password has."""
        return self._nobody.replace(f"r={_CHEAPEST_ROUNDS}$", f"r={rounds}$", 1)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """In a thread; a flood is turned away, and what was cancelled while it waited costs no thread."""
        if self._waiting >= MAX_WAITING:
            raise UnavailableError
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        finally:
            self._waiting -= 1


def _rounds_of(stored: str) -> int:
    rounds: int = bcrypt_sha256.from_string(stored).rounds
    return rounds
