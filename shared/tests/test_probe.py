"""The health check of the images."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI, Response

from infrastructure.embedded import ports
from shared.settings import ROOT
from shared.testing.servers import serving


async def probe(port: int | str) -> int | None:
    """The exit status for the service on this port."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "shared.probe", str(port), cwd=ROOT)
    async with asyncio.timeout(20):
        return await process.wait()


@asynccontextmanager
async def service(status: int) -> AsyncIterator[int]:
    """Something that answers with this status when it is asked whether it is ready; yields its port."""
    app = FastAPI()

    @app.get("/health/ready")
    async def ready() -> Response:
        return Response(status_code=status)

    async with serving(app) as url:
        yield int(url.rpartition(":")[2])


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (404, 1)])
async def test_only_what_answers_200_is_ready(status: int, expected: int) -> None:
    async with service(status) as port:
        assert await probe(port) == expected


async def test_what_is_not_there_is_not_ready() -> None:
    assert await probe(ports.choose([])) == 1


@pytest.mark.parametrize("behave", ["hang up", "be silent"])
async def test_what_does_not_answer_is_not_ready(behave: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if behave == "be silent":
            await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        assert await probe(server.sockets[0].getsockname()[1]) == 1
