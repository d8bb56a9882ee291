"""Redis, which makes things fast and decides nothing: every wait is short, and whoever uses it can do without."""

import asyncio
from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from shared.settings import Settings

TIMEOUT_SECONDS: Final = 0.05  # to connect, to answer, and for a connection to become free
MAX_CONNECTIONS: Final = 16
# What says that Redis is out.
OUT: Final = (RedisError, OSError, asyncio.TimeoutError)


def connect(settings: Settings, max_connections: int = MAX_CONNECTIONS) -> Redis:
    """A client, connected when it is first used; close it with `aclose()`. Keys and answers are bytes.

    Every name of a key or channel begins with `settings.redis_key_prefix`.
    """
    pool = BlockingConnectionPool(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        password=settings.redis_password.get_secret_value() or None,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        timeout=TIMEOUT_SECONDS,
        max_connections=max_connections,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)
