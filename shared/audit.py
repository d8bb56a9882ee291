"""The audit in MongoDB: one document for every event, written once however often it is tried.

The only file that imports motor, which is past its end of life: replacing it is a change here alone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from shared.settings import DatabaseSettings

TIMEOUT_MS: Final = 3000
WRITE_TIMEOUT_SECONDS: Final = 10.0
READ_TIMEOUT_MS: Final = 60_000
READ_BATCH: Final = 1000
_DUPLICATE_KEY: Final = 11000
_LOGIN_REFUSED: Final = frozenset({13, 18})  # Unauthorized, AuthenticationFailed


class AuditLog:
    """One service's audit collection; `_id` is the event's id."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._client = _client(settings, TIMEOUT_MS)
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
        await _ping(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AuditedEvent(NamedTuple):
    """What identifies an event in the audit; None where the document does not say."""

    id: str
    subject: str | None
    type: str | None
    sequence: int | None


class AuditReader:
    """All services' audit collections, for reading."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._client = _client(settings, READ_TIMEOUT_MS)
        self._database = self._client[settings.mongo_db]

    async def events(self, schema: str) -> AsyncIterator[list[AuditedEvent]]:
        """The events of the service whose schema this is, batch by batch in no order; raises ConnectionError."""
        try:
            cursor = self._database[f"{schema}_audit"].find(
                {}, {"subject": 1, "type": 1, "sequence": 1}, batch_size=READ_BATCH
            )
            while documents := await cursor.to_list(READ_BATCH):
                yield [
                    AuditedEvent(str(each["_id"]), each.get("subject"), each.get("type"), each.get("sequence"))
                    for each in documents
                ]
        except (PyMongoError, KeyError) as error:  # KeyError: see write()
            raise ConnectionError(f"MongoDB cannot be read ({type(error).__name__})") from error

    async def check(self) -> None:
        """Raises when MongoDB does not answer within a second."""
        await _ping(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _client(settings: DatabaseSettings, socket_timeout_ms: int) -> Any:
    password = settings.mongo_password.get_secret_value()
    login: dict[str, Any] = {"username": settings.mongo_user, "password": password} if settings.mongo_user else {}
    return AsyncIOMotorClient(
        settings.mongo_host,
        settings.mongo_port,
        serverSelectionTimeoutMS=TIMEOUT_MS,
        connectTimeoutMS=TIMEOUT_MS,
        socketTimeoutMS=socket_timeout_ms,
        **login,
    )


async def _ping(client: Any) -> None:
    async with asyncio.timeout(1.0):
        await client.admin.command("ping")
