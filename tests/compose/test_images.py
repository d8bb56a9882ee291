"""Each service's image: what is in it, and when it refuses to start."""

import json
import signal

import pytest

from tests.compose.engine import Docker

BASE = "python:3.11-slim"
MAX_BYTES_OVER_BASE = 70_000_000  # the base takes about 130 MB, and an image shall take less than 200
WITH_SCHEMA = [
    "user-service",
    "wallet-service",
    "transaction-service",
    "payment-gateway",
    "notification-service",
]
ALL = [*WITH_SCHEMA, "api-gateway"]

pytestmark = pytest.mark.usefixtures("images")


def refused(docker: Docker, image: str, environment: dict[str, str], *command: str) -> tuple[int, list[str]]:
    """The exit status of a container, and the errors among what it wrote."""
    given = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
    done = docker("run", "--rm", "--read-only", *given, image, *command, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, [said for line in done.stderr.splitlines() if (said := error_in(line))]


def error_in(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry["message"]) if entry["level"] == "ERROR" else None


@pytest.mark.parametrize("image", ALL)
def test_an_image_is_small(docker: Docker, image: str) -> None:
    base, own = docker.inspect(BASE, image)

    assert own["RootFS"]["Layers"][: len(base["RootFS"]["Layers"])] == base["RootFS"]["Layers"]
    assert own["Size"] - base["Size"] < MAX_BYTES_OVER_BASE


@pytest.mark.parametrize("image", ALL)
def test_an_image_runs_as_nobody_and_brings_what_runs_only(docker: Docker, image: str) -> None:
    look = (
        "id -u; find /app -name tests -o -name testing -o -name 'testing.py' -o -name '.env*' -o -name '*.md';"
        "find / -xdev -writable -type f -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null;"
        'for module in pytest hypothesis pip setuptools; do /opt/venv/bin/python -c "import $module" 2>/dev/null'
        " && echo $module; done; true"
    )

    assert docker("run", "--rm", "--read-only", image, "sh", "-c", look).stdout.split() == ["10001"]


@pytest.mark.parametrize("image", ALL)
def test_a_known_secret_outside_development_stops_the_start(docker: Docker, image: str) -> None:
    status, [sentence] = refused(docker, image, {"ENVIRONMENT": "production"})

    assert (status, sentence) == (
        1,
        "JWT_SECRET_KEY must be set to a secret of at least 32 bytes of your own when ENVIRONMENT is production.",
    )


@pytest.mark.parametrize("image", WITH_SCHEMA)
@pytest.mark.parametrize("command", [(), ("python", "-m", "shared.migrate")], ids=["service", "migrations"])
def test_a_database_that_cannot_be_reached_stops_the_start(
    docker: Docker, image: str, command: tuple[str, ...]
) -> None:
    environment = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": "1"}

    status, [sentence, *rest] = refused(docker, image, environment, *command)

    assert status == 1
    assert sentence.startswith("PostgreSQL at 127.0.0.1:1 cannot be used as paymentuser (")
    assert sentence.endswith("): check the POSTGRES_* settings, or start one with `make infra`.")
    assert rest in ([], ["Application startup failed. Exiting."])


def test_a_wrong_setting_stops_the_start(docker: Docker) -> None:
    status, [sentence] = refused(docker, "api-gateway", {"RATE_LIMIT_PER_MINUTE": ""})

    assert status == 1
    assert sentence.startswith("RATE_LIMIT_PER_MINUTE: Input should be a valid integer")


def test_told_to_end_a_container_ends_by_itself(docker: Docker) -> None:
    """As the first process of a container, which has no default for SIGTERM."""
    container = docker("run", "-d", "--read-only", "api-gateway").stdout.strip()
    try:
        ready = "until python -m shared.probe 8000; do sleep 0.2; done"
        docker("exec", container, "timeout", "60", "sh", "-c", ready)
        docker("stop", "--time", "30", container)
        [found] = docker.inspect(container)
    finally:
        docker("rm", "-f", container)

    assert found["State"]["ExitCode"] in (0, 128 + signal.SIGTERM)
