"""Which limits a request falls under, and whether it passes them all."""

from collections.abc import Awaitable, Sequence
from typing import Final
from uuid import UUID

from api_gateway.addresses import ClientAddresses
from api_gateway.limits import Limit, RateLimitedError, RateLimiter, Verdict
from api_gateway.routes import METHODS
from api_gateway.settings import GatewaySettings

LOGIN: Final = ("POST", b"/users/login")
HEALTH: Final = (b"/health", b"/health/live", b"/health/ready")


class Admission:
    """Counts a request under each limit that applies to it, the most specific one first, until one refuses it.

    What a limit has counted stays counted when the next one refuses. Health is never limited, nor is an address in an
    exempt network, whatever it does.
    """

    def __init__(self, limiter: RateLimiter, addresses: ClientAddresses, settings: GatewaySettings) -> None:
        self._limiter = limiter
        self._addresses = addresses
        everywhere = _limits(("address", settings.rate_limit_per_minute))
        self._everywhere = everywhere
        self._routes = {
            route: (*_limits((route.name, route.per_minute)), *everywhere) for route in settings.rate_limit_routes
        }
        self._below = {
            method: [route for route in self._routes if route.method == method and route.below] for method in METHODS
        }
        self._exact: dict[tuple[str, bytes], tuple[Limit, ...]] = {
            (route.method, route.path): self._routes[route] for route in self._routes if not route.below
        }
        login = _limits(("login", settings.rate_limit_login_per_minute))
        self._exact[LOGIN] = (*login, *self._limits_for(*LOGIN))
        self._exact |= {(method, path): () for method in (*METHODS, "HEAD", "OPTIONS") for path in HEALTH}
        self._user = _limits(("user", settings.rate_limit_user_per_minute))
        self.limits_users = bool(self._user)  # otherwise admit_user has nothing to count

    def admit(self, method: str, raw_path: bytes, address: str) -> Awaitable[Verdict | None]:
        """The strictest verdict on a request from this address, None when nothing is counted.

        Raises RateLimitedError when it is awaited.
        """
        limits = self._limits_for(method, raw_path)
        return self._take(limits, self._addresses.counted_as(address) if limits else None, None)

    def admit_user(self, user_id: UUID, address: str, before: Verdict | None) -> Awaitable[Verdict | None]:
        """The stricter one of the verdict so far and that on this user's requests, wherever they come from.

        Raises RateLimitedError when it is awaited.
        """
        counted = self._addresses.counted_as(address) is not None
        return self._take(self._user, str(user_id) if counted else None, before)

    def _limits_for(self, method: str, raw_path: bytes) -> tuple[Limit, ...]:
        limits = self._exact.get((method, raw_path))
        if limits is not None:
            return limits
        for route in self._below.get(method, ()):
            if route.matches(method, raw_path):
                return self._routes[route]
        return self._everywhere

    async def _take(self, limits: Sequence[Limit], key: str | None, strictest: Verdict | None) -> Verdict | None:
        if key is None:
            return strictest
        for limit in limits:
            verdict = self._limiter.take_now(limit, key) or await self._limiter.take(limit, key)
            if not verdict.allowed:
                raise RateLimitedError(verdict)
            if strictest is None or verdict.remaining < strictest.remaining:
                strictest = verdict
        return strictest


def _limits(*named: tuple[str, int]) -> tuple[Limit, ...]:
    return tuple(Limit(name, per_minute) for name, per_minute in named if per_minute)
