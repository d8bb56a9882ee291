"""The audit in MongoDB: one document for every event, written once however often it is tried.

The only file that imports motor, which is past its end of life: replacing it is a change here alone.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import BulkWriteError, OperationFailure

from shared.settings import DatabaseSettings

TIMEOUT_MS: Final = 3000
WRITE_TIMEOUT_SECONDS: Final = 10.0
_DUPLICATE_KEY: Final = 11000
_LOGIN_REFUSED: Final = frozenset({13, 18})  # Unauthorized, AuthenticationFailed


class AuditLog:
    """One service's audit collection; `_id` is the event's id."""

    def __init__(self, settings: DatabaseSettings) -> None:
        password = settings.mongo_password.get_secret_value()
        login: dict[str, Any] = {"username": settings.mongo_user, "password": password} if settings.mongo_user else {}
        self._client: Any = AsyncIOMotorClient(
            settings.mongo_host,
            settings.mongo_port,
            serverSelectionTimeoutMS=TIMEOUT_MS,
            connectTimeoutMS=TIMEOUT_MS,
            socketTimeoutMS=TIMEOUT_MS,
            **login,
        )
        self._collection = self._client[settings.mongo_db][f"{settings.schema_name}_audit"]

    async def write(self, documents: Sequence[dict[str, Any]]) -> None:
        """Store each document under its `id`; those already there stay as they are."""
        stored = [{"_id": document["id"]} | document for document in documents]
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                await self._collection.insert_many(stored, ordered=False)
        except BulkWriteError as error:
            failures = (error.details or {}).get("writeErrors", [])
            if not failures or any(failure.get("code") != _DUPLICATE_KEY for failure in failures):
                raise
        except (OperationFailure, KeyError) as error:
            # A server without logins answers a login with a document that pymongo cannot read.
            if isinstance(error, KeyError) or error.code in _LOGIN_REFUSED:
                raise ConnectionError(
                    "MongoDB refuses the login; check MONGO_USER, and leave it empty where there are no logins"
                ) from error
            raise

    async def check(self) -> None:
        """Raises when MongoDB does not answer within a second."""
        async with asyncio.timeout(1.0):
            await self._client.admin.command("ping")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
