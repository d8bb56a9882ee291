"""pytest fixtures: engines for the session, a sandbox for each module."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from infrastructure.embedded.stack import Stack
from shared.testing.sandbox import Sandbox, sandbox_on


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
