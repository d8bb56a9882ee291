"""A circuit breaker for each service: one that cannot be reached is left alone for a while."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from shared.errors import AppError

FAILURES_TO_OPEN: Final = 5
OPEN_SECONDS: Final = 2.0
PROBE_SECONDS: Final = 15.0  # longer than any answer is waited for: a probe that was never ended is given up


class State(IntEnum):
    """What a breaker does with a call; the numbers are the metric's."""

    CLOSED = 0  # lets it through
    HALF_OPEN = 1  # one call is on its way to find out, others are refused
    OPEN = 2  # refuses it


class CircuitOpenError(AppError):
    """503: the service could not be reached just now, so nothing was sent."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "service_unavailable",
            503,
            "The service cannot be reached; nothing was done.",
            headers={"Retry-After": str(retry_after_seconds)},
        )


class Breaker:
    """Opens after some failures in a row, and closes when a single probe, sent after a while, succeeds.

    A failure is that the service could not be reached or did not answer in time; an answer is none, whatever its
    status. Each call begins with `begin()` and ends with one of `succeeded()`, `failed()` and `given_up()`.
    """

    __slots__ = ("_clock", "_failures", "_gauge", "_period", "_state", "_until")

    def __init__(self, gauge: Gauge, clock: Callable[[], float] = time.monotonic) -> None:
        self._gauge = gauge
        self._clock = clock
        self._state = State.CLOSED
        self._period = 0
        self._failures = 0
        self._until = 0.0
        gauge.set(State.CLOSED)

    @property
    def state(self) -> State:
        """What the next call meets; an open breaker stays so until it lets a probe through."""
        return self._state

    def begin(self) -> int:
        """Begin a call: what to end it with. Raises CircuitOpenError."""
        if self._state is not State.CLOSED:
            now = self._clock()
            if now < self._until:
                left = self._until - now if self._state is State.OPEN else 1.0
                raise CircuitOpenError(max(1, math.ceil(left)))
            self._enter(State.HALF_OPEN, now + PROBE_SECONDS)
        return self._period

    def succeeded(self, call: int) -> None:
        """The service has answered, with whatever status."""
        if call == self._period:
            self._failures = 0
            if self._state is not State.CLOSED:
                self._enter(State.CLOSED)

    def failed(self, call: int) -> None:
        """The service could not be reached, or did not answer in time."""
        if call != self._period:
            return  # begun before the breaker last changed, it says nothing about now
        self._failures += 1
        if self._state is State.HALF_OPEN or self._failures >= FAILURES_TO_OPEN:
            self._enter(State.OPEN, self._clock() + OPEN_SECONDS)

    def given_up(self, call: int) -> None:
        """Nobody waited for the end, so nothing is known; the next call may be the probe."""
        if call == self._period and self._state is State.HALF_OPEN:
            self._enter(State.OPEN, self._clock())

    def _enter(self, state: State, until: float = 0.0) -> None:
        self._state = state
        self._until = until
        self._period += 1
        self._failures = 0
        self._gauge.set(state)


def breakers(
    services: Iterable[str], registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic
) -> Mapping[str, Breaker]:
    """A breaker for each service, and their states as a metric."""
    gauge = Gauge("circuit_breaker_state", "0: closed, 1: half-open, 2: open.", ["service"], registry=registry)
    return MappingProxyType({service: Breaker(gauge.labels(service), clock) for service in services})
