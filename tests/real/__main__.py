"""`make test-real`: the tests that need servers, on real ones, with Kafka in both of its forms."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, get_args
from xml.etree import ElementTree

from infrastructure.embedded import environment
from infrastructure.embedded.command import say
from infrastructure.embedded.errors import EmbeddedError
from shared.settings import ROOT
from tests import remote
from tests.real.servers import Form, Places, RealStack

NAMES: Final[Mapping[Form, str]] = {"kraft": "Kafka with KRaft", "zookeeper": "Kafka with ZooKeeper"}
TERMINATED: Final = 143
INTERRUPTED: Final = 130
ENDING_LIMIT_SECONDS: Final = 60.0


def run(title: str, form: Form, places: Places, arguments: Sequence[str]) -> tuple[int, str]:
    """Start the servers, run pytest on them and stop them; its exit status, and a line about it."""
    say(f"\n=== {title}: starting the servers")
    with tempfile.TemporaryDirectory(prefix="payment-system-real-") as folder:
        stack = RealStack(Path(folder), form, places, os.environ)
        report = stack.log("pytest").with_suffix(".xml")  # among what goes with the stack, even after a kill -9
        try:
            variables = stack.start()
            for line in stack.describe():
                say(f"    {line}")
            began_at = time.monotonic()
            status = pytest(variables, [f"--junitxml={report}", *arguments])
            return status, f"{title}: {counted(report)} in {time.monotonic() - began_at:.0f} s"
        finally:
            stack.stop()


def pytest(variables: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run pytest on these servers and return its exit status. It hears a Ctrl-C too, and is waited for."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.real.selection", *arguments]
    child = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables})
    try:
        return child.wait()
    except SystemExit:
        child.send_signal(signal.SIGINT)
        raise
    finally:
        try:
            child.wait(ENDING_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def counted(report: Path) -> str:
    """How many tests had which outcome, by pytest's report."""
    try:
        suite = ElementTree.parse(report).find("testsuite")  # noqa: S314 - written by the pytest that has just ended
    except FileNotFoundError:
        suite = None
    if suite is None:
        return "no tests were run"
    tests, failed, errors, skipped = (int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped"))
    counts = {"passed": tests - failed - errors - skipped, "failed": failed, "errors": errors, "skipped": skipped}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count or name == "passed")


def main(arguments: Sequence[str]) -> int:
    """Run the tests on each form of Kafka; 0 when all of them passed."""
    parser = argparse.ArgumentParser(prog="make test-real", description=__doc__, epilog="All else goes to pytest.")
    parser.add_argument("--kafka", choices=get_args(Form), help="this form alone")
    options, rest = parser.parse_known_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        found = remote.find(os.environ)
        if found is not None:
            raise EmbeddedError(f"The tests would take the platform at {found.gateway} ({found.named_by}): stop it.")
        places = Places.of(os.environ)
        forms = NAMES if options.kafka is None else {options.kafka: NAMES[options.kafka]}
        if not environment.is_embedded("kafka", os.environ):
            forms = {"kraft": f"Kafka at {os.environ['KAFKA_BOOTSTRAP_SERVERS']}"}
        outcomes = [run(title, form, places, rest) for form, title in forms.items()]
    except EmbeddedError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return error.status
    except KeyboardInterrupt:
        say("Interrupted; the servers are stopped.")
        return INTERRUPTED
    say("\n=== make test-real")
    for _, line in outcomes:
        say(line)
    return max(status for status, _ in outcomes)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
