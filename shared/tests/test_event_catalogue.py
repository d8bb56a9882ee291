"""The catalogue of events is what the models say, and a machine can use it."""

import copy
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shared.events import KINDS, TOPICS
from shared.settings import ROOT


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((ROOT / "docs" / "asyncapi.yaml").read_text())


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        for each in part.values():
            yield from references(each)
    elif isinstance(part, list):
        for each in part:
            yield from references(each)


def resolved(document: Any, reference: str) -> Any:
    found = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def payload_of(document: Any, kind: str) -> "jsonschema.Draft7Validator":
    payload = resolved(document, f"#/components/messages/{kind}")["payload"]
    return jsonschema.Draft7Validator(payload | {"components": document["components"]})


def check(checkout: Path) -> tuple[int, str]:
    """What the check of the catalogue in this checkout says."""
    done = subprocess.run(
        [sys.executable, "scripts/event_catalogue.py", "--check"],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_the_catalogue_is_what_the_models_say() -> None:
    assert check(ROOT) == (0, "")


def test_a_catalogue_that_is_stale_is_noticed(tmp_path: Path) -> None:
    for part in ("shared", "scripts", "docs"):
        shutil.copytree(ROOT / part, tmp_path / part)
    models = tmp_path / "shared" / "events.py"
    models.write_text(models.read_text().replace("    decline_code:", "    declined_because:"))

    status, said = check(tmp_path)

    assert status == 1
    assert [line.split()[1] for line in said.splitlines()] == ["docs/events.md", "docs/asyncapi.yaml"]


def test_every_type_is_in_both_files(document: Any) -> None:
    page = (ROOT / "docs" / "events.md").read_text()

    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == sorted(KINDS, key=lambda k: TOPICS.index(KINDS[k].topic))
    assert list(document["components"]["messages"]) == list(KINDS)
    assert {topic: list(channel["messages"]) for topic, channel in document["channels"].items()} == {
        topic: [kind for kind in KINDS if KINDS[kind].topic == topic] for topic in TOPICS
    }


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = set(references(document))

    assert len(found) > 2 * len(KINDS)
    for reference in found:
        assert resolved(document, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_what_its_schema_says(document: Any, kind: str) -> None:
    [example] = resolved(document, f"#/components/messages/{kind}")["examples"]
    validator = payload_of(document, kind)
    wrong = copy.deepcopy(example["payload"])
    del wrong["data"][KINDS[kind].subject]

    validator.validate(example["payload"])
    assert not validator.is_valid(wrong)
    assert not validator.is_valid(example["payload"] | {"type": "another.type.v1"})
