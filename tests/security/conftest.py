"""Who takes part in the attacks."""

from collections.abc import AsyncIterator

import httpx
import pytest

from shared.redis import connect
from tests.platform import Platform
from tests.security.people import Actor, Books, new_admin, newcomer
from user_service.settings import UserSettings


@pytest.fixture(scope="session")
async def books(platform: Platform) -> AsyncIterator[Books]:
    connection = await platform.sandbox.connect()
    yield Books(connection)
    await connection.close()


@pytest.fixture(autouse=True)
async def no_guesses(platform: Platform) -> None:
    """Nobody has given a wrong password yet."""
    async with connect(platform.sandbox.settings(UserSettings)) as redis:
        prefix = platform.sandbox.environment["REDIS_KEY_PREFIX"]
        keys = [key async for key in redis.scan_iter(match=f"{prefix}guesses:*")]
        if keys:
            await redis.delete(*keys)


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
