"""One OpenAPI document of all services."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from api_gateway.neighbours import ask
from api_gateway.pool import Pool
from api_gateway.remembered import Remembered
from api_gateway.routes import OWN, owner_of

TIMEOUT_SECONDS: Final = 2.0
KEPT_SECONDS: Final = 1.0

TITLE: Final = "Payment platform"
_INFO: Final = {
    "title": TITLE,
    "description": "Users, wallets, transactions and payments, through one gateway.",
    "version": "0.1.0",
}

Document = dict[str, Any]


class ApiDocument:
    """The services' documents, each fetched until it has come; a service that is out is left out meanwhile."""

    def __init__(self, pool: Pool, own: Callable[[], Document]) -> None:
        self._pool = pool
        self._own = own
        self._fetched: dict[str, Document] = {}
        self._complete: bytes | None = None
        self._latest = Remembered(self._make, KEPT_SECONDS)

    async def get(self) -> bytes:
        """The merged document as JSON."""
        return self._complete or await self._latest.get()

    async def _make(self) -> bytes:
        missing = [service for service in self._pool.services if service not in self._fetched]
        answers = await asyncio.gather(
            *(ask(self._pool, service, "/openapi.json", TIMEOUT_SECONDS) for service in missing)
        )
        for service, answer in zip(missing, answers, strict=True):
            if answer is not None and "openapi" in answer:
                self._fetched[service] = answer
        ordered = {service: self._fetched[service] for service in self._pool.services if service in self._fetched}
        merged = json.dumps(merge(ordered | {OWN: self._own()}), ensure_ascii=False).encode()
        if len(self._fetched) == len(self._pool.services):
            self._complete = merged
        return merged


def merge(documents: Mapping[str, Document]) -> Document:
    """One document with each service's forwarded paths and all components.

    Of components with one name and different content the later one is called `service.name`, and what refers to it
    follows.
    """
    merged: Document = {"openapi": "3.1.0", "info": _INFO, "servers": [{"url": "/"}], "paths": {}, "components": {}}
    operation_ids: set[str] = set()
    tags: dict[str, Any] = {}
    for service, document in documents.items():
        document = _without_clashes(service, document, merged["components"])
        for kind, components in document.get("components", {}).items():
            merged["components"].setdefault(kind, {}).update(components)
        for path, item in document.get("paths", {}).items():
            if owner_of(path) == service:
                merged["paths"][path] = _with_unique_ids(service, item, operation_ids)
        for tag in document.get("tags", []):
            tags.setdefault(tag["name"], tag)
    if tags:
        merged["tags"] = list(tags.values())
    return merged


def _without_clashes(service: str, document: Document, taken: Document) -> Document:
    """`document` with new names for components that differ from those of the same name in `taken`."""
    own = document.get("components", {})
    names: dict[tuple[str, str], str] = {}
    while True:
        renamed = _renamed(document, names)
        clashes = {
            (kind, name): f"{service}.{name}"
            for kind, components in own.items()
            for name in components
            if (kind, name) not in names
            and name in taken.get(kind, {})
            and taken[kind][name] != renamed["components"][kind][name]
        }
        if not clashes:
            return renamed
        names |= clashes  # what refers to a renamed component differs from now on, and may clash itself


def _renamed(document: Document, names: Mapping[tuple[str, str], str]) -> Document:
    pointers = {f"#/components/{kind}/{old}": f"#/components/{kind}/{new}" for (kind, old), new in names.items()}
    schemes = {old: new for (kind, old), new in names.items() if kind == "securitySchemes"}

    def rewrite(value: Any) -> Any:
        if isinstance(value, str):
            return pointers.get(value, value)  # a `$ref`, or a discriminator's mapping
        if isinstance(value, list):
            return [rewrite(item) for item in value]
        if not isinstance(value, dict):
            return value
        rewritten = {key: rewrite(member) for key, member in value.items()}
        if isinstance(value.get("security"), list):
            rewritten["security"] = [{schemes.get(name, name): by[name] for name in by} for by in value["security"]]
        return rewritten

    renamed: Document = rewrite(document)
    components = renamed.get("components", {})
    for (kind, old), new in names.items():
        components[kind][new] = components[kind].pop(old)
    return renamed


def _with_unique_ids(service: str, path_item: Document, seen: set[str]) -> Document:
    for operation in path_item.values():
        if isinstance(operation, dict) and "operationId" in operation:
            if operation["operationId"] in seen:
                operation["operationId"] = f"{service}.{operation['operationId']}"
            seen.add(operation["operationId"])
    return path_item
