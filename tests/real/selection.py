"""A pytest plugin: of what was collected, only the tests that need servers."""

from pathlib import Path
from typing import Final

import pytest

from shared.settings import ROOT

INTEGRATION: Final = ROOT / "tests" / "integration"  # some of these ask for their platform by its name only


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = [item for item in items if needs_servers(item.path, getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def needs_servers(path: Path, fixtures: "tuple[str, ...] | list[str]") -> bool:
    """Whether a test in this file, with these fixtures, uses the servers that all tests share."""
    return "engines" in fixtures or INTEGRATION in path.parents
