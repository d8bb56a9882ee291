import re
from pathlib import Path

import pytest

from infrastructure.embedded import virtualenv
from infrastructure.embedded.errors import EmbeddedError


class Builds:
    """Counts how often an environment was built; pip is asked for nothing, so that no network is needed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = directory / "environment"
        self.count = 0

    def ensure(self, install: tuple[str, ...] = ("--help",)) -> None:
        virtualenv.ensure(
            self.environment,
            "one",
            install=install,
            working_directory=self.directory,
            log=self.directory / "install.log",
            announce=self._announce,
            explain=lambda line: f"It failed: {line}.",
        )

    def _announce(self) -> None:
        self.count += 1


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Builds, str]:
    builds = Builds(tmp_path_factory.mktemp("environments"))
    with pytest.raises(EmbeddedError) as failure:
        builds.ensure(install=("--no-index", "nothing-like-this"))
    return builds, str(failure.value)


@pytest.fixture(scope="module")
def builds(failed: tuple[Builds, str]) -> Builds:
    builds = failed[0]
    assert not virtualenv.is_complete(builds.environment, "one")
    (builds.environment / "leftover").touch()
    builds.ensure()
    return builds


def test_what_pip_said_last_becomes_the_sentence(failed: tuple[Builds, str]) -> None:
    assert re.fullmatch(r"It failed: .*nothing-like-this.* is in .*install\.log\.", failed[1])


def test_an_installation_that_did_not_end_well_is_done_anew(builds: Builds) -> None:
    assert builds.count == 2
    assert not (builds.environment / "leftover").exists()
    assert virtualenv.is_complete(builds.environment, "one")


def test_a_complete_environment_is_left_alone(builds: Builds) -> None:
    builds.ensure()

    assert builds.count == 2


def test_an_environment_is_incomplete_when_moved_or_meant_for_other_requirements(builds: Builds) -> None:
    moved = builds.directory / "moved"

    assert not virtualenv.is_complete(builds.environment, "two")
    builds.environment.rename(moved)
    assert not virtualenv.is_complete(moved, "one")
    assert not virtualenv.is_complete(builds.environment, "one")

    moved.rename(builds.environment)


def test_an_environment_without_its_interpreter_is_incomplete(builds: Builds) -> None:
    python = builds.environment / "bin" / "python"
    target = python.readlink()
    python.unlink()
    python.symlink_to("/nowhere/python")

    assert not virtualenv.is_complete(builds.environment, "one")

    python.unlink()
    python.symlink_to(target)


def test_the_fingerprint_changes_with_the_content_and_the_name_of_a_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text("a==1\n")
    second.write_text("a==1\n")
    before = virtualenv.fingerprint([first])

    assert virtualenv.fingerprint([second]) != before
    first.write_text("a==2\n")
    assert virtualenv.fingerprint([first]) != before
