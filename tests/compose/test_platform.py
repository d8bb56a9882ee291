"""`docker-compose up -d` and what follows, in the order of the file: each test goes on where the last one ended."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from shared.settings import ROOT
from tests.compose.engine import KRAFT, Docker, Stack
from tests.compose.people import PASSWORD, Customer, new_customer

GATEWAY: Final = "http://localhost:8000"
WITHIN_SECONDS: Final = 60.0
ONCE: Final = {
    "postgres-logins",
    "grafana-password",
    "user-service-migrations",
    "wallet-service-migrations",
    "transaction-service-migrations",
    "payment-gateway-migrations",
    "notification-service-migrations",
}
OURS: Final = {
    "api-gateway",
    "user-service",
    "wallet-service",
    "transaction-service",
    "payment-gateway",
    "notification-service",
    "reconciler",
}


def eventually(look: Callable[[], Any], limit_seconds: float = WITHIN_SECONDS) -> Any:
    """The first truthy answer of `look`; fails with the last one when there is none in time."""
    ends_at = time.monotonic() + limit_seconds
    while not (found := look()):
        assert time.monotonic() < ends_at, f"not within {limit_seconds} s; last seen: {found!r}"
        time.sleep(0.5)
    return found


def health() -> dict[str, Any]:
    answer = httpx.get(f"{GATEWAY}/health", timeout=10)
    found: dict[str, Any] = answer.json()
    assert answer.status_code == 200, found
    return found


def assert_well() -> None:
    """The platform is well at once: nobody has to wait."""
    found = health()
    assert found["status"] == "ok", found


def not_as_they_should_be(stack: Stack) -> dict[str, Any]:
    """Containers that have not ended well, where they should, or are not healthy."""
    states = {name: each["State"] for name, each in stack.containers().items()}
    return {
        name: state
        for name, state in states.items()
        if (state["Status"], state["ExitCode"]) != ("exited", 0)
        if name in ONCE or state.get("Health", {}).get("Status") != "healthy"
    }


def assert_books_add_up(stack: Stack) -> None:
    done = stack.compose("exec", "-T", "reconciler", "python", "-m", "ledger_reconciler", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def subjects_on_kafka(topic: str, wanted: str) -> set[str]:
    """What events of this topic are about, as this machine reads them on the README's port, until `wanted` came."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers="localhost:9092", group_id=None, auto_offset_reset="earliest"
    )
    await consumer.start()
    found: set[str] = set()
    ends_at = time.monotonic() + WITHIN_SECONDS
    try:
        while wanted not in found and time.monotonic() < ends_at:
            batches = await consumer.getmany(timeout_ms=500)
            found |= {json.loads(record.value)["subject"] for records in batches.values() for record in records}
    finally:
        await consumer.stop()
    return found


@pytest.fixture(scope="module")
def customer(stack: Stack) -> Customer:
    """Somebody who is there from the first `up` to the last."""
    assert stack
    customer = new_customer(GATEWAY)
    customer.deposit("100.00")
    return customer


def test_up_returns_when_the_platform_is_well(stack: Stack) -> None:
    stack.up("--build")

    assert_well()
    eventually(lambda: not not_as_they_should_be(stack))
    assert set(stack.containers()) >= ONCE | OURS


def test_only_the_gateway_listens_beyond_this_machine(stack: Stack) -> None:
    published = {
        (name, binding["HostIp"])
        for name, each in stack.containers().items()
        for bindings in (each["NetworkSettings"]["Ports"] or {}).values()
        for binding in bindings or []
    }

    assert {name for name, address in published if address != "127.0.0.1"} == {"api-gateway"}
    assert {name for name, _ in published} > OURS


def test_our_containers_can_write_nothing_but_their_scratch(stack: Stack) -> None:
    for service in OURS:
        attempt = "touch /app/x /opt/venv/x 2>/dev/null; touch /tmp/x && echo scratch; id -u"
        done = stack.compose("exec", "-T", service, "sh", "-c", attempt)
        assert done.stdout.split() == ["scratch", "10001"], service
        [found] = stack.docker.inspect(stack.containers()[service]["Id"])
        assert found["HostConfig"]["ReadonlyRootfs"], service


def test_a_login_uses_its_own_schema_and_no_other(stack: Stack) -> None:
    own = stack.sql("select count(*) from users.users", user="user_service")
    strange = stack.sql("select count(*) from wallets.accounts", user="user_service")
    made = stack.sql("create table users.mine (id int)", user="user_service")
    roles = stack.sql("select usename from pg_stat_activity where application_name like '%-service'").stdout.split()

    assert own.returncode == 0, own.stderr
    assert "permission denied for schema wallets" in strange.stderr
    assert "permission denied for schema users" in made.stderr
    assert "user_service" in roles
    assert "paymentuser" not in roles


def test_the_readmes_sample_calls_answer_as_documented(stack: Stack) -> None:
    assert stack
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/integration/test_samples.py"],
        cwd=ROOT,
        env=os.environ | {"TEST_GATEWAY_URL": GATEWAY},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert_books_add_up(stack)


async def test_kafka_answers_at_both_names(stack: Stack, customer: Customer) -> None:
    assert customer.user_id in await subjects_on_kafka("users.events", customer.user_id)

    topics = stack.compose("exec", "-T", "kafka", "kafka-topics", "--bootstrap-server", "kafka:29092", "--list")

    assert {"users.events", "wallets.events", "transactions.events"} <= set(topics.stdout.split())


def test_prometheus_sees_everything(stack: Stack) -> None:
    assert stack

    def all_up() -> bool:
        answer = httpx.get("http://localhost:9090/api/v1/targets", timeout=10).json()
        found = [target["health"] for target in answer["data"]["activeTargets"]]
        return len(found) == 9 and set(found) == {"up"}

    eventually(all_up)


def test_told_to_end_a_service_answers_what_it_has_begun(stack: Stack) -> None:
    container = stack.containers()["user-service"]["Id"]
    body = json.dumps({"email": "nobody@example.com", "password": PASSWORD}).encode()
    head = (
        "POST /users/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def takes_nothing_new() -> bool:
        try:
            httpx.get("http://localhost:8001/health/live", timeout=2)
        except httpx.TransportError:
            return True
        return False

    def has_ended() -> Any:
        state = stack.containers()["user-service"]["State"]
        return None if state["Running"] else state

    with socket.create_connection(("127.0.0.1", 8001), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        stack.docker("kill", "-s", "TERM", container)
        eventually(takes_nothing_new)
        connection.sendall(body)
        answer = connection.recv(4096)
    ended = eventually(has_ended)

    assert answer.startswith(b"HTTP/1.1 401 ")
    assert ended["ExitCode"] in (0, 128 + signal.SIGTERM)
    stack.up()
    assert_well()


def test_after_down_and_up_everything_is_still_there(stack: Stack, customer: Customer) -> None:
    stack.down()
    assert stack.containers() == {}
    stack.up()

    assert_well()
    assert customer.balance() == "100.00"  # the session outlives it, too
    customer.deposit("1.00")
    assert customer.balance() == "101.00"
    assert_books_add_up(stack)


def test_a_schema_behind_the_code_stops_the_start(stack: Stack) -> None:
    head = stack.sql("select version_num from users.alembic_version").stdout.strip()
    assert stack.sql("update users.alembic_version set version_num = '0001'").returncode == 0
    before = stack.sql("select * from pg_tables where schemaname = 'users' order by 1, 2").stdout

    done = stack.compose("run", "--rm", "--no-deps", "-T", "user-service", check=False)

    assert done.returncode == 1
    assert "The schema users is not at this code's revision" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    failed = stack.compose("run", "--rm", "--no-deps", "-T", "user-service-migrations", check=False)
    assert failed.returncode == 1
    assert "A migration in user-service failed and was rolled back: column" in failed.stderr
    assert stack.sql("select * from pg_tables where schemaname = 'users' order by 1, 2").stdout == before
    assert stack.sql("select version_num from users.alembic_version").stdout == "0001\n"
    assert stack.sql(f"update users.alembic_version set version_num = '{head}'").returncode == 0


def test_with_the_readmes_env_file_it_is_the_same(stack: Stack, customer: Customer) -> None:
    stack.down()
    Stack(stack.docker, stack.project, env_file=".env.example").up()

    assert_well()
    assert customer.balance() == "101.00"


async def test_kafka_4_needs_no_zookeeper(stack: Stack, customer: Customer) -> None:
    stack.down()
    kraft = Stack(stack.docker, stack.project, KRAFT)
    kraft.up()

    eventually(lambda: health()["status"] == "ok")
    assert "zookeeper" not in kraft.containers()
    someone = new_customer(GATEWAY)
    assert someone.user_id in await subjects_on_kafka("users.events", someone.user_id)
    customer.log_in()
    assert customer.balance() == "101.00"
    assert_books_add_up(kraft)


def test_outside_development_it_runs_with_secrets_of_ones_own_only(stack: Stack, tmp_path: Path) -> None:
    stack.down("--volumes")
    file = tmp_path / "env"
    file.write_text("ENVIRONMENT=production\n")
    production = Stack(stack.docker, stack.project, env_file=str(file))

    assert production.compose("up", "-d", check=False, limit_seconds=300).returncode != 0
    said = production.compose("logs", "--no-log-prefix", "grafana-password", "wallet-service-migrations").stdout
    assert set(said.splitlines()) == {
        "GRAFANA_PASSWORD must be set to a password of your own when ENVIRONMENT is production.",
        "JWT_SECRET_KEY must be set to a secret of at least 32 bytes of your own when ENVIRONMENT is production.",
    }

    production.down("--volumes")
    with file.open("a") as more:
        more.writelines(f"{name}={secrets.token_hex(32)}\n" for name in own_secrets())
        more.write("MAIL_FROM=payments@bank.example\nSMS_PROVIDER=none\n")
    production.up()

    assert_well()
    someone = new_customer(GATEWAY)
    someone.deposit("100.00")
    assert someone.balance() == "100.00"
    assert_books_add_up(production)


def own_secrets() -> set[str]:
    """The variables of the compose file that hold a secret, less the keys for tokens of another kind."""
    named = set(re.findall(r"\$\{(\w+(?:PASSWORD|SECRET_KEY)):-", (ROOT / "docker-compose.yml").read_text()))
    assert {"JWT_SECRET_KEY", "POSTGRES_PASSWORD", "MONGO_PASSWORD", "REDIS_PASSWORD"} <= named
    return named


def test_the_engines_alone_serve_for_local_development(stack: Stack, docker: Docker) -> None:
    stack.down("--volumes")
    stack.compose("up", "postgres", "mongodb", "redis", "kafka", "-d", limit_seconds=300)
    assert set(stack.containers()) == {"postgres", "mongodb", "redis", "kafka", "zookeeper"}
    service = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "main:app", "--port", "8001"],
        cwd=ROOT / "services" / "user-service",
        env=os.environ | {"ENV_FILE": str(ROOT / ".env.example")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def state() -> Any:
            try:
                answer = httpx.get("http://localhost:8001/health", timeout=5).json()
            except httpx.TransportError:
                return None
            return answer if answer["status"] == "ok" else None

        found = eventually(state)
    finally:
        service.terminate()
        service.wait(timeout=30)

    assert found["dependencies"] == {"postgres": "up", "redis": "up", "kafka": "up", "mongodb": "up"}
