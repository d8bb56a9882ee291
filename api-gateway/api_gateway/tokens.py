"""Access tokens at the edge: verified once, then remembered."""

import time
from typing import Final

from shared.auth import Principal, UserTokens, bearer_token

MAX_REMEMBERED: Final = 16_384


class RememberedTokens:
    """Verifies `Authorization` headers; one that was verified costs no cryptography until its token expires."""

    def __init__(self, tokens: UserTokens, size: int = MAX_REMEMBERED) -> None:
        self._tokens = tokens
        self._size = size
        self._known: dict[str, Principal] = {}

    def verify(self, authorization: str) -> Principal:
        """Who the header speaks for; raises UnauthorizedError."""
        now = time.time()
        known = self._known.get(authorization)
        if known is not None:
            if now < known.expires_at:
                return known
            del self._known[authorization]
        principal = self._tokens.verify(bearer_token(authorization))
        if now < principal.expires_at:  # one that lives on the leeway for clocks is verified each time
            self._remember(authorization, principal)
        return principal

    def _remember(self, authorization: str, principal: Principal) -> None:
        if len(self._known) >= self._size:
            del self._known[next(iter(self._known))]  # all live equally long: the first one in expires first
        self._known[authorization] = principal
