"""What must hold of the Dockerfiles; no engine is needed to see it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from infrastructure.embedded.services import SERVICES
from shared.settings import ROOT

# The README builds all six by a loop over services/$service/Dockerfile.
DOCKERFILES: Final = {service.name: ROOT / "services" / service.name / "Dockerfile" for service in SERVICES} | {
    "reconciler": ROOT / "reconciler" / "Dockerfile"
}
PORTS: Final = {service.name: service.port for service in SERVICES}
FOLDERS: Final = {service.name: service.folder for service in SERVICES}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_dockerfile_builds_on_any_engine(name: str) -> None:
    file = DOCKERFILES[name]
    text = file.read_text()

    assert not file.is_symlink()
    assert not re.search(r"^# *syntax=|<<|--link|--mount", text, re.MULTILINE)
    assert [line for line in text.splitlines() if line.startswith("FROM ")] == [
        "FROM python:3.11-slim AS build",
        "FROM python:3.11-slim",
    ]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_container_runs_as_nobody_and_says_how_it_is(name: str) -> None:
    _, _, last_stage = DOCKERFILES[name].read_text().rpartition("FROM ")
    port = PORTS[name]

    assert "\nUSER 10001:10001\n" in last_stage
    assert f"\nEXPOSE {port}\n" in last_stage
    assert f'CMD ["python", "-m", "shared.probe", "{port}"]\n' in last_stage
    assert last_stage.endswith(f'\nCMD ["python", "-m", "shared.serve", "--port", "{port}"]\n')
    assert f"\nWORKDIR /app/{FOLDERS[name]}\n" in last_stage


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_installs_what_runs_in_the_versions_of_the_constraints(name: str) -> None:
    file = f"{FOLDERS[name]}/requirements.txt"
    asked = [sys.executable, "infrastructure/images/requirements.py", file]
    installed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert "-c constraints.txt" in DOCKERFILES[name].read_text()
    assert any(line.startswith("uvicorn") for line in installed)
    assert not {line for line in installed if line.startswith(("hypothesis", "openapi-spec", "-", "#"))}
    assert ("alembic" in installed) == (ROOT / FOLDERS[name] / "migrations").exists()


def test_what_is_not_named_does_not_go_into_a_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    allowed = {rule[1:] for rule in rules if rule[0] == "!"}
    copied = {
        source
        for file in DOCKERFILES.values()
        for line in file.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }

    assert rules[0] == "*"
    assert {source for source in copied if not _is_within(source, allowed)} == set()
    assert not {name for name in allowed if not (ROOT / name).exists()}


def _is_within(source: str, allowed: set[str]) -> bool:
    return any(Path(source).is_relative_to(name) for name in allowed)
