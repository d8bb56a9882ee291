"""Applications on real sockets, in the loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from shared.serve import server_options

START_LIMIT_SECONDS: Final = 30.0
HOST: Final = "127.0.0.1"


@asynccontextmanager
async def serving(app: ASGIApp, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Serve `app` on a free port, or on `port`, for the length of the block; yields its URL.

    `options` of uvicorn come on top of those that every service is served with.
    """
    # asyncio turns off Nagle's waiting (40 ms for an answer in two writes) only where the protocol is named.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        server = _Server(uvicorn.Config(app, **(server_options(HOST, 0) | options)))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await server.wait_started(task)
            yield url
        finally:
            server.should_exit = True
            await asyncio.wait([task])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up.set()

    async def wait_started(self, task: asyncio.Task[None]) -> None:
        up = asyncio.create_task(self._up.wait())
        waiting: set[asyncio.Task[Any]] = {up, task}
        await asyncio.wait(waiting, timeout=START_LIMIT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self.started:
            up.cancel()
            raise RuntimeError("the application did not start; see its log")


@asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app` without a socket, its lifespan running."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client
