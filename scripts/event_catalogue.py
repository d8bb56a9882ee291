"""Write `docs/events.md` and `docs/asyncapi.yaml` from the models in `shared/events.py` and the retained samples.

With `--check` nothing is written: the exit status is 1 where a file is not what would be.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.dead_letters import SUFFIX
from shared.events import KINDS, TOPICS, Envelope, EventData
from shared.settings import ROOT

SAMPLES: Final = ROOT / "shared" / "tests" / "samples" / "events"
PAGE: Final = ROOT / "docs" / "events.md"
ASYNCAPI: Final = ROOT / "docs" / "asyncapi.yaml"
PUBLISHERS: Final = {
    "users": "user-service",
    "wallets": "wallet-service",
    "transactions": "transaction-service",
    "payments": "payment-gateway",
    "notifications": "notification-service",
}
COMMAND: Final = ".venv/bin/python scripts/event_catalogue.py"
SCHEMAS: Final = "#/components/schemas/"

INTRODUCTION: Final = f"""\
<!-- Written by {COMMAND}, never by hand. -->

# Events

What the services tell each other and the world over Kafka. The same as a machine reads it:
[asyncapi.yaml](asyncapi.yaml). How events get there, and what becomes of those that nobody can handle:
[architecture](architecture.md#events-outbox-and-audit).

- A message's value is a [CloudEvent](https://cloudevents.io) 1.0 in structured JSON. Its key is the subject, so that
  the events of one aggregate stay in order. A topic is called after the service's schema: `users.events`.
- Events are delivered at least once. A repeat has the same `id`.
- Amounts are integers in minor units of `currency` (cents for USD); their names end in `_minor`.
- A version is never changed but by adding a field that may be missing. Anything else is a new version of the type
  (`….v2`), published beside the old one until nobody reads that any more. A consumer ignores fields that it does not
  know, and types that are not its own.
"""


def file_of(kind: str) -> Path:
    """Where the sample of a type is."""
    return SAMPLES / f"{kind}.json"


def sentences(model: type[BaseModel]) -> str:
    """A model's docstring in one line."""
    return re.sub(r"\s+", " ", model.__doc__ or "").strip()


def schemas() -> dict[str, Any]:
    """JSON Schemas of the envelope and of all data, by the names of their models."""
    models: list[type[BaseModel]] = [Envelope, *KINDS.values()]
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=SCHEMAS + "{model}")
    return dict(sorted(definitions["$defs"].items()))


# ------------------------------------------------------------------------------------------------ docs/events.md


def page() -> str:
    """All of docs/events.md."""
    known = schemas()
    parts = [INTRODUCTION, "## Envelope\n", "\n".join(table(known["Envelope"], known)) + "\n"]
    parts += ["\n".join(topic_lines(topic, known)) for topic in TOPICS]
    return "\n".join(parts)


def topic_lines(topic: str, known: Mapping[str, Any]) -> Iterator[str]:
    """The chapter of a topic: an overview, then each type."""
    kinds = [kind for kind in KINDS.values() if kind.topic == topic]
    yield f"## {topic}\n"
    yield f"Published by {PUBLISHERS[topic.partition('.')[0]]}. Dead letters of its consumers: `{topic}{SUFFIX}`.\n"
    yield "| type | meaning |"
    yield "| --- | --- |"
    for kind in kinds:
        anchor = kind.type.replace(".", "")
        yield f"| [`{kind.type}`](#{anchor}) | {sentences(kind)} |"
    yield ""
    for kind in kinds:
        yield from kind_lines(kind, known)


def kind_lines(kind: type[EventData], known: Mapping[str, Any]) -> Iterator[str]:
    """The chapter of a type."""
    yield f"### {kind.type}\n"
    yield f"{sentences(kind)} Subject and key: `{kind.subject}`.\n"
    yield from table(known[kind.__name__], known)
    yield "\n```json"
    yield file_of(kind.type).read_text().rstrip()
    yield "```\n"


def table(schema: Mapping[str, Any], known: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each field; those of objects inside follow theirs."""
    if not prefix:
        yield "| field | type | meaning |"
        yield "| --- | --- | --- |"
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        missing = "" if name in required else f"; {json.dumps(field['default'])} where it is missing"
        meaning = field.get("description", name.replace("_", " "))
        yield f"| `{prefix}{name}` | {type_of(field)} | {meaning}{missing} |"
        for place, inside in (("[]", [field.get("items", {})]), ("", field.get("anyOf", []))):
            for inner in filter(None, (each.get("$ref") for each in inside)):
                yield from table(known[inner.removeprefix(SCHEMAS)], known, f"{prefix}{name}{place}.")


def type_of(field: Mapping[str, Any]) -> str:
    """A field's type in words."""
    if "anyOf" in field:
        return " or ".join(map(type_of, field["anyOf"]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        return "object"
    if field["type"] == "array":
        return f"list of {type_of(field['items'])}"
    return str(field.get("format", field["type"]))


# ------------------------------------------------------------------------------------------------ docs/asyncapi.yaml


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document. The application is the platform: it sends what others may receive."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Payment system events",
            "version": "1.0.0",
            "description": "CloudEvents 1.0 in structured JSON, at least once, in the order of each subject.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "development": {
                "host": "localhost:9092",
                "protocol": "kafka",
                "description": "The broker of `make up` and of docker compose.",
            }
        },
        "channels": {topic: channel(topic) for topic in TOPICS},
        "operations": {f"publish-{topic}": operation(topic) for topic in TOPICS},
        "components": {
            "messages": {kind.type: message(kind) for kind in KINDS.values()},
            "schemas": schemas(),
        },
    }


def channel(topic: str) -> dict[str, Any]:
    """One topic, with the types that are in it."""
    return {
        "address": topic,
        "description": f"Published by {PUBLISHERS[topic.partition('.')[0]]}.",
        "messages": {
            kind.type: {"$ref": f"#/components/messages/{kind.type}"}
            for kind in KINDS.values()
            if kind.topic == topic
        },
    }


def operation(topic: str) -> dict[str, Any]:
    """The sending of a topic's events."""
    return {"action": "send", "channel": {"$ref": f"#/channels/{topic}"}, "summary": f"Publishes to {topic}."}


def message(kind: type[EventData]) -> dict[str, Any]:
    """One type: an envelope with its name and its data."""
    data = {"$ref": SCHEMAS + kind.__name__}
    return {
        "name": kind.type,
        "title": kind.__name__,
        "summary": sentences(kind),
        "contentType": "application/json",
        "payload": {
            "allOf": [
                {"$ref": f"{SCHEMAS}Envelope"},
                {"properties": {"type": {"const": kind.type}, "data": data}},
            ]
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "format": "uuid", "description": f"The subject: `{kind.subject}`."},
                "bindingVersion": "0.5.0",
            }
        },
        "examples": [{"name": "sample", "payload": json.loads(file_of(kind.type).read_text())}],
    }


def main(arguments: Sequence[str]) -> int:
    """Write or check both files."""
    document = yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=118)
    wanted = {PAGE: page(), ASYNCAPI: f"# Written by {COMMAND}, never by hand.\n{document}"}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"error: {path.relative_to(ROOT)} is stale: run {COMMAND}\n")
        return bool(stale)
    for path in stale:
        path.write_text(wanted[path])
        sys.stdout.write(f"{path.relative_to(ROOT)} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
