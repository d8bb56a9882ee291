"""People as they are shown: from Redis when they are warm there, else from the database."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import msgspec

from shared.cache import Cache, Versioned
from shared.database import Database
from shared.metrics import CacheMetrics
from shared.redis import connect
from shared.settings import Settings
from user_service import queries
from user_service.domain import User
from user_service.models import UserRow

TTL_SECONDS: Final = 1800.0


class _Kept(msgspec.Struct, frozen=True, array_like=True, gc=False):
    version: int
    user: User


class Profiles:
    """The cache of profiles, for showing them; nothing is decided by what it says.

    A profile's version is its row's `event_sequence`, as every change of a profile is told. Of an account that was
    closed nothing is kept but the version.
    """

    def __init__(self, database: Database, settings: Settings, metrics: CacheMetrics) -> None:
        self._database = database
        self._redis = connect(settings)
        name = f"{settings.redis_key_prefix}profiles:profile"
        self._cache = Cache(self._redis, metrics, name, TTL_SECONDS, _Kept, self._load)

    async def get(self, user_id: UUID, at_least: int = 0) -> User | None:
        """The person as of version `at_least` or a later one; None where there is none, or the account was closed."""
        key = str(user_id)
        kept = await self._cache.get(key)
        if kept is not None and kept.version < at_least:
            self._cache.drop({key: at_least})
            kept = await self._cache.get(key)
        return None if kept is None else kept.user

    def put(self, row: UserRow) -> None:
        """Say how a transaction left a person, after its commit. It never waits, and never fails."""
        self._cache.put({str(row.id): _versioned(user_of_row(row), row.event_sequence)})

    async def settle(self) -> None:
        """Return when everybody can read what was put, or cannot for another reason than that it is on its way."""
        await self._cache.settle()

    async def close(self) -> None:
        """Write what is left, and let go of Redis."""
        await self._cache.close()
        await self._redis.aclose()

    async def _load(self, keys: Sequence[str]) -> Mapping[str, Versioned[_Kept]]:
        async with self._database.batch() as connection:
            found = await queries.profiles(connection, [UUID(key) for key in keys])
        return {str(user.id): _versioned(user, version) for user, version in found}


def user_of_row(row: UserRow) -> User:
    """The person in a row."""
    return User(row.id, row.email, row.first_name, row.last_name, row.phone, row.role, row.status, row.created_at)


def _versioned(user: User, version: int) -> Versioned[_Kept]:
    return Versioned(version, None if user.status == "closed" else _Kept(version, user))
