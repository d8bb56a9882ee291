"""The whole platform on premises of its own: durable engines, and the six services as processes, as in `make up`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg

from infrastructure.embedded import ports
from infrastructure.embedded.environment import ENGINES, is_embedded
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.install import CHECKOUT
from infrastructure.embedded.lifecycle import Platform
from infrastructure.embedded.services import GATEWAY, RECONCILER, SERVICES, Service
from infrastructure.embedded.stack import Stack

RECONCILE_LIMIT_SECONDS = 300.0
ENGINE_TITLES = {"postgres": "PostgreSQL", "redis": "Valkey", "kafka": "broker", "mongodb": "MongoDB"}
SERVED = tuple(service for service in SERVICES if service is not RECONCILER)


@dataclass(frozen=True, slots=True)
class Premises:
    """A platform that runs; `pids` are those of the services by name and of the engines by title, as it began."""

    directory: Path
    variables: Mapping[str, str]
    gateway_port: int
    pids: Mapping[str, int]
    stack: Stack
    platform: Platform

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        """A connection to all schemas, as the one who owns the database."""
        database = await asyncpg.connect(
            host=self.variables["POSTGRES_HOST"],
            port=int(self.variables["POSTGRES_PORT"]),
            user=self.variables["POSTGRES_USER"],
            password=self.variables["POSTGRES_PASSWORD"],
            database=self.variables["POSTGRES_DB"],
        )
        try:
            yield database
        finally:
            await database.close()

    def reconcile(self) -> tuple[bool, str]:
        """What `make reconcile` does: whether all the money adds up, and the report."""
        done = subprocess.run(
            [sys.executable, "-m", "ledger_reconciler"],
            cwd=CHECKOUT / RECONCILER.folder,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RECONCILE_LIMIT_SECONDS,
            check=False,
        )
        return done.returncode == 0, (done.stdout + done.stderr).strip()


@contextmanager
def premises(settings: Mapping[str, str], servers: Mapping[str, str] | None = None) -> Iterator[Premises]:
    """The platform on free ports in a folder of its own, its services told `settings`; nothing of it is left.

    `servers` are variables that lead to engines which run already.
    """
    servers = servers or {}
    with tempfile.TemporaryDirectory(prefix="payment-system-load-") as folder:
        stack = Stack(Path(folder), ports="free", detached=False, durable=True, environ=servers)
        try:
            variables = stack.start()
            found = _on_free_ports()
            urls = {f"{each.name.upper().replace('-', '_')}_URL": f"http://127.0.0.1:{each.port}" for each in found}
            told = {**urls, **settings, "ENV_FILE": ""}
            platform = Platform(
                CHECKOUT,
                stack,
                python=Path(sys.executable),
                environ={**os.environ, **told},
                report=lambda _: None,
                services_=found,
            )
            platform.up()
            try:
                pids = {each.name: pid_of(stack, each.name) for each in found}
                pids |= {ENGINE_TITLES[name]: pid_of(stack, name) for name in ENGINES if is_embedded(name, servers)}
                gateway = next(each for each in found if each.name == GATEWAY.name)
                yield Premises(stack.directory, {**variables, **told}, gateway.port, pids, stack, platform)
            finally:
                platform.down()
        finally:
            stack.stop()


def _on_free_ports() -> list[Service]:
    """The services, the gateway first, where nobody listens yet."""
    chosen: set[int] = set()
    while len(chosen) < len(SERVED):
        chosen.add(ports.choose([]))
    return [replace(service, port=port) for service, port in zip(reversed(SERVED), chosen, strict=True)]


def pid_of(stack: Stack, name: str) -> int:
    """The process of an engine or a service of `stack`; raises EmbeddedError when there is none."""
    process = stack.process(name)
    if process is None:
        raise EmbeddedError(f"{name} has ended.")
    return process.pid
