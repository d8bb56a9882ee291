"""Redis, which makes things fast and decides nothing: every wait is short, and whoever uses it can do without."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.settings import Settings

MAX_CONNECTIONS: Final = 16
# What says that Redis is out.
OUT: Final = (RedisError, OSError, asyncio.TimeoutError)


def connect(
    settings: Settings, max_connections: int = MAX_CONNECTIONS, on_connect: Callable[[], None] | None = None
) -> Redis:
    """A client, connected when it is first used; close it with `aclose()`. Keys and answers are bytes.

    `settings.redis_timeout_ms` is the longest wait to connect, for an answer, and for a connection to become free.
    Every name of a key or channel begins with `settings.redis_key_prefix`. `on_connect` hears of each new connection,
    also of one that silently takes the place of another: what is at its end may have forgotten what it was told.
    """
    more: dict[str, Any] = {}
    if on_connect is not None:

        async def greet(connection: AbstractConnection) -> None:
            on_connect()
            await connection.on_connect()

        more["redis_connect_func"] = greet
    timeout = settings.redis_timeout_ms / 1000
    pool = BlockingConnectionPool(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        password=settings.redis_password.get_secret_value() or None,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        timeout=timeout,
        max_connections=max_connections,
        retry=Retry(NoBackoff(), 0),
        **more,
    )
    return Redis.from_pool(pool)


def longest_wait(redis: Redis) -> float:
    """The seconds that this client waits at most, as its settings say."""
    seconds: float = redis.connection_pool.connection_kwargs["socket_timeout"]
    return seconds
