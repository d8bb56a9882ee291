"""The platform that is tested: one that runs already, or one of the tests' own; see `tests.remote`."""

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests import remote
from tests.remote import RemoteStack

STACK: Final = pytest.StashKey[RemoteStack | None]()
OWN_ENGINES: Final = {"platform", "sandbox", "engines"}  # fixtures of the tests that look inside, or kill


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STACK] = remote.find(os.environ)


def pytest_report_header(config: pytest.Config) -> str:
    stack = config.stash[STACK]
    if stack is None:
        return "integration tests: a platform of their own (TEST_GATEWAY_URL names another one)"
    return f"integration tests: the platform at {stack.gateway} ({stack.named_by})"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    stack = config.stash[STACK]
    if stack is None:
        return
    reason = f"needs engines of its own, to look into or to kill; this is the platform at {stack.gateway}"
    for item in items:
        if Path(__file__).parent in item.path.parents and OWN_ENGINES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason))


@pytest.fixture(scope="session")
def gateway(request: pytest.FixtureRequest) -> str:
    """The URL of the gateway, when the platform is well."""
    stack = request.config.stash[STACK]
    if stack is None:
        url: str = request.getfixturevalue("platform").gateway
        return url
    remote.await_health(stack.gateway)
    return stack.gateway


@pytest.fixture(scope="session")
async def client(gateway: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def address_tag(request: pytest.FixtureRequest) -> str:
    """What makes an e-mail address new to a platform that remembers earlier runs."""
    return "" if request.config.stash[STACK] is None else f"+{secrets.token_hex(4)}"
