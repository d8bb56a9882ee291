import ast
import os
import re
import runpy
import subprocess
import sys

import pytest

from infrastructure.embedded import command
from infrastructure.embedded.install import CHECKOUT

MAKEFILE = CHECKOUT / "Makefile"
PREFLIGHT = CHECKOUT / "scripts" / "preflight.py"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A make of its own, whether or not the tests themselves run under one."""
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    }
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_explains_every_target() -> None:
    [phony] = re.findall(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    targets = set(phony.split()) - {"python"}

    lines = make().stdout.splitlines()

    assert {line.split()[1] for line in lines} == targets
    assert all(len(line.split()) > 3 for line in lines)
    assert set(command.COMMANDS) <= targets


def test_a_machine_without_python_gets_one_sentence() -> None:
    done = make("up", "PYTHON=no-such-python")

    assert done.returncode != 0
    assert done.stdout == ""
    sentence, makes_own = done.stderr.splitlines()
    assert sentence.startswith("error: There is no no-such-python on this machine: install Python 3.11 to 3.14")
    assert makes_own.startswith("make: ***")


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ((2, 7), "Python 2.7 is too old"),
        ((3, 10), "Python 3.10 is too old"),
        ((3, 11), None),
        ((3, 14), None),
        ((3, 15), "Python 3.15 is newer than what the dependencies support"),
    ],
)
def test_only_the_supported_pythons_pass(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], sentence: str | None
) -> None:
    problem = runpy.run_path(str(PREFLIGHT))["problem"]
    monkeypatch.setattr(sys, "version_info", version)

    found = problem("up")

    assert found == sentence or found.startswith(f"{sentence}. Python 3.11 to 3.14 is needed")


def test_a_platform_without_engines_is_told_what_to_use_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(PREFLIGHT))
    monkeypatch.setattr(sys, "platform", "win32")

    assert "WSL2" in names["problem"]("up")


def test_very_old_pythons_can_read_the_preflight() -> None:
    tree = ast.parse(PREFLIGHT.read_text(), feature_version=(3, 4))

    too_new = (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.AsyncFunctionDef, ast.Nonlocal)
    assert not any(isinstance(node, too_new) for node in ast.walk(tree))
    assert not any(
        isinstance(node, ast.FunctionDef) and (node.returns or any(each.annotation for each in node.args.args))
        for node in ast.walk(tree)
    )
