"""What a problem document says, apart from what is different in every answer."""

from typing import Any, Final

import httpx

_IDS: Final = frozenset({"instance", "request_id", "transaction_id"})


def without_ids(problem: httpx.Response) -> dict[str, Any]:
    """The document without the request, and the record of it."""
    body: dict[str, Any] = problem.json()
    return {name: value for name, value in body.items() if name not in _IDS}


def text_without_ids(problem: httpx.Response) -> str:
    """The document as it was sent, without the ids in it: they may have a digit or six of anything by chance."""
    text = problem.text
    for name, value in problem.json().items():
        if name in _IDS:
            text = text.replace(value, "")
    return text
