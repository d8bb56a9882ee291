"""One platform for all tests of several services."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from shared.testing.sandbox import sandbox_on
from tests.platform import Platform, platform_on


@pytest.fixture(scope="session")
async def platform(engines: dict[str, str]) -> AsyncIterator[Platform]:
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line for each request of the tests
    async with sandbox_on(engines) as sandbox, platform_on(sandbox) as platform:
        yield platform


@pytest.fixture(scope="session")
async def client(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=platform.gateway, timeout=30) as client:
        yield client
