"""What is known about the request being handled, wherever the code is: its id, trace, address and deadline."""

import random
import re
import time
from contextvars import ContextVar
from typing import Final, NamedTuple

from uuid_utils import uuid7

DEFAULT_DEADLINE_SECONDS: Final = 10.0

REQUEST_ID_HEADER: Final = "X-Request-Id"
TRACEPARENT_HEADER: Final = "traceparent"
DEADLINE_HEADER: Final = "X-Deadline-Ms"

_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}", re.ASCII)
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Trace(NamedTuple):
    """Where a piece of work comes from; `traceparent` is W3C Trace Context. It goes with the work into a batch.

    `ip` is the address of whoever asked for it; None where nobody did, as in a service's own work.
    """

    request_id: str
    traceparent: str
    ip: str | None = None


class RequestContext(NamedTuple):
    """`deadline` is an instant of the monotonic clock, in seconds."""

    trace: Trace
    deadline: float


_current: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


def enter_context(
    request_id: str = "",
    traceparent: str = "",
    seconds: float = DEFAULT_DEADLINE_SECONDS,
    ip: str | None = None,
) -> RequestContext:
    """Begin a request's or a background job's context; what is missing or malformed is made anew."""
    trace = Trace(
        request_id if request_id and _SANE_REQUEST_ID.fullmatch(request_id) else str(uuid7()),
        traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else _new_traceparent(),
        ip,
    )
    context = RequestContext(trace, time.monotonic() + seconds)
    _current.set(context)
    return context


def current_context() -> RequestContext:
    """The context of the request in hand; outside any request a fresh one is begun."""
    return _current.get() or enter_context()


def seconds_left() -> float:
    """What remains of the current request's time; zero or less when it is over."""
    return current_context().deadline - time.monotonic()


def _new_traceparent() -> str:
    trace_id = random.getrandbits(128).to_bytes(16, "big").hex()
    return f"00-{trace_id}-{trace_id[16:]}-01"  # of its first span, any number will do


def peek_request_id() -> str | None:
    """The id of the request in hand, if there is one."""
    context = _current.get()
    return context.trace.request_id if context else None
