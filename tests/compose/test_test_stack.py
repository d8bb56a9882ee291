"""The stack of docker-compose.test.yml, and the integration tests against it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from infrastructure.embedded import ports
from shared.settings import ROOT
from tests import remote
from tests.compose.engine import Docker, Stack

PROJECT: Final = "payment-system-test-check"
PORTS: Final = (*range(18000, 18007), 15432, 37017, 16379, 19092)


@pytest.fixture(scope="module")
def test_stack(docker: Docker) -> Iterator[Stack]:
    stack = Stack(docker, PROJECT, ("docker-compose.test.yml",))
    stack.down("--volumes")
    taken = [port for port in PORTS if not ports.is_free(port)]
    if taken:
        pytest.fail(f"ports are taken: {taken}; stop what runs there")
    stack.up("--build")
    yield stack
    stack.down("--volumes")


def integration_tests() -> str:
    """Run them as the README says; their report."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/integration/"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TEST_GATEWAY_URL"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_integration_tests_take_the_stack_and_say_so(test_stack: Stack) -> None:
    assert test_stack
    report = integration_tests()

    assert f"integration tests: the platform at {remote.TEST_STACK} (docker-compose.test.yml)" in report
    assert "skipped" in report.splitlines()[-1]
    integration_tests()  # it remembers the first time, and does not mind


def test_it_keeps_nothing(test_stack: Stack, docker: Docker) -> None:
    volumes = docker("volume", "ls", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}").stdout
    mounts = {mount["Type"] for each in test_stack.containers().values() for mount in each["Mounts"]}

    assert volumes == ""
    assert mounts <= {"bind"}, mounts  # and none without a name
