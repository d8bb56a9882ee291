"""`make test-real` says what it lacks, takes the servers that are named, and ends what it has started."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infrastructure.embedded.errors import EmbeddedError
from shared.settings import ROOT
from shared.testing.waiting import eventually
from tests.real.__main__ import counted
from tests.real.selection import INTEGRATION, needs_servers
from tests.real.servers import Places, RealKafka

NAMED = {"POSTGRES_HOST": "db", "KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "MONGO_HOST": "mongo"}


def test_what_is_missing_is_named_with_the_variables_that_help(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in NAMED}
    nowhere = {"POSTGRES_BIN": str(tmp_path), "REAL_STARTERS": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-m", "tests.real"], cwd=ROOT, env=environ | nowhere, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: There is no {tmp_path}/initdb. Install PostgreSQL 15, name its bin folder by POSTGRES_BIN, "
        "or a server by POSTGRES_HOST.\n"
        f"       There is no {tmp_path}/kafka.sh. Name the folder of a script that starts Kafka by REAL_STARTERS, "
        "or a server by KAFKA_BOOTSTRAP_SERVERS.\n"
        f"       There is no {tmp_path}/mongo.sh. Name the folder of a script that starts MongoDB by REAL_STARTERS, "
        "or a server by MONGO_HOST.\n"
    )


def test_a_platform_that_the_tests_would_take_instead_is_an_error() -> None:
    environ = os.environ | {"TEST_GATEWAY_URL": "http://127.0.0.1:1"}

    done = subprocess.run([sys.executable, "-m", "tests.real"], cwd=ROOT, env=environ, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: The tests would take the platform at http://127.0.0.1:1 (TEST_GATEWAY_URL): stop it.\n"
    )


@pytest.mark.parametrize("missing", NAMED)
def test_for_a_server_that_is_named_nothing_has_to_be_there(tmp_path: Path, missing: str) -> None:
    nowhere = {"POSTGRES_BIN": str(tmp_path), "REAL_STARTERS": str(tmp_path)}
    assert Places.of(nowhere | NAMED).postgres == tmp_path

    with pytest.raises(EmbeddedError, match=missing):
        Places.of(nowhere | NAMED | {missing: ""})


SCRIPT = """#!/usr/bin/env bash
echo "$1 $KAFKA_MODE $KAFKA_PORT $KAFKA_DATA" >>"${0%/*}/calls"
[[ $1 != up || ! -e ${0%/*}/slow ]] || sleep 30
"""


@pytest.fixture
def kafka(tmp_path: Path) -> RealKafka:
    script = tmp_path / "kafka.sh"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    return RealKafka(script, "zookeeper", tmp_path / "data")


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[str]]:
    def read() -> list[str]:
        file = tmp_path / "calls"
        return file.read_text().splitlines() if file.exists() else []

    return read


def test_the_producer_is_idempotent(kafka: RealKafka) -> None:
    assert kafka.variables(2345) == {
        "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:2345",
        "KAFKA_PRODUCER_IDEMPOTENCE": "true",
    }


@pytest.mark.parametrize("slow", [False, True])
async def test_the_process_that_stays_beside_a_server_ends_it_even_before_it_is_up(
    kafka: RealKafka, calls: Callable[[], list[str]], tmp_path: Path, *, slow: bool
) -> None:
    if slow:
        (tmp_path / "slow").touch()
    process = await asyncio.create_subprocess_exec(*kafka.command(2345), env=kafka.environment())

    async def begun() -> bool:
        return bool(calls())

    await eventually(begun)
    assert process.returncode is None
    process.send_signal(signal.SIGTERM)

    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert calls() == [f"{verb} zk 2345 {tmp_path}/data" for verb in ("up", "purge")]


def test_a_server_that_does_not_come_up_leaves_nothing_and_ends(
    kafka: RealKafka, calls: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "kafka.sh").write_text(SCRIPT + "[[ $1 != up ]]\n")

    done = subprocess.run(kafka.command(2345), env=kafka.environment(), timeout=10, check=False)

    assert done.returncode == 1
    assert [line.split()[0] for line in calls()] == ["up", "purge"]


def test_programs_that_cannot_be_fetched_are_an_error(kafka: RealKafka, tmp_path: Path) -> None:
    (tmp_path / "kafka.sh").write_text("#!/bin/sh\nexit 3\n")

    with pytest.raises(EmbeddedError, match=r"kafka\.sh jars ended with status 3"):
        kafka.fetch()


def test_only_tests_that_need_servers_are_chosen() -> None:
    elsewhere = ROOT / "shared" / "tests" / "test_money.py"

    assert needs_servers(elsewhere, ["sandbox", "engines"])
    assert not needs_servers(elsewhere, ["tmp_path"])
    assert needs_servers(INTEGRATION / "test_samples.py", [])


def test_a_report_is_told_in_a_line(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    assert counted(report) == "no tests were run"

    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="2" skipped="3" /></testsuites>')
    assert counted(report) == "3 passed, 1 failed, 2 errors, 3 skipped"
    report.write_text('<testsuites><testsuite tests="9" failures="0" errors="0" skipped="0" /></testsuites>')
    assert counted(report) == "9 passed"
