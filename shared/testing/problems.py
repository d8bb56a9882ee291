"""What a problem document says, apart from what is different in every answer."""

import json
from typing import Any, Final

import httpx

_IDS: Final = frozenset({"instance", "request_id", "transaction_id"})


def without_ids(problem: httpx.Response) -> dict[str, Any]:
    """The document without what names the request: its path, its id, the record of it."""
    body: dict[str, Any] = problem.json()
    return {name: value for name, value in body.items() if name not in _IDS}


def text_without_ids(problem: httpx.Response) -> str:
    """The document as it was sent, but for these: in an id there may be a few digits of anything by chance."""
    text = problem.text
    for name, value in problem.json().items():
        if name in _IDS:
            text = text.replace(json.dumps(value), '""')
    return text
