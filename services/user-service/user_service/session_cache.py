"""People's sessions in Redis, each list under the version it was read at, so that an older one is never found."""

import logging
from datetime import timedelta
from typing import Final
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from shared.redis import OUT, connect
from shared.settings import Settings
from user_service.domain import Session

KEPT: Final = timedelta(minutes=30)

_sessions: Final = TypeAdapter(list[Session])
_log = logging.getLogger(__name__)


class SessionCache:
    """Lists of sessions; without Redis there are none, and Postgres is read."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = f"{settings.redis_key_prefix}session-list:"
        self._redis = connect(settings)

    async def get(self, user_id: UUID, version: int) -> list[Session] | None:
        """The sessions as they were at this version, where they are known."""
        try:
            found = await self._redis.get(self._key(user_id, version))
            return _sessions.validate_json(found) if found else None
        except (*OUT, ValidationError) as error:
            _log.debug("sessions are read from Postgres: %s", type(error).__name__)
            return None

    async def put(self, user_id: UUID, version: int, sessions: list[Session]) -> None:
        """Keep them for half an hour."""
        try:
            await self._redis.set(self._key(user_id, version), _sessions.dump_json(sessions), ex=KEPT)
        except OUT as error:
            _log.debug("sessions are not kept: %s", type(error).__name__)

    async def close(self) -> None:
        """Let go of Redis."""
        await self._redis.aclose()

    def _key(self, user_id: UUID, version: int) -> str:
        return f"{self._prefix}{user_id}:{version}"
