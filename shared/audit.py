"""The audit in MongoDB: one document for every event, written once however often it is tried, each at its position.

The only file that imports motor, which is past its end of life: replacing it is a change here alone.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import BulkWriteError, OperationFailure, PyMongoError

from shared.chain import CHAIN, ChainBrokenError
from shared.http.wire import utc_text
from shared.settings import DatabaseSettings

TIMEOUT_MS: Final = 3000
WRITE_TIMEOUT_SECONDS: Final = 10.0
READ_TIMEOUT_MS: Final = 60_000
READ_BATCH: Final = 1000
OVERTAKEN_SECONDS: Final = 60  # no transaction takes that long
POSITION: Final = f"{CHAIN}.position"
_DUPLICATE_KEY: Final = 11000
_LOGIN_REFUSED: Final = frozenset({13, 18})  # Unauthorized, AuthenticationFailed
# `id` is what `_id` is; not every server can have `_id` in an index beside others.
_LATEST_FIRST: Final = [("time", DESCENDING), ("id", DESCENDING)]
_INDEXES: Final = (
    # Without those that have no position, which older releases wrote.
    IndexModel([(POSITION, ASCENDING)], name="chain_position", unique=True, sparse=True),
    IndexModel(_LATEST_FIRST, name="by_time"),
    IndexModel([("actor", ASCENDING), *_LATEST_FIRST], name="by_actor"),
    IndexModel([("subject", ASCENDING), *_LATEST_FIRST], name="by_subject"),
)


@dataclass(frozen=True, slots=True)
class AuditFilters:
    """Which events to look for; None is any. `since` is the first instant that counts, `until` the first that is not.

    Instants are RFC 3339 in UTC with microseconds, as events have them.
    """

    actor: str | None = None
    subject: str | None = None
    type: str | None = None
    since: str | None = None
    until: str | None = None

    def query(self) -> dict[str, Any]:
        """The filter for MongoDB."""
        found: dict[str, Any] = {
            name: value for name in ("actor", "subject", "type") if (value := getattr(self, name)) is not None
        }
        bounds = {"$gte": self.since, "$lt": self.until}
        if time := {name: bound for name, bound in bounds.items() if bound is not None}:
            found["time"] = time
        return found


class AuditLog:
    """One service's audit collection; `_id` is the event's id."""

    def __init__(self, settings: DatabaseSettings) -> None:
        self._client = _client(settings, TIMEOUT_MS)
        self._collection = self._client[settings.mongo_db][f"{settings.schema_name}_audit"]
        self._indexed = False

    async def write(self, documents: Sequence[dict[str, Any]]) -> None:
        """Store each document under its `_id`; those already there stay as they are.

        Raises ChainBrokenError where MongoDB has another document in the place of one of them.
        """
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
                await self._index()
                await self._insert(documents)
        except (OperationFailure, KeyError) as error:
            # A server without logins answers a login with a document that pymongo cannot read.
            if isinstance(error, KeyError) or error.code in _LOGIN_REFUSED:
                raise ConnectionError(
                    "MongoDB refuses the login; check MONGO_USER, and leave it empty where there are no logins"
                ) from error
            raise

    async def _index(self) -> None:
        if not self._indexed:
            await self._collection.create_indexes(list(_INDEXES))
            self._indexed = True

    async def _insert(self, documents: Sequence[dict[str, Any]]) -> None:
        try:
            await self._collection.insert_many(documents, ordered=False)
        except BulkWriteError as error:
            failures = (error.details or {}).get("writeErrors", [])
            if not failures or any(failure.get("code") != _DUPLICATE_KEY for failure in failures):
                raise
            await self._compare([documents[failure["index"]] for failure in failures])

    async def _compare(self, documents: Sequence[dict[str, Any]]) -> None:
        """Whether what is there is the same: of a duplicate key only the code can be believed."""
        ids = [document["_id"] for document in documents]
        cursor = self._collection.find({"_id": {"$in": ids}}, {CHAIN: 1})
        stored = {found["_id"]: found.get(CHAIN) for found in await cursor.to_list(len(ids))}
        for document in documents:
            place = stored.get(document["_id"])
            if document["_id"] in stored and place is None:  # of a release that knew no chain
                await self._collection.replace_one({"_id": document["_id"], CHAIN: None}, document)
            elif place != document[CHAIN]:
                position = document[CHAIN]["position"]
                raise ChainBrokenError(
                    f"event {document['_id']} cannot take position {position} of {self._collection.name}: "
                    f"{'another document has it' if place is None else 'its document is elsewhere'}"
                )

    async def page(
        self, filters: AuditFilters, limit: int, after: str | None = None, before: str | None = None
    ) -> tuple[list[dict[str, Any]], bool]:
        """At most `limit` documents, the latest first, and whether there are more in the direction of the page.

        `after` or `before` is the id of the event that the page follows or comes before. Raises LookupError where
        there is no such event, ConnectionError where MongoDB is out.
        """
        with _reading():
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                query, shown = filters.query(), list[str]()
                if cursor := after or before:
                    time, shown = await self._shown(cursor, backwards=after is None)
                    within = query.setdefault("time", {})
                    within |= {"$gte": max(time, within.get("$gte", ""))} if before else {"$lte": time}
                order = _LATEST_FIRST if before is None else [(name, -way) for name, way in _LATEST_FIRST]
                found = self._collection.find(query).sort(order).limit(limit + 1 + len(shown))
                documents = [each async for each in found if each["_id"] not in shown]
        page = documents[:limit]
        return page if before is None else page[::-1], len(documents) > limit

    async def _shown(self, event_id: str, *, backwards: bool) -> tuple[str, list[str]]:
        """When an event was, and those of the same instant that come no later in the order, itself among them."""
        [event] = await self._collection.find({"_id": event_id}, {"time": 1}).to_list(1) or [None]
        if event is None:
            raise LookupError(event_id)
        ids = [each["_id"] async for each in self._collection.find({"time": event["time"]}, {"time": 1})]
        return event["time"], [each for each in ids if (each <= event_id if backwards else each >= event_id)]

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

    def _of(self, schema: str) -> Any:
        return self._database[f"{schema}_audit"]

    async def events(self, schema: str) -> AsyncIterator[list[AuditedEvent]]:
        """The events of the service whose schema this is, batch by batch in no order; raises ConnectionError."""
        with _reading():
            cursor = self._of(schema).find({}, {"subject": 1, "type": 1, "sequence": 1}, batch_size=READ_BATCH)
            while documents := await cursor.to_list(READ_BATCH):
                yield [
                    AuditedEvent(str(each["_id"]), each.get("subject"), each.get("type"), each.get("sequence"))
                    for each in documents
                ]

    async def chained(self, schema: str, after: int) -> list[dict[str, Any]]:
        """The documents at the READ_BATCH positions after `after`, in their order; raises ConnectionError.

        Of a chain with gaps it may be fewer. More than that, it is one too many.
        """
        with _reading():
            window = {POSITION: {"$gt": after, "$lte": after + READ_BATCH}}
            cursor = self._of(schema).find(window).sort(POSITION, ASCENDING).limit(READ_BATCH + 1)
            documents: list[dict[str, Any]] = await cursor.to_list(READ_BATCH + 1)
            return documents

    async def next_chained(self, schema: str, after: int) -> dict[str, Any] | None:
        """The first document at a position beyond `after`, however far; raises ConnectionError."""
        with _reading():
            cursor = self._of(schema).find({POSITION: {"$gt": after}}).sort(POSITION, ASCENDING).limit(1)
            found: list[dict[str, Any]] = await cursor.to_list(1)
            return found[0] if found else None

    async def first_since(self, schema: str, since: str) -> int | None:
        """The lowest position of what happened at `since` or later; None where there is nothing.

        Positions are in the order of commits: within OVERTAKEN_SECONDS an event may have a lower one than an earlier
        event. Raises ConnectionError.
        """
        with _reading():
            cursor = self._of(schema).find({"time": {"$gte": since}}, {"time": 1}).sort("time", ASCENDING).limit(1)
            if not (first := await cursor.to_list(1)):
                return None
            until = utc_text(datetime.fromisoformat(first[0]["time"]) + timedelta(seconds=OVERTAKEN_SECONDS))
            within = {"time": {"$gte": since, "$lt": until}, POSITION: {"$gt": 0}}
            cursor = self._of(schema).find(within, {CHAIN: 1}).sort(POSITION, ASCENDING).limit(1)
            found: list[int] = [each[CHAIN]["position"] for each in await cursor.to_list(1)]
            return found[0] if found else None

    async def end(self, schema: str) -> int:
        """The highest position, 0 for an empty chain; raises ConnectionError."""
        with _reading():
            cursor = self._of(schema).find({POSITION: {"$gt": 0}}, {CHAIN: 1}).sort(POSITION, DESCENDING).limit(1)
            found: list[int] = [each[CHAIN]["position"] for each in await cursor.to_list(1)]
            return found[0] if found else 0

    async def positions(self, schema: str) -> AsyncIterator[list[tuple[str, object]]]:
        """Each document's id and what it says its position is, batch by batch in no order; raises ConnectionError."""
        with _reading():
            cursor = self._of(schema).find({}, {CHAIN: 1}, batch_size=READ_BATCH)
            while documents := await cursor.to_list(READ_BATCH):
                yield [(str(each["_id"]), _position(each)) for each in documents]

    async def check(self) -> None:
        """Raises when MongoDB does not answer within a second."""
        await _ping(self._client)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _position(document: dict[str, Any]) -> object:
    place = document.get(CHAIN)
    return place.get("position") if isinstance(place, dict) else None


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (PyMongoError, KeyError, TimeoutError) as error:  # KeyError: see write()
        raise ConnectionError(f"MongoDB cannot be read ({type(error).__name__})") from error


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
