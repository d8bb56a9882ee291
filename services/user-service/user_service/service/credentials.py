"""Passwords as use cases ask for them: verified within the limits on guessing."""

from shared.errors import UnavailableError
from user_service.domain import Origin
from user_service.guesses import Guesses
from user_service.passwords import Passwords


class Credentials:
    """Passwords, each wrong one of which is counted."""

    def __init__(self, passwords: Passwords, guesses: Guesses) -> None:
        self._passwords = passwords
        self._guesses = guesses
        self.hash = passwords.hash
        self.renewed = passwords.renewed

    async def are_right(self, email: str, password: str, stored: str | None, origin: Origin, *, known: bool) -> bool:
        """Whether the password is right; never without a stored hash. Raises TooManyAttemptsError.

        `known`: somebody has got into this account from this network before.
        """
        async with self._guesses.turn(origin.network):
            guess = await self._guesses.reserve(email, origin.network, known=known)
            try:
                right = await self._passwords.verify(password, stored)
            except UnavailableError:
                await self._guesses.give_back(guess)
                raise
            if right:
                await self._guesses.give_back(guess)
            return right
