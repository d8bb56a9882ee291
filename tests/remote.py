"""A platform that runs already, for the integration tests to take instead of one of their own."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

TEST_STACK: Final = "http://127.0.0.1:18000"  # docker-compose.test.yml
CONNECT_TIMEOUT_SECONDS: Final = 1.0
REQUEST_TIMEOUT_SECONDS: Final = 5.0
HEALTHY_WITHIN_SECONDS: Final = 120.0
INTERVAL_SECONDS: Final = 0.5


@dataclass(frozen=True)
class RemoteStack:
    """Where its gateway is, and what named it."""

    gateway: str
    named_by: str


def find(environ: Mapping[str, str]) -> RemoteStack | None:
    """The one that TEST_GATEWAY_URL names, else the test stack if it listens, else None."""
    named = environ.get("TEST_GATEWAY_URL", "").strip().rstrip("/")
    if named:
        return RemoteStack(named, "TEST_GATEWAY_URL")
    where = urlsplit(TEST_STACK)
    try:
        socket.create_connection((where.hostname, where.port), CONNECT_TIMEOUT_SECONDS).close()
    except OSError:
        return None
    return RemoteStack(TEST_STACK, "docker-compose.test.yml")


def await_health(gateway: str, limit_seconds: float = HEALTHY_WITHIN_SECONDS) -> None:
    """Return when the gateway says that the platform works; raises TimeoutError with what it said instead."""
    ends_at = time.monotonic() + limit_seconds
    while True:
        try:
            answer = httpx.get(f"{gateway}/health", timeout=REQUEST_TIMEOUT_SECONDS)
        except httpx.TransportError as error:
            said = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == httpx.codes.OK:
                return
            said = f"{answer.status_code} {answer.text[:1000]}"
        if time.monotonic() >= ends_at:
            raise TimeoutError(f"{gateway}/health did not answer 200 within {limit_seconds:.0f} s; last: {said}")
        time.sleep(INTERVAL_SECONDS)
