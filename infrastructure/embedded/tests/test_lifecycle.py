import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infrastructure.embedded import Stack, environment, ports, processes
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.lifecycle import Platform
from infrastructure.embedded.processes import Process
from infrastructure.embedded.services import Service
from infrastructure.embedded.waiting import wait_until

LIMIT_SECONDS = 20.0

# Stands in for a service: answers every GET with FLAVOUR and ENV_FILE, or behaves badly where its folder says so.
SERVE = """
import http.server, os, pathlib, sys

if pathlib.Path("dies").exists():
    raise RuntimeError("no such column: balance")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if pathlib.Path("ill").exists() else 200)
        self.end_headers()
        self.wfile.write(f"{os.environ.get('FLAVOUR')}|{os.environ.get('ENV_FILE')}".encode())

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""
# Stands in for Alembic.
MIGRATE = """
import pathlib

with pathlib.Path("migrations.log").open("a") as file:
    file.write("upgrade head\\n")
if pathlib.Path("broken").exists():
    raise ValueError("relation users does not exist")
"""

# Stands in for the command that publishes what the audit has.
REPLAY = """
import os, pathlib, sys

pathlib.Path("replayed.partial").write_text(f"{sys.argv[1:]} {os.environ['KAFKA_BOOTSTRAP_SERVERS']}")
os.rename("replayed.partial", "replayed")
"""


class World:
    """A checkout with two stand-in services, and whatever is said while they start."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        self.services: tuple[Service, ...] = (
            Service("wallet-service", "services/wallet-service", ports.choose([])),
            Service("api-gateway", "api-gateway", ports.choose([])),
        )
        for package, name, code in (
            ("shared", "serve", SERVE),
            ("shared", "replay", REPLAY),
            ("alembic", "__main__", MIGRATE),
        ):
            (root / package).mkdir(exist_ok=True)
            (root / package / "__init__.py").touch()
            (root / package / f"{name}.py").write_text(code)
        for service in self.services:
            (root / service.folder).mkdir(parents=True)
        (self.folder("wallet-service") / "alembic.ini").touch()
        self.stack = Stack(root / ".run", ports="free", environ=self.environ())

    def environ(self, **more: str) -> dict[str, str]:
        """Every engine is somebody else's here: these tests are about the services."""
        elsewhere = dict.fromkeys(environment.HOSTS.values(), "elsewhere.example.com")
        return {**os.environ, **elsewhere, "PYTHONPATH": str(self.root), **more}

    def platform(self, **more: str) -> Platform:
        return Platform(
            self.root,
            self.stack,
            python=Path(sys.executable),
            environ=self.environ(**more),
            report=self.lines.append,
            services_=self.services,
            ready_limit_seconds=LIMIT_SECONDS,
        )

    def folder(self, name: str) -> Path:
        return self.root / next(each.folder for each in self.services if each.name == name)

    def running(self) -> dict[str, Process]:
        found = {each.name: processes.running(self.stack.record(each.name)) for each in self.services}
        return {name: process for name, process in found.items() if process is not None}

    def answer(self, name: str) -> str:
        port = next(each.port for each in self.services if each.name == name)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LIMIT_SECONDS) as response:
            return str(response.read().decode())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.platform().down()


def test_up_migrates_and_starts_everything_with_the_variables_given_to_it(world: World) -> None:
    assert world.platform(FLAVOUR="sweet").up()

    assert set(world.running()) == {"wallet-service", "api-gateway"}
    assert world.answer("wallet-service") == "sweet|"
    assert (world.folder("wallet-service") / "migrations.log").read_text() == "upgrade head\n"
    assert not (world.folder("api-gateway") / "migrations.log").exists()
    assert "wallet-service: migrated" in world.lines
    assert f"api-gateway: ready on http://localhost:{world.services[1].port}" in world.lines
    assert [line.state for line in world.platform().status()] == ["yours"] * 4 + ["running"] * 2


def test_a_second_up_changes_nothing(world: World) -> None:
    world.platform().up()
    before = world.running()

    assert not world.platform().up()

    assert world.running() == before
    assert (world.folder("wallet-service") / "migrations.log").read_text() == "upgrade head\n"


def test_up_starts_again_only_what_has_died(world: World) -> None:
    world.platform().up()
    before = world.running()
    os.kill(before["api-gateway"].pid, signal.SIGKILL)
    assert wait_until(lambda: "api-gateway" not in world.running(), LIMIT_SECONDS)

    assert world.platform().up()

    after = world.running()
    assert after["wallet-service"] == before["wallet-service"]
    assert after["api-gateway"] != before["api-gateway"]


def test_migrations_known_to_be_in_the_data_run_again_only_once_they_change_or_the_data_is_gone(
    world: World,
) -> None:
    embedded = {name: value for name, value in world.environ().items() if name != "POSTGRES_HOST"}
    world.stack = Stack(world.root / ".run", ports="free", durable=False, environ=embedded)
    log = world.folder("wallet-service") / "migrations.log"

    def restart() -> int:
        world.platform().down()
        world.platform().up()
        return log.read_text().count("upgrade head")

    assert [restart(), restart()] == [1, 1]
    (world.folder("wallet-service") / "migrations").mkdir()
    (world.folder("wallet-service") / "migrations" / "0002_holds.py").touch()
    assert [restart(), restart()] == [2, 2]
    world.platform().down()
    world.platform().remove_data()
    assert restart() == 3
    world.platform().down()
    world.platform().remove_data()


def test_a_broker_that_begins_empty_gets_the_last_days_events_and_one_that_runs_nothing(world: World) -> None:
    embedded = {name: value for name, value in world.environ().items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    world.stack = Stack(world.root / ".run", ports="free", durable=False, environ=embedded)
    replayed = world.root / "replayed"

    world.platform().up()
    broker = world.stack.process("kafka")
    assert broker is not None
    assert wait_until(replayed.exists, LIMIT_SECONDS)
    assert replayed.read_text() == f"['all', '24h'] 127.0.0.1:{broker.port}"

    replayed.unlink()
    os.kill(world.running()["api-gateway"].pid, signal.SIGKILL)
    assert wait_until(lambda: "api-gateway" not in world.running(), LIMIT_SECONDS)
    world.platform().up()
    assert "kafka: begins empty, and gets the events of the last 24h from the audit" in world.lines
    assert sum(line.startswith("kafka: begins empty") for line in world.lines) == 1
    assert not replayed.exists()


def test_without_a_broker_of_its_own_nothing_is_published_again(world: World) -> None:
    world.platform().up()

    assert not any(line.startswith("kafka:") for line in world.lines)
    assert not (world.root / "replayed").exists()


def test_down_stops_everything_and_a_second_one_nothing(world: World) -> None:
    world.platform().up()

    assert world.platform().down()
    assert world.running() == {}
    assert not world.platform().down()


def test_a_taken_port_is_named_and_nothing_is_started(world: World) -> None:
    port = world.services[1].port
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(EmbeddedError, match=f"Port {port}, which api-gateway needs, is taken"),
    ):
        world.platform().up()

    assert world.running() == {}
    assert not (world.folder("wallet-service") / "migrations.log").exists()


def test_a_service_whose_port_is_not_fixed_goes_elsewhere_when_it_is_taken(world: World) -> None:
    port = ports.choose([])
    (world.root / "reconciler").mkdir()
    world.services = (Service("reconciler", "reconciler", port, port_is_fixed=False),)
    with socket.create_server(("127.0.0.1", port)):
        assert world.platform().up()

    chosen = world.running()["reconciler"].port
    assert chosen != port
    assert f"reconciler: ready on http://localhost:{chosen}" in world.lines
    [line] = [line for line in world.platform().status() if line.name == "reconciler"]
    assert (line.state, line.where) == ("running", f"http://localhost:{chosen}")
    assert not world.platform().up()
    assert world.platform().url(world.services[0]) == f"http://localhost:{chosen}"


Break = Callable[[World], None]


def break_migration(world: World) -> None:
    (world.folder("wallet-service") / "broken").touch()


def break_start(world: World) -> None:
    (world.folder("wallet-service") / "dies").touch()


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (
            break_migration,
            r"The migration of wallet-service failed: ValueError: relation users does not exist \(.*\)\.",
        ),
        (break_start, r"wallet-service ended at once: RuntimeError: no such column: balance \(.*\.log\)\."),
    ],
)
def test_what_fails_is_said_in_a_sentence_and_nothing_stays_half_started(
    world: World, break_it: Break, sentence: str
) -> None:
    break_it(world)

    with pytest.raises(EmbeddedError, match=sentence):
        world.platform().up()

    assert world.running() == {}


def test_what_ran_before_a_failed_up_goes_on_running(world: World) -> None:
    world.platform().up()
    before = world.running()
    os.kill(before["wallet-service"].pid, signal.SIGKILL)
    assert wait_until(lambda: "wallet-service" not in world.running(), LIMIT_SECONDS)
    break_migration(world)

    with pytest.raises(EmbeddedError, match="migration of wallet-service"):
        world.platform().up()

    assert world.running() == {"api-gateway": before["api-gateway"]}


def test_a_service_that_does_not_get_well_is_named_and_everything_stopped(world: World) -> None:
    (world.folder("wallet-service") / "ill").touch()
    platform = Platform(
        world.root,
        world.stack,
        python=Path(sys.executable),
        environ=world.environ(),
        report=world.lines.append,
        services_=world.services,
        ready_limit_seconds=1.0,
    )

    with pytest.raises(EmbeddedError, match="wallet-service runs but is not healthy after 1 s"):
        platform.up()

    assert world.running() == {}
