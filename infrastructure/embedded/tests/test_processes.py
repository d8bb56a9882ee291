import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infrastructure.embedded import processes
from infrastructure.embedded.processes import Process, StopSignal
from infrastructure.embedded.waiting import wait_until

LIMIT_SECONDS = 10.0
IDLE = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + IDLE

Start = Callable[..., Process]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "processes" / "idle.json"


@pytest.fixture
def start(tmp_path: Path, record: Path) -> Iterator[Start]:
    log = tmp_path / "idle.log"

    def run(code: str, stop_limit_seconds: float = LIMIT_SECONDS) -> Process:
        process = processes.start(
            [sys.executable, "-c", code],
            record=record,
            log=log,
            port=4711,
            environment=os.environ,
            directory=tmp_path,
            stop_signals=(StopSignal(signal.SIGTERM, stop_limit_seconds),),
        )
        assert wait_until(lambda: processes.last_line(log) == "up", LIMIT_SECONDS)
        return process

    yield run
    processes.stop(record)


def test_a_started_process_is_found_by_its_record(start: Start, record: Path) -> None:
    process = start(IDLE)

    assert processes.running(record) == process
    assert process.port == 4711


def test_stop_ends_the_process_and_drops_the_record(start: Start, record: Path) -> None:
    process = start(IDLE)

    assert processes.stop(record)
    assert not processes.is_running(process)
    assert not record.exists()


def test_a_process_that_ignores_sigterm_is_killed_after_the_limit(start: Start, record: Path) -> None:
    process = start(STUBBORN, stop_limit_seconds=0.2)

    assert processes.stop(record)
    assert not processes.is_running(process)


def test_a_killed_process_does_not_count_as_running(start: Start, record: Path) -> None:
    process = start(IDLE)
    os.kill(process.pid, signal.SIGKILL)

    assert wait_until(lambda: processes.running(record) is None, LIMIT_SECONDS)
    assert processes.recorded(record) == process
    assert not processes.stop(record)


def test_a_recycled_pid_is_never_taken_for_the_process_and_never_killed(start: Start, record: Path) -> None:
    process = start(IDLE)
    content = record.read_text()
    record.write_text(json.dumps(json.loads(content) | {"began": "before the last boot/1"}))

    assert processes.running(record) is None
    assert not processes.stop(record)
    assert processes.is_running(process)

    record.write_text(content)  # so that the fixture ends it


def test_a_record_in_a_copied_folder_says_nothing(start: Start, record: Path, tmp_path: Path) -> None:
    process = start(IDLE)
    copy = tmp_path / "copy" / record.name
    copy.parent.mkdir()
    shutil.copy(record, copy)

    assert processes.running(copy) is None
    assert not processes.stop(copy)
    assert processes.is_running(process)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_an_unreadable_record_is_no_process(record: Path, content: str) -> None:
    record.parent.mkdir()
    record.write_text(content)

    assert processes.running(record) is None
    assert not processes.stop(record)


def test_output_of_one_start_is_appended_to_that_of_the_last(start: Start, record: Path, tmp_path: Path) -> None:
    start(IDLE)
    processes.stop(record)
    start("print('again', flush=True); " + IDLE)

    log = tmp_path / "idle.log"
    assert wait_until(lambda: log.read_text() == "up\nagain\nup\n", LIMIT_SECONDS)
