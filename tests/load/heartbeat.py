"""user-service's word, in its place, that no session has ended: while it is heard, nobody asks about sessions."""

import asyncio
import contextlib
from multiprocessing.connection import Connection as Pipe
from typing import Any

from shared.background import running
from shared.redis import OUT, connect
from shared.sessions import HEARTBEAT, HEARTBEAT_SECONDS, Names
from shared.settings import Settings
from tests.load.own_process import answering


def serve(redis_host: str, redis_port: str, pipe: "Pipe[Any, Any]") -> None:
    """Tell it as often as user-service does, from a process of its own, which answers questions with its start."""
    settings = Settings(_env_file=None, redis_host=redis_host, redis_port=int(redis_port), redis_db=0)
    asyncio.run(_serve(settings, pipe))


async def _serve(settings: Settings, pipe: "Pipe[Any, Any]") -> None:
    names = Names.of(settings)
    async with connect(settings, max_connections=1) as redis:
        await redis.set(names.complete, 1)

        async def tell() -> None:
            while True:
                with contextlib.suppress(*OUT):  # a busy machine may be late once
                    await redis.publish(names.channel, HEARTBEAT)
                await asyncio.sleep(HEARTBEAT_SECONDS)

        async def is_told(_: object) -> bool:
            return bool(await redis.exists(names.complete))

        async with running(tell):
            await answering(pipe, is_told)
