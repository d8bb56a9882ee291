"""Who takes part in the attacks."""

from collections.abc import AsyncIterator

import httpx
import pytest
from redis.asyncio import Redis

from tests.platform import Platform
from tests.security.people import Actor, Books, forget_guesses, new_admin, newcomer
from user_service.settings import UserSettings


@pytest.fixture(scope="session")
async def books(platform: Platform) -> AsyncIterator[Books]:
    connection = await platform.sandbox.connect()
    yield Books(connection)
    await connection.close()


@pytest.fixture(scope="session")
async def redis(platform: Platform) -> AsyncIterator[Redis]:
    """The platform's Redis, with more patience than the services have."""
    where = platform.sandbox.settings(UserSettings)
    async with Redis(host=where.redis_host, port=where.redis_port, socket_timeout=10) as redis:
        yield redis


@pytest.fixture(autouse=True)
async def no_guesses(platform: Platform, redis: Redis) -> None:
    """Nobody has given a wrong password yet."""
    await forget_guesses(platform, redis)


@pytest.fixture(scope="session")
async def admin(client: httpx.AsyncClient, platform: Platform) -> Actor:
    return await new_admin(client, platform.sandbox)


@pytest.fixture(scope="session")
async def mallory(client: httpx.AsyncClient) -> Actor:
    """Somebody with an account of their own, and bad intentions."""
    return await newcomer(client)


@pytest.fixture(scope="session")
async def merchant(client: httpx.AsyncClient) -> Actor:
    return await newcomer(client, role="merchant")


@pytest.fixture
async def alice(client: httpx.AsyncClient) -> Actor:
    """The owner of whatever is attacked; another one in each test."""
    return await newcomer(client)
