"""How the platform is: every service asked, all at once."""

import asyncio
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from api_gateway.neighbours import ask
from api_gateway.pool import Pool
from api_gateway.remembered import Remembered

TIMEOUT_SECONDS: Final = 2.0
KEPT_SECONDS: Final = 1.0

Status = Literal["ok", "degraded", "down"]


class ServiceHealth(BaseModel):
    """One service, and what it depends on."""

    model_config = ConfigDict(frozen=True)

    status: Status
    dependencies: dict[str, Literal["up", "down"]]


class PlatformHealth(BaseModel):
    """`down` when a service is, `degraded` when one is, `ok` otherwise."""

    model_config = ConfigDict(frozen=True)

    status: Status
    services: dict[str, ServiceHealth]


_SILENT: Final = ServiceHealth(status="down", dependencies={})


class Health:
    """Asks each service's `/health`, at most once a second."""

    def __init__(self, pool: Pool, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._latest = Remembered(self._look, KEPT_SECONDS)

    async def get(self) -> PlatformHealth:
        """The platform as it was within the last second."""
        return await self._latest.get()

    async def _look(self) -> PlatformHealth:
        services = self._pool.services
        answers = await asyncio.gather(
            *(ask(self._pool, service, "/health", self._timeout_seconds) for service in services)
        )
        found = dict(zip(services, map(_service_health, answers), strict=True))
        statuses = {health.status for health in found.values()}
        overall: Status = "down" if "down" in statuses else "degraded" if "degraded" in statuses else "ok"
        return PlatformHealth(status=overall, services=found)


def _service_health(answer: dict[str, Any] | None) -> ServiceHealth:
    try:
        return ServiceHealth.model_validate(answer)
    except ValidationError:
        return _SILENT
