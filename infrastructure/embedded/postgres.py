"""PostgreSQL: its cluster, its account, its server and the role the services log in with."""

import os
import secrets
import shutil
import signal
import struct
import subprocess
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from infrastructure.embedded import processes
from infrastructure.embedded.accounts import digest, outside_directory, owned_directory, unprivileged
from infrastructure.embedded.engine import Engine, exchange, setting
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.install import CHECKOUT, Programs
from infrastructure.embedded.ports import LOOPBACK
from infrastructure.embedded.processes import Process, StopSignal

SUPERUSER = "postgres"
COMMAND_LIMIT_SECONDS = 60.0
PROTOCOL_3 = 196_608
MAX_CONNECTIONS = 200
LOCALE: tuple[str, ...] = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
# SIGTERM would wait for every client to leave.
FAST, IMMEDIATE = StopSignal(signal.SIGINT, 20.0), StopSignal(signal.SIGQUIT, 5.0)

ROLE_AND_DATABASE = r"""
\getenv login PAYMENT_LOGIN
\getenv password PAYMENT_PASSWORD
\getenv database PAYMENT_DATABASE
SELECT format('CREATE ROLE %I', :'login')
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'login') \gexec
ALTER ROLE :"login" LOGIN CREATEROLE CREATEDB PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'database', :'login')
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec
"""


class Postgres(Engine):
    """A PostgreSQL on 127.0.0.1 alone, with a password on every login.

    It runs under the caller's account, or, as it refuses root, under an unprivileged one in a folder outside the
    checkout; then `pointer` says where.
    """

    name = "postgres"
    title = "PostgreSQL"
    usual_port = 5432
    locale = LOCALE

    def __init__(
        self, programs: Programs, data: Path, pointer: Path, environ: Mapping[str, str], *, durable: bool
    ) -> None:
        self.account = unprivileged()
        self.stop_signals = (FAST, IMMEDIATE) if durable else (IMMEDIATE,)
        self._installed = programs.postgres_package
        self._pointer = pointer
        self._durable = durable
        self._data = outside_directory(CHECKOUT) / f"postgres-{digest(data)}" if self.account else data
        self._user = setting(environ, "POSTGRES_USER", "paymentuser")
        self._password = setting(environ, "POSTGRES_PASSWORD", "paymentpass")
        self._database = setting(environ, "POSTGRES_DB", "payment_system")
        if self._user == SUPERUSER:
            raise EmbeddedError("POSTGRES_USER=postgres is the embedded PostgreSQL's superuser: choose another name.")

    @property
    def _cluster(self) -> Path:
        return self._data / "cluster"

    @property
    def _password_file(self) -> Path:
        return self._data / "superuser-password"

    def prepare(self) -> None:
        if self.account:
            owned_directory(self._data, self.account)
            self._pointer.write_text(f"{self._data}\n")
        else:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self._cluster.exists():
            self._initialise()
        self._clear_lock()

    def command(self, port: int) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": str(MAX_CONNECTIONS),
            "shared_buffers": "64MB",
            "autovacuum_naptime": "10s",  # an outbox leaves as many dead rows as events: 1 MB with 1,000 of them
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._binary("postgres"), "-D", str(self._cluster), *options]

    def answers(self, port: int) -> bool:
        body = struct.pack(">i", PROTOCOL_3) + b"user\0postgres\0\0"
        # 'R' asks for the password; while it starts it sends an 'E'.
        return exchange(port, struct.pack(">i", len(body) + 4) + body, 1).startswith(b"R")

    def finish(self, port: int) -> None:
        address = ["-h", LOOPBACK, "-p", str(port), "-U", SUPERUSER, "-d", "postgres"]
        self._run(
            [self._binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", *address],
            purpose="setting up the database",
            script=ROLE_AND_DATABASE,
            secrets_={
                "PGPASSWORD": self._password_file.read_text().strip(),
                "PAYMENT_LOGIN": self._user,
                "PAYMENT_PASSWORD": self._password,
                "PAYMENT_DATABASE": self._database,
            },
        )

    def variables(self, port: int) -> dict[str, str]:
        return {
            "POSTGRES_HOST": LOOPBACK,
            "POSTGRES_PORT": str(port),
            "POSTGRES_USER": self._user,
            "POSTGRES_PASSWORD": self._password,
            "POSTGRES_DB": self._database,
        }

    def data_directories(self) -> list[Path]:
        return [self._data]

    def _binary(self, name: str) -> str:
        return str(self._package / "pginstall" / "bin" / name)

    def _initialise(self) -> None:
        """Make the cluster, under another name until it is complete."""
        partial = self._data / "cluster.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self._password_file.unlink(missing_ok=True)
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24))
        if self.account:
            os.chown(self._password_file, self.account.uid, self.account.gid)
        access = ["--auth=scram-sha-256", f"--username={SUPERUSER}", f"--pwfile={self._password_file}"]
        sync = [] if self._durable else ["--no-sync"]
        self._run(
            [self._binary("initdb"), "-D", str(partial), "--no-instructions", *self.locale, *access, *sync],
            purpose="making the data folder",
        )
        partial.rename(self._cluster)

    def _clear_lock(self) -> None:
        """Make the cluster's lock file go, which is there when its last server did not stop in order.

        A server that still runs although its record is lost is stopped. One that is gone may have left its pid to
        another process of this account, which PostgreSQL would take for a server.
        """
        lock = self._cluster / "postmaster.pid"
        try:
            pid = lock.read_text().split("\n", 1)[0]
        except FileNotFoundError:
            return
        if pid.isdigit() and _is_server_of(int(pid), self._cluster):
            processes.end(Process(int(pid), processes.began(int(pid)) or "", 0, self.stop_signals))
        lock.unlink(missing_ok=True)

    @cached_property
    def _package(self) -> Path:
        """Where the binaries are; a copy outside the checkout when the account cannot enter the checkout."""
        if self.account is None:
            return self._installed
        try:
            version = [str(self._installed / "pginstall" / "bin" / "postgres"), "--version"]
            self._run(version, purpose="looking at its binaries")
        except (EmbeddedError, PermissionError):
            return _copied(self._installed, outside_directory(CHECKOUT) / f"binaries-{digest(self._installed)}")
        return self._installed

    def _run(
        self,
        command: Sequence[str],
        *,
        purpose: str,
        script: str = "",
        secrets_: Mapping[str, str] | None = None,
    ) -> None:
        done = subprocess.run(
            command,
            input=script,
            capture_output=True,
            text=True,
            cwd="/",
            env={**self.environment(), **(secrets_ or {})},
            user=self.account.uid if self.account else None,
            group=self.account.gid if self.account else None,
            extra_groups=[] if self.account else None,
            timeout=COMMAND_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
            raise EmbeddedError(f"PostgreSQL failed while {purpose}: {reason or f'exit status {done.returncode}'}.")


def _copied(package: Path, copy: Path) -> Path:
    """`package` and the libraries beside it, in the folder `copy`, where every account may read them."""
    if not copy.exists():
        partial = copy.with_name(f"{copy.name}.partial-{os.getpid()}")
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, partial / folder.name)
        for path in (partial, *partial.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        try:
            partial.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(partial)
    return copy / package.name


def _is_server_of(pid: int, cluster: Path) -> bool:
    """True when process `pid` works in the data folder `cluster`, as its server does."""
    try:
        return (Path("/proc") / str(pid) / "cwd").resolve(strict=True) == cluster.resolve()
    except OSError:
        pass
    answer = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return f"-D {cluster} " in answer
