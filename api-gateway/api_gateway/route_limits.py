"""Limits that are set for single routes."""

import re
from dataclasses import dataclass
from typing import Any, Final

from api_gateway.routes import METHODS, find_route

MAX_PER_MINUTE: Final = 10_000_000
MAX_ROUTE_LIMITS: Final = 100

_ROUTE_LIMIT: Final = re.compile(r"([A-Z]+) +(/\S*?)(/\*)? *= *([0-9]{1,8})")


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """A limit of its own for a method and a path, with `below` also for all paths that begin with it and a slash."""

    method: str
    path: bytes
    below: bool
    per_minute: int

    @property
    def name(self) -> str:
        """As in the setting: `GET /wallets/*`."""
        return f"{self.method} {self.path.decode()}{'/*' if self.below else ''}"

    def matches(self, method: str, raw_path: bytes) -> bool:
        """True for a request that this limit is for."""
        return method == self.method and (
            raw_path == self.path or (self.below and raw_path.startswith(self.path + b"/"))
        )


def parse_route_limits(value: Any) -> Any:
    """Limits from a setting such as `POST /transactions/create=30, GET /wallets/*=60`; all but strings as they are.

    The most specific ones come first. Raises ValueError with a sentence that names the one that is wrong.
    """
    if not isinstance(value, str):
        return value
    limits = [_parse_route_limit(part.strip()) for part in value.split(",") if part.strip()]
    names = [limit.name for limit in limits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} has more than one limit.")
    if len(limits) > MAX_ROUTE_LIMITS:
        raise ValueError(f"At most {MAX_ROUTE_LIMITS} routes can have limits of their own.")
    return tuple(sorted(limits, key=lambda limit: (limit.below, -len(limit.path))))


def _parse_route_limit(text: str) -> RouteLimit:
    match = _ROUTE_LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no limit such as 'GET /wallets/*=60'.")
    method, path, below, per_minute = match.groups()
    if method not in METHODS:
        raise ValueError(f"{text!r} has none of the methods {', '.join(sorted(METHODS))}.")
    if not path.isascii() or find_route(path.encode()) is None:
        raise ValueError(f"{text!r} has a path that is not forwarded to any service.")
    if int(per_minute) > MAX_PER_MINUTE:
        raise ValueError(f"{text!r} is above {MAX_PER_MINUTE} a minute; 0 turns a limit off.")
    return RouteLimit(method, path.encode(), bool(below), int(per_minute))
