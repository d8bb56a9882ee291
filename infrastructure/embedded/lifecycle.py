"""The whole platform on this machine: up, down, and what of it runs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from infrastructure.embedded import cleaning, environment, locks, ports, processes, services
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.processes import Process
from infrastructure.embedded.services import SERVICES, Service
from infrastructure.embedded.stack import Stack
from infrastructure.embedded.waiting import wait_until

READY_LIMIT_SECONDS = 60.0
REPLAYED = "24h"
REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of `make status`."""

    name: str
    state: str
    pid: int | None
    where: str


class Platform:
    """The engines of `stack` and the services of `root`, each started detached from this process."""

    def __init__(
        self,
        root: Path,
        stack: Stack,
        *,
        python: Path,
        environ: Mapping[str, str],
        report: Callable[[str], None],
        services_: Sequence[Service] = SERVICES,
        ready_limit_seconds: float = READY_LIMIT_SECONDS,
    ) -> None:
        self._root = root
        self._stack = stack
        self._python = python
        self._environ = environ
        self._report = report
        self._services = services_
        self._ready_limit_seconds = ready_limit_seconds
        self._started: list[Service] = []
        self._failed = threading.Event()

    def up(self) -> bool:
        """Start what does not run, and wait until everything is ready; False when everything was already.

        Raises EmbeddedError, after stopping again what this call started, when something does not come up.
        """
        with self._locked():
            self._check_ports()
            variables = self._engines()
            inherited = {**self._environ, **variables, "ENV_FILE": ""}
            try:
                self._start_services(inherited)
                self._replay(inherited)
            except BaseException:  # a Ctrl-C too: nothing stays half-started
                self._stop_services(self._started)
                self._stack.halt(self._stack.started)
                raise
            return bool(self._stack.started or self._started)

    def infra(self) -> bool:
        """Start the engines alone; False when they all ran."""
        with self._locked():
            self._engines()
            return bool(self._stack.started)

    def down(self) -> bool:
        """Stop the services, which finish what they have begun, then the engines; False when nothing ran."""
        with self._locked():
            stopped = self._stop_services(self._services)
            processes.stop(self._stack.record(REPLAY))
            engines = [name for name in environment.ENGINES if self._stack.process(name)]
            self._stack.halt(environment.ENGINES)
            for name in (*stopped, *engines):
                self._report(f"{name}: stopped")
            (self._stack.directory / cleaning.ENVIRONMENT).unlink(missing_ok=True)
            return bool(stopped or engines)

    def remove_data(self) -> None:
        """Remove everything the engines keep; the platform must be down."""
        with self._locked():
            cleaning.remove(self._stack.directory, self._stack.data_directories())

    def status(self) -> list[Line]:
        """What runs, engines first."""
        lines = []
        for name in environment.ENGINES:
            process = self._stack.process(name)
            if not environment.is_embedded(name, self._environ):
                lines.append(Line(name, "yours", None, self._environ[environment.HOSTS[name]]))
            else:
                where = f"{ports.LOOPBACK}:{process.port}" if process else ""
                lines.append(_line(name, process, ready=True, where=where))
        for service in self._services:
            process = self._process(service)
            ready = process is not None and services.is_ready(process.port)
            lines.append(_line(service.name, process, ready=ready, where=self.url(service) if process else ""))
        return lines

    def url(self, service: Service) -> str:
        """Where a person reaches the service, or would if it ran."""
        process = self._process(service)
        return services.url(process.port) if process else service.url

    def logs(self) -> list[Path]:
        """The logs there are of what runs; those of installing and migrating are told when something fails."""
        logs = sorted((self._stack.directory / cleaning.LOGS).glob("*.log"))
        return [log for log in logs if not log.name.startswith("install") and not log.stem.endswith("-migration")]

    def _locked(self) -> AbstractContextManager[None]:
        return locks.exclusive(
            self._stack.directory / "lock",
            busy=lambda: self._report("another command is at work on the platform: waiting for it"),
        )

    def _process(self, service: Service) -> Process | None:
        return processes.running(self._stack.record(service.name))

    def _check_ports(self) -> None:
        for service in self._services:
            if service.port_is_fixed and self._process(service) is None and not ports.is_free(service.port):
                raise EmbeddedError(
                    f"Port {service.port}, which {service.name} needs, is taken by another program: "
                    f"stop that one first (`lsof -i :{service.port}` names it; another checkout's platform ends "
                    "with `make down` there)."
                )

    def _engines(self) -> dict[str, str]:
        variables = self._stack.start()
        environment.write(self._stack.directory / cleaning.ENVIRONMENT, variables)
        return variables

    def _start_services(self, inherited: Mapping[str, str]) -> None:
        """Start all services at once; the first failure ends the wait for the others."""
        self._failed.clear()
        failures: list[BaseException] = []

        def attempt(service: Service) -> None:
            try:
                self._start_service(service, inherited)
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)
                self._failed.set()

        try:
            with ThreadPoolExecutor(len(self._services)) as pool:
                list(pool.map(attempt, self._services))
        except BaseException:
            self._failed.set()
            raise
        if failures:
            raise failures[0]

    def _start_service(self, service: Service, inherited: Mapping[str, str]) -> None:
        folder = self._root / service.folder
        process = self._process(service)
        if process is None:
            if services.has_migrations(folder):
                self._migrate(service, folder, inherited)
            if self._failed.is_set():
                return
            port = service.port if service.port_is_fixed else ports.choose([service.port])
            process = processes.start(
                service.command(self._python, port),
                record=self._stack.record(service.name),
                log=self._stack.log(service.name),
                port=port,
                environment=inherited,
                directory=folder,
                stop_signals=services.DRAIN,
            )
            self._started.append(service)
        self._await_ready(service, process)

    def _migrate(self, service: Service, folder: Path, inherited: Mapping[str, str]) -> None:
        """Migrate `service`, unless these very migrations are known to be in the embedded PostgreSQL's data.

        Five runs of Alembic that find nothing to do would be most of the time that `up` takes.
        """
        notes = self._stack.postgres_notes()
        note = notes / f"schema-of-{service.name}" if notes else None
        version = services.schema_version(folder, inherited)
        if note is not None and note.exists() and note.read_text() == version:
            self._report(f"{service.name}: schema is up to date")
            return
        log = self._stack.log(f"{service.name}-migration")
        services.migrate(service.name, folder, self._python, inherited, log)
        if note is not None:
            note.parent.mkdir(exist_ok=True)
            note.write_text(version)
        self._report(f"{service.name}: migrated")

    def _await_ready(self, service: Service, process: Process) -> None:
        log = self._stack.log(service.name)
        wait_until(
            lambda: self._failed.is_set() or not processes.is_running(process) or services.is_ready(process.port),
            self._ready_limit_seconds,
        )
        if self._failed.is_set():
            return
        if not processes.is_running(process):
            raise EmbeddedError(f"{service.name} ended at once: {services.error_in(log)} (all of it in {log}).")
        if not services.is_ready(process.port):
            limit = f"{self._ready_limit_seconds:.0f} s"
            raise EmbeddedError(f"{service.name} runs but is not healthy after {limit}: see {log}.")
        self._report(f"{service.name}: ready on {services.url(process.port)}")

    def _replay(self, inherited: Mapping[str, str]) -> None:
        """Have the events of the last day published again where the broker has just begun, with nothing in memory.

        Consumers may not have come to some of them; what they have handled has no second effect. Nobody waits for it.
        """
        if "kafka" not in self._stack.started:
            return
        log = self._stack.log(REPLAY)
        processes.start(
            [str(self._python), "-m", "shared.replay", "all", REPLAYED],
            record=self._stack.record(REPLAY),
            log=log,
            port=0,
            environment=inherited,
            directory=self._root,
        )
        self._report(f"kafka: begins empty, and gets the events of the last {REPLAYED} from the audit")

    def _stop_services(self, chosen: Sequence[Service]) -> list[str]:
        with ThreadPoolExecutor(len(self._services)) as pool:
            stopped = list(pool.map(lambda each: processes.stop(self._stack.record(each.name)), chosen))
        return [service.name for service, did in zip(chosen, stopped, strict=True) if did]


def _line(name: str, process: Process | None, *, ready: bool, where: str) -> Line:
    if process is None:
        return Line(name, "stopped", None, where)
    return Line(name, "running" if ready else "not healthy", process.pid, where)
