"""user-service on a real PostgreSQL. Its sinks are out, so that its events can be looked at in the outbox."""

import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from shared.redis import OUT, connect
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually
from user_service.app import create_app
from user_service.settings import UserSettings

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]


@pytest.fixture(scope="module")
def app(sandbox: Sandbox) -> FastAPI:
    return create_app(
        sandbox.settings(
            UserSettings,
            bcrypt_rounds=4,
            log_level="DEBUG",
            kafka_bootstrap_servers="127.0.0.1:1",
            mongo_host="127.0.0.1",
            mongo_port=1,
        )
    )


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(app) as client:
        yield client


@pytest.fixture(scope="module")
async def rows(sandbox: Sandbox, client: httpx.AsyncClient) -> AsyncIterator[Rows]:
    """SQL around the code, as the owner of the schema."""
    connection = await sandbox.connect()
    await connection.execute("set search_path = users")

    async def query(sql: str, *arguments: Any) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = await connection.fetch(sql, *arguments)
        return found

    yield query
    await connection.close()


@pytest.fixture
async def nobody(sandbox: Sandbox, rows: Rows) -> None:
    """Nobody has registered, nothing was told, and nobody has guessed."""
    await rows("truncate users, sessions, outbox")
    await forget_guesses(sandbox)


async def forget_guesses(sandbox: Sandbox) -> None:
    """As often as it takes: a machine under load may answer later than a client of ours waits."""

    async def forgotten() -> bool:
        with contextlib.suppress(*OUT):
            async with connect(sandbox.settings(UserSettings)) as redis:
                pattern = f"{sandbox.environment['REDIS_KEY_PREFIX']}guesses:*"
                keys = [key async for key in redis.scan_iter(match=pattern)]
                return not keys or bool(await redis.delete(*keys))
        return False

    await eventually(forgotten)


@pytest.fixture
def log(client: httpx.AsyncClient) -> Iterator[io.StringIO]:
    """What the service writes to its log, from DEBUG on."""
    [handler] = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    before = handler.setStream(stream := io.StringIO())
    yield stream
    handler.setStream(before)
