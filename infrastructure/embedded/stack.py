"""The four engines as one thing that starts and stops."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from infrastructure.embedded import cleaning, environment, install, ports, processes
from infrastructure.embedded.broker import Broker
from infrastructure.embedded.engine import Engine
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.mongo import Mongo
from infrastructure.embedded.postgres import Postgres
from infrastructure.embedded.processes import Process
from infrastructure.embedded.valkey import Valkey
from infrastructure.embedded.waiting import wait_until

READY_LIMIT_SECONDS = 60.0
START_ATTEMPTS = 3
GUARDIAN_LIMIT_SECONDS = 60.0


def _silent(line: str) -> None:
    """Nobody is listening."""


class Stack:
    """PostgreSQL, Valkey, a Kafka-protocol broker and a MongoDB-protocol server, kept in `directory`.

    `ports`: "readme" takes the README's port where it is free, "free" never does. `detached=False` is for tests: the
    engines and everything they wrote go away with this process, however it ends. `durable=False` trades the data's
    safety in a crash of the machine for speed. An engine that `environ` names a server for is not started.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ports: Literal["readme", "free"] = "readme",
        detached: bool = True,
        durable: bool = True,
        environ: Mapping[str, str] = os.environ,
        report: Callable[[str], None] = _silent,
    ) -> None:
        self.directory = directory.resolve()
        self._ports = ports
        self._detached = detached
        self._durable = durable
        self._environ = environ
        self._report = report
        self._guardian: subprocess.Popen[bytes] | None = None
        self._choosing = threading.Lock()
        self._chosen: dict[str, int] = {}
        self.started: set[str] = set()
        """The engines that the last `start` had to start."""

    def start(self, engines: Collection[str] = environment.ENGINES) -> dict[str, str]:
        """Start those of `engines` that do not run, wait until all answer, and return the variables to reach them.

        Raises EmbeddedError, after stopping what this call started, when one of them does not come up.
        """
        self.started = set()
        embedded = [name for name in engines if environment.is_embedded(name, self._environ)]
        variables: dict[str, str] = {}
        for name in engines:
            if name not in embedded:
                variables |= environment.given(name, self._environ)
        if embedded:
            self.directory.mkdir(parents=True, exist_ok=True)
            servers = self._engines(install.ensure(self._report))
            if not self._detached:
                self._guard(servers)
            for found in self._start_all([servers[name] for name in embedded]):
                variables |= found
        return variables

    def stop(self) -> None:
        """Stop every engine; where the stack is not detached, remove its data too."""
        if self._guardian is not None:
            guardian, self._guardian = self._guardian, None
            guardian.communicate(timeout=GUARDIAN_LIMIT_SECONDS)  # closes the pipe and waits
        self.halt(environment.ENGINES)
        processes.reap()

    def halt(self, engines: Collection[str]) -> None:
        """Stop `engines` and keep their data; the next `start` uses the same ports again if it can."""
        with ThreadPoolExecutor(len(environment.ENGINES)) as pool:
            list(pool.map(lambda name: processes.stop(self.record(name)), engines))

    def process(self, engine: str) -> Process | None:
        """The process of `engine` if it runs."""
        return processes.running(self.record(engine))

    def record(self, engine: str) -> Path:
        """The file that says which process `engine` is."""
        return self.directory / cleaning.RECORDS / f"{engine}.json"

    def log(self, engine: str) -> Path:
        """The file with what `engine` says."""
        return self.directory / cleaning.LOGS / f"{engine}.log"

    def postgres_notes(self) -> Path | None:
        """A folder for what is known of PostgreSQL's data, which goes when that goes; None if it is not embedded."""
        if not environment.is_embedded("postgres", self._environ):
            return None
        engine = self._engines(install.Programs(self.directory))["postgres"]
        return engine.data_directories()[0] / "notes"

    def data_directories(self) -> list[Path]:
        """The folders that hold the engines' data."""
        programs = install.Programs(self.directory)  # of no interest here
        return [folder for engine in self._engines(programs).values() for folder in engine.data_directories()]

    def _engines(self, programs: install.Programs) -> dict[str, Engine]:
        data = self.directory / cleaning.DATA
        pointer = self.directory / cleaning.POSTGRES_POINTER
        engines: list[Engine] = [
            Postgres(programs, data / "postgres", pointer, self._environ, durable=self._durable),
            Valkey(programs, data / "valkey", self._environ, durable=self._durable),
            Broker(programs),
            Mongo(programs, data / "mongo", self._environ),
        ]
        return {engine.name: engine for engine in engines}

    def _guard(self, engines: Mapping[str, Engine]) -> None:
        """See to it that the engines end, and their data goes, with this process."""
        if self._guardian is not None:
            return
        outside = [folder for each in engines.values() for folder in each.data_directories()]
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", "infrastructure.embedded.guardian", str(self.directory), *map(str, outside)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=install.CHECKOUT,
            start_new_session=True,
        )

    def _start_all(self, engines: list[Engine]) -> list[dict[str, str]]:
        try:
            with ThreadPoolExecutor(len(engines)) as pool:
                return list(pool.map(self._start_one, engines))
        except BaseException:  # a Ctrl-C too: nothing stays half-started
            self.halt(self.started)
            raise

    def _start_one(self, engine: Engine) -> dict[str, str]:
        process = self.process(engine.name)
        if process is None:
            process = self._launch(engine)
        elif not wait_until(lambda: engine.answers(process.port), READY_LIMIT_SECONDS):
            raise EmbeddedError(f"{engine.title} runs as process {process.pid} but does not answer: stop it first.")
        engine.finish(process.port)
        self._report(f"{engine.name}: ready on {ports.LOOPBACK}:{process.port}")
        return engine.variables(process.port)

    def _launch(self, engine: Engine) -> Process:
        """Start `engine`, again on another port when a stranger took the port first, and wait until it answers."""
        engine.prepare()
        self.started.add(engine.name)
        for _ in range(START_ATTEMPTS):
            process = processes.start(
                engine.command(port := self._choose_port(engine)),
                record=self.record(engine.name),
                log=self.log(engine.name),
                port=port,
                environment=engine.environment(),
                directory=Path("/"),  # which every account may enter
                account=engine.account,
                stop_signals=engine.stop_signals,
            )
            if self._comes_up(engine, process):
                return process
        log = self.log(engine.name)
        raise EmbeddedError(f"{engine.title} does not start: {processes.last_line(log)} (all of it in {log}).")

    def _comes_up(self, engine: Engine, process: Process) -> bool:
        """True once `process` answers, False when it ends before; raises EmbeddedError when it does neither."""
        if not wait_until(
            lambda: not processes.is_running(process) or engine.answers(process.port), READY_LIMIT_SECONDS
        ):
            limit = f"{READY_LIMIT_SECONDS:.0f} s"
            raise EmbeddedError(f"{engine.title} does not answer within {limit}: see {self.log(engine.name)}.")
        return processes.is_running(process)

    def _choose_port(self, engine: Engine) -> int:
        """The port it had, if it died and others still look for it there; the README's; or any."""
        preferred = []
        previous = processes.recorded(self.record(engine.name))
        if previous is not None:
            preferred.append(previous.port)
        if engine.name in self._chosen:
            preferred.append(self._chosen[engine.name])
        if self._ports == "readme":
            preferred.append(engine.usual_port)
        with self._choosing:
            taken = set(self._chosen.values()) - {self._chosen.get(engine.name)}
            self._chosen[engine.name] = ports.choose(port for port in preferred if port not in taken)
            return self._chosen[engine.name]
