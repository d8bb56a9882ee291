"""The real servers: the PostgreSQL that is installed, Kafka and MongoDB by the scripts that start them."""

import os
import secrets
import signal
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from infrastructure.embedded import cleaning, environment, install
from infrastructure.embedded.broker import Broker
from infrastructure.embedded.engine import Engine
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.install import CHECKOUT, Programs
from infrastructure.embedded.mongo import Mongo
from infrastructure.embedded.ports import LOOPBACK, choose
from infrastructure.embedded.postgres import Postgres
from infrastructure.embedded.processes import StopSignal
from infrastructure.embedded.stack import Stack

Form = Literal["kraft", "zookeeper"]

POSTGRES_BIN: Final = Path("/usr/lib/postgresql/15/bin")  # where Debian and Ubuntu have it
REAL_STARTERS: Final = CHECKOUT.parent / "shared" / "tools"
FETCH_LIMIT_SECONDS: Final = 540.0
ASK_LIMIT_SECONDS: Final = 20.0
# A script leaves its server running. This process stays beside it, and ends it when it is told to end.
STAY: Final = """
trap 'exit 0' TERM
trap 'kill $! 2>/dev/null; "$0" purge' EXIT
"$0" up & wait $! || exit
while :; do sleep 1 & wait $!; done
"""
# What a script may need of the caller's environment beside what every engine gets.
HANDED_ON: Final = ("JAVA_HOME", "XDG_CACHE_HOME", "KAFKA_DIR", "MONGO_DIR")


class InstalledPostgres(Postgres):
    """The PostgreSQL of this machine, with texts in the order of a language, as servers that one rents have them."""

    locale = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")

    def __init__(self, binaries: Path, programs: Programs, data: Path, pointer: Path) -> None:
        super().__init__(programs, data, pointer, {}, durable=True)
        self._binaries = binaries

    def _binary(self, name: str) -> str:
        return str(self._binaries / name)

    def says(self, port: int) -> str:
        """What it is, and where."""
        version = subprocess.run([self._binary("postgres"), "--version"], capture_output=True, text=True, check=True)
        return f"{version.stdout.strip()} on {LOOPBACK}:{port}"


class ByScript(Engine):
    """A server by a script that knows `up`, `status`, `purge`, and `fetching` for its programs alone."""

    fetching: str
    stop_signals = (StopSignal(signal.SIGTERM, 40.0),)

    def __init__(self, script: Path, data: Path) -> None:
        self._script = script
        self._data = data

    def settings(self, port: int) -> dict[str, str]:
        """The variables that the script takes."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Fetch the programs where they are missing; raises EmbeddedError."""
        done = subprocess.run(
            [self._script, self.fetching],
            env={**self.environment(), **self.settings(self.usual_port)},
            stdout=subprocess.DEVNULL,
            timeout=FETCH_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode:
            raise EmbeddedError(f"{self._script} {self.fetching} ended with status {done.returncode}; see above.")

    def prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)

    def command(self, port: int) -> list[str]:
        given = [f"{name}={value}" for name, value in self.settings(port).items()]
        return ["env", *given, "bash", "-c", STAY, str(self._script)]

    def environment(self) -> dict[str, str]:
        return super().environment() | {name: os.environ[name] for name in HANDED_ON if name in os.environ}

    def says(self, port: int) -> str:
        """What it is and where, in the script's own words."""
        done = subprocess.run(
            [self._script, "status"],
            env={**self.environment(), **self.settings(port)},
            capture_output=True,
            text=True,
            timeout=ASK_LIMIT_SECONDS,
            check=False,
        )
        return done.stdout.rstrip().rpartition("\n")[2]


class RealKafka(ByScript, Broker):
    """One node of Apache Kafka, its own controller or with a ZooKeeper."""

    title = "Kafka"
    fetching = "jars"

    def __init__(self, script: Path, form: Form, data: Path) -> None:
        super().__init__(script, data)
        self._mode = "kraft" if form == "kraft" else "zk"

    def settings(self, port: int) -> dict[str, str]:
        return {"KAFKA_MODE": self._mode, "KAFKA_PORT": str(port), "KAFKA_DATA": str(self._data)}

    def command(self, port: int) -> list[str]:
        others = [f"{name}={choose([])}" for name in ("KAFKA_CONTROLLER_PORT", "KAFKA_ZOOKEEPER_PORT")]
        return ["env", *others, *super().command(port)]

    def variables(self, port: int) -> dict[str, str]:
        return super().variables(port) | {"KAFKA_PRODUCER_IDEMPOTENCE": "true"}


class RealMongo(ByScript, Mongo):
    """A server that speaks MongoDB's protocol, wants a login and has on disk whatever it has acknowledged."""

    fetching = "bin"

    def __init__(self, script: Path, data: Path) -> None:
        super().__init__(script, data)
        self._login = {"MONGO_USERNAME": "auditor", "MONGO_PASSWORD": secrets.token_urlsafe(16)}

    def settings(self, port: int) -> dict[str, str]:
        return {"MONGO_PORT": str(port), "MONGO_DATA": str(self._data)}

    def variables(self, port: int) -> dict[str, str]:
        login = {"MONGO_USER": self._login["MONGO_USERNAME"], "MONGO_PASSWORD": self._login["MONGO_PASSWORD"]}
        return environment.DEFAULTS["mongodb"] | {"MONGO_HOST": LOOPBACK, "MONGO_PORT": str(port)} | login

    def environment(self) -> dict[str, str]:
        return super().environment() | self._login  # no other account sees it there


@dataclass(frozen=True, slots=True)
class Places:
    """Where the programs of PostgreSQL and the scripts of the others are."""

    postgres: Path
    starters: Path

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Places":
        """What the environment names, or the usual places; raises EmbeddedError where something needed is missing."""
        found = cls(
            Path(environ.get("POSTGRES_BIN") or POSTGRES_BIN), Path(environ.get("REAL_STARTERS") or REAL_STARTERS)
        )
        needed = {
            "postgres": (
                found.postgres / "initdb",
                "Install PostgreSQL 15, name its bin folder by POSTGRES_BIN",
            ),
            "kafka": (found.kafka, "Name the folder of a script that starts Kafka by REAL_STARTERS"),
            "mongodb": (found.mongo, "Name the folder of a script that starts MongoDB by REAL_STARTERS"),
        }
        missing = [
            f"There is no {path}. {advice}, or a server by {environment.HOSTS[engine]}."
            for engine, (path, advice) in needed.items()
            if environment.is_embedded(engine, environ) and not path.exists()
        ]
        if missing:
            raise EmbeddedError("\n       ".join(missing))
        return found

    @property
    def kafka(self) -> Path:
        """The script that starts Kafka."""
        return self.starters / "kafka.sh"

    @property
    def mongo(self) -> Path:
        """The script that starts a MongoDB."""
        return self.starters / "mongo.sh"


class RealStack(Stack):
    """Real servers and a Valkey in `directory`, durable, on free ports; they end with this process."""

    def __init__(self, directory: Path, form: Form, places: Places, environ: Mapping[str, str]) -> None:
        super().__init__(directory, ports="free", detached=False, environ=environ)
        data = self.directory / cleaning.DATA
        self._kafka = RealKafka(places.kafka, form, data / "kafka")
        self._mongo = RealMongo(places.mongo, data / "mongo")
        self._binaries = places.postgres

    def start(self, engines: Collection[str] = environment.ENGINES) -> dict[str, str]:
        for engine in (self._kafka, self._mongo):  # one after the other: both may install a package
            if environment.is_embedded(engine.name, self._environ):
                engine.fetch()
        return super().start(engines)

    def describe(self) -> list[str]:
        """A line for each server: what it is, and where."""
        return [self._line(engine) for engine in self._engines(install.ensure()).values()]

    def _line(self, engine: Engine) -> str:
        process = self.process(engine.name)
        if process is None:
            named_by = environment.HOSTS[engine.name]
            return f"{engine.title}: {self._environ[named_by]}, which {named_by} names"
        if isinstance(engine, InstalledPostgres | ByScript):
            return engine.says(process.port)
        return f"{engine.title} on {LOOPBACK}:{process.port}"

    def _engines(self, programs: Programs) -> dict[str, Engine]:
        pointer = self.directory / cleaning.POSTGRES_POINTER
        postgres = InstalledPostgres(self._binaries, programs, self.directory / cleaning.DATA / "postgres", pointer)
        return super()._engines(programs) | {each.name: each for each in (postgres, self._kafka, self._mongo)}
