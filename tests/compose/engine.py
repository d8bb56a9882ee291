"""The Docker engine of the tests, and the stacks that they start on it."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shared.settings import ROOT

COMMAND_LIMIT_SECONDS: Final = 120.0
UP_LIMIT_SECONDS: Final = 600.0  # with builds
ENGINE_LIMIT_SECONDS: Final = 600.0
# For machines that reach no image registry: makes an engine, and images of the same programs.
OWN_ENGINE: Final = ROOT.parent / "shared" / "tools" / "container-engine.sh"

KRAFT: Final = ("docker-compose.yml", "docker-compose.kraft.yml")

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Docker:
    """The docker command with the environment that leads to an engine."""

    environment: Mapping[str, str] = field(repr=False)
    own_engine: Path | None = None

    def run(self, *command: str, limit_seconds: float = COMMAND_LIMIT_SECONDS, check: bool = True) -> Done:
        """Run a command in the repository's root; what it wrote, standard error last."""
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_seconds,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def __call__(self, *arguments: str, **options: Any) -> Done:
        return self.run("docker", *arguments, **options)

    def inspect(self, *names: str) -> list[dict[str, Any]]:
        """What the engine knows of these."""
        found: list[dict[str, Any]] = json.loads(self("inspect", *names).stdout) if names else []
        return found

    def make_images(self, images: Sequence[str]) -> None:
        """See to it that the images of others are there, where they cannot be pulled."""
        if self.own_engine:
            others = sorted({image for image in images if not image.startswith("payment-system/")})
            self.run(str(self.own_engine), "standins", *others, limit_seconds=ENGINE_LIMIT_SECONDS)


def find(environ: Mapping[str, str]) -> Docker | None:
    """The engine that answers, else one that is started here; None where neither can be."""
    if shutil.which("docker", path=environ.get("PATH")) and _answers(environ):
        return Docker(environ)
    script = Path(environ.get("CONTAINER_ENGINE") or OWN_ENGINE)
    if not script.exists():
        return None
    subprocess.run([script, "up"], env=dict(environ), timeout=ENGINE_LIMIT_SECONDS, check=True)
    told = subprocess.run(
        ["bash", "-c", 'eval "$("$0" env)" && env -0', script],
        env=dict(environ),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return Docker(dict(line.split("=", 1) for line in told.split("\0") if line), script)


def _answers(environ: Mapping[str, str]) -> bool:
    return subprocess.run(["docker", "info"], env=dict(environ), capture_output=True, check=False).returncode == 0


@dataclass(frozen=True)
class Stack:
    """A compose project of the tests' own: neither its containers nor its volumes are a developer's."""

    docker: Docker
    project: str
    files: tuple[str, ...] = ("docker-compose.yml",)
    env_file: str = os.devnull  # else compose would read a developer's .env

    def compose(self, *arguments: str, **options: Any) -> Done:
        """Run docker compose on these files."""
        files = [part for file in self.files for part in ("-f", file)]
        command = ["compose", "-p", self.project, "--env-file", self.env_file, *files, *arguments]
        return self.docker(*command, **options)

    def up(self, *arguments: str) -> None:
        """`docker-compose up -d`."""
        self.docker.make_images(self.compose("config", "--images").stdout.split())
        self.compose("up", *arguments, "-d", limit_seconds=UP_LIMIT_SECONDS)

    def down(self, *arguments: str) -> None:
        """`docker-compose down`."""
        self.compose("down", "--remove-orphans", *arguments)

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine knows of each service's container."""
        ours = f"label=com.docker.compose.project={self.project}"
        ids = self.docker("ps", "-aq", "--filter", ours).stdout.split()
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in self.docker.inspect(*ids)}

    def sql(self, query: str, user: str = "paymentuser") -> Done:
        """Ask PostgreSQL as this user; the answer without frills."""
        ask = ("psql", "-XAt", "-h", "127.0.0.1", "-U", user, "-d", "payment_system", "-c", query)
        return self.compose("exec", "-T", "postgres", *ask, check=False)
