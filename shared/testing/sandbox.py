"""A corner of the engines that belongs to one test module or session, and is gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection
from pymongo import MongoClient

from shared.redis import connect
from shared.settings import Settings

SettingsT = TypeVar("SettingsT", bound=Settings)

DROP_ATTEMPTS: Final = 50
DROP_PAUSE_SECONDS: Final = 0.2


def settings_of(kind: type[SettingsT], variables: Mapping[str, str], **values: Any) -> SettingsT:
    """Settings of this kind as `variables` have them; `values` come on top. No `.env` is read."""
    given = {name.lower(): value for name, value in variables.items()} | values
    return kind(_env_file=None, **{name: value for name, value in given.items() if name in kind.model_fields})


class Sandbox:
    """Own database, Mongo database, topics and Redis keys, by a random suffix."""

    def __init__(self, engines: Mapping[str, str]) -> None:
        self._suffix = secrets.token_hex(4)
        self.environment = dict(engines) | {
            "POSTGRES_DB": f"test_{self._suffix}",
            "MONGO_DB": f"test_{self._suffix}",
            "KAFKA_TOPIC_PREFIX": f"test-{self._suffix}-",
            "REDIS_TIMEOUT_MS": "2000",  # a busy machine is no broken Redis; who breaks it has a shorter one
            "REDIS_KEY_PREFIX": f"test-{self._suffix}:",
            "USER_SERVICE_URL": "http://127.0.0.1:1",  # nobody's, unless a test has one of its own
            "MAIL_FOLDER": str(Path(tempfile.gettempdir()) / f"test_{self._suffix}_mail"),
        }
        self._maintenance_db = engines["POSTGRES_DB"]

    def settings(self, kind: type[SettingsT], **values: Any) -> SettingsT:
        """Settings of this kind for the sandbox; `values` come on top. No `.env` is read."""
        return settings_of(kind, self.environment, **values)

    async def connect(self, database: str | None = None) -> asyncpg.Connection[asyncpg.Record]:
        """A connection as the login user, who owns everything."""
        return await asyncpg.connect(
            host=self.environment["POSTGRES_HOST"],
            port=int(self.environment["POSTGRES_PORT"]),
            user=self.environment["POSTGRES_USER"],
            password=self.environment["POSTGRES_PASSWORD"],
            database=database or self.environment["POSTGRES_DB"],
        )

    async def create(self) -> None:
        """Make the database; the rest is made by whoever uses it first."""
        await self._maintain(f"create database {self.environment['POSTGRES_DB']}")

    async def another_login(self) -> dict[str, str]:
        """Variables of a login that owns nothing, with a password that is not the known one."""
        name, password = f"test_{self._suffix}", secrets.token_hex(16)
        await self._maintain(f"create role {name} login password '{password}'")
        return {"POSTGRES_USER": name, "POSTGRES_PASSWORD": password}

    async def drop(self) -> None:
        """Remove every trace."""
        connection = await self.connect(self._maintenance_db)
        try:
            await drop_database(connection, self.environment["POSTGRES_DB"])
            await connection.execute(f"drop role if exists test_{self._suffix}")
        finally:
            await connection.close()
        await asyncio.to_thread(self._drop_mongo)
        await asyncio.to_thread(shutil.rmtree, self.environment["MAIL_FOLDER"], ignore_errors=True)
        await self._drop_topics()
        await self._drop_keys()

    def mongo(self) -> MongoClient[dict[str, Any]]:
        """A synchronous client, for looking at what was written."""
        login: dict[str, Any] = {}
        if self.environment.get("MONGO_USER"):
            login = {"username": self.environment["MONGO_USER"], "password": self.environment["MONGO_PASSWORD"]}
        host, port = self.environment["MONGO_HOST"], int(self.environment["MONGO_PORT"])
        return MongoClient(host, port, serverSelectionTimeoutMS=3000, **login)

    async def _maintain(self, statement: str) -> None:
        connection = await self.connect(self._maintenance_db)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def _drop_mongo(self) -> None:
        with self.mongo() as client:
            client.drop_database(self.environment["MONGO_DB"])

    async def _drop_keys(self) -> None:
        async with connect(self.settings(Settings)) as redis:
            own = [key async for key in redis.scan_iter(match=f"{self.environment['REDIS_KEY_PREFIX']}*")]
            if own:
                await redis.delete(*own)

    async def _drop_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.environment["KAFKA_BOOTSTRAP_SERVERS"])
        await admin.start()
        try:
            prefix = self.environment["KAFKA_TOPIC_PREFIX"]
            own = [topic for topic in await admin.list_topics() if topic.startswith(prefix)]
            if own:
                await admin.delete_topics(own)
        finally:
            await admin.close()


async def drop_database(connection: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    """Remove a database and whoever is in it. An autovacuum worker is waited for: only a superuser may end it."""
    for _ in range(DROP_ATTEMPTS):
        try:
            await connection.execute(f"drop database if exists {name} with (force)")
        except asyncpg.InsufficientPrivilegeError:
            await asyncio.sleep(DROP_PAUSE_SECONDS)
        else:
            return
    raise TimeoutError(f"the database {name} is kept")


@asynccontextmanager
async def sandbox_on(engines: Mapping[str, str]) -> AsyncIterator[Sandbox]:
    """A sandbox for the length of the block."""
    sandbox = Sandbox(engines)
    await sandbox.create()
    try:
        yield sandbox
    finally:
        with contextlib.suppress(OSError):
            await sandbox.drop()
        await _close_forsaken_connections()


_KAFKA_OWNERS: Final = (AIOKafkaConsumer, AIOKafkaProducer, AIOKafkaAdminClient)


async def _close_forsaken_connections() -> None:
    """Close the connections to Kafka that no client knows which is still in use.

    aiokafka forgets the one that it says hello by when it is cancelled meanwhile, as when an application ends that
    has hardly begun.
    """
    found: list[Any] = gc.get_objects()
    owners = [each for each in found if type(each) in _KAFKA_OWNERS and not each._closed]  # noqa: SLF001
    clients = [getattr(owner, "_client", None) or owner.client for owner in owners]
    known = {id(each) for client in clients for each in client._conns.values()}  # noqa: SLF001
    forsaken = [each for each in found if type(each) is AIOKafkaConnection and id(each) not in known]
    closing = [each.close() for each in forsaken if each.connected()]
    if closing:
        await asyncio.wait(closing, timeout=DROP_PAUSE_SECONDS * DROP_ATTEMPTS)
