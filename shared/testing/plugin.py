"""pytest fixtures: engines for the session, a sandbox for each module. And the event loops a test may ask for."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
import uvloop

from infrastructure.embedded.stack import Stack
from shared.testing.sandbox import Sandbox, sandbox_on

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loops a test is run on: asyncio's, unless its `pytest.mark.asyncio(loop_factories=...)` names others."""
    marker = item.get_closest_marker("asyncio")
    return LOOPS if marker and "loop_factories" in marker.kwargs else {"asyncio": LOOPS["asyncio"]}


@pytest.fixture(scope="session")
def engines() -> Iterator[dict[str, str]]:
    """Variables of real servers: embedded ones that end with the tests, or those the environment names."""
    with tempfile.TemporaryDirectory(prefix="payment-system-tests-") as folder:
        stack = Stack(Path(folder), ports="free", detached=False, durable=False)
        variables = stack.start()
        try:
            yield variables
        finally:
            stack.stop()


@pytest.fixture(scope="module")
async def sandbox(engines: dict[str, str]) -> AsyncIterator[Sandbox]:
    """A database, a Mongo database and topics of the module's own."""
    async with sandbox_on(engines) as sandbox:
        yield sandbox
