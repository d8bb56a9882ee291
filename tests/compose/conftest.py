"""Images and compose files on a real engine: `make compose-test`."""

import os
from collections.abc import Iterator
from typing import Final

import pytest

from infrastructure.embedded import ports
from tests.compose import engine
from tests.compose.engine import KRAFT, Docker, Stack

PROJECT: Final = "payment-system-check"
PORTS: Final = (*range(8000, 8007), 5432, 27017, 6379, 9092, 9090, 3000, 1025, 8025)
# The README's loop, without what pushes.
IMAGES: Final = (
    "user-service",
    "wallet-service",
    "transaction-service",
    "payment-gateway",
    "notification-service",
    "api-gateway",
)
BUILD_LIMIT_SECONDS: Final = 600.0


@pytest.fixture(scope="session")
def docker() -> Docker:
    found = engine.find(os.environ)
    if found is None:
        pytest.skip("no Docker engine answers")
    return found


@pytest.fixture(scope="session")
def images(docker: Docker) -> None:
    """The six images, built as the README says."""
    for service in IMAGES:
        build = ("build", "-t", service, "-f", f"services/{service}/Dockerfile", ".")
        docker(*build, limit_seconds=BUILD_LIMIT_SECONDS)


def remove(stack: Stack) -> None:
    """End it on either Kafka; each has a volume that the other one does not know."""
    Stack(stack.docker, stack.project, KRAFT).down("--volumes")
    stack.down("--volumes")


@pytest.fixture(scope="module")
def stack(docker: Docker) -> Iterator[Stack]:
    """The platform's compose file under a name of its own; every trace is gone afterwards."""
    stack = Stack(docker, PROJECT)
    remove(stack)
    taken = [port for port in PORTS if not ports.is_free(port)]
    if taken:
        pytest.fail(f"ports are taken: {taken}; stop what runs there (docker-compose down, make down)")
    yield stack
    remove(stack)
