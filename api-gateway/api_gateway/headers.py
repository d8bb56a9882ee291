"""Headers that pass the gateway: an allowlist each way, everything else is dropped."""

import re
from collections.abc import Iterable
from typing import Final

from multidict import CIMultiDict, istr

from shared.errors import AppError

RawHeaders = Iterable[tuple[bytes, bytes]]

_HOST: Final = istr("Host")
_REQUEST: Final = {
    name.lower().encode(): istr(name)
    for name in (
        "Accept",
        "Accept-Language",
        "Authorization",
        "Content-Type",
        "Host",
        "Idempotency-Key",
        "Last-Event-ID",
        "User-Agent",
    )
}
_REPEATABLE: Final = frozenset({istr("Accept"), istr("Accept-Language")})
_RESPONSE: Final = frozenset(
    {
        b"allow",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"idempotent-replayed",
        b"location",
        b"ratelimit-limit",
        b"ratelimit-remaining",
        b"ratelimit-reset",
        b"retry-after",
        b"www-authenticate",
    }
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def request_headers(headers: RawHeaders) -> CIMultiDict[str]:
    """Those of a request's headers that a service may see.

    Raises AppError: 400 where a header of a single value comes twice (two readers could choose differently), or
    where a value is no text.
    """
    passed: CIMultiDict[str] = CIMultiDict()
    for raw_name, value in headers:
        name = _REQUEST.get(raw_name)
        if name is None:
            continue
        if name in passed and name not in _REPEATABLE:
            raise AppError("header_repeated", 400, f"The header {name} came more than once.")
        if _CONTROL.search(value):
            raise AppError("header_invalid", 400, f"The header {name} contains control characters.")
        passed.add(name, value.decode("utf-8", "replace"))
    passed.popall(_HOST, None)  # seen to be single; the service gets its own
    return passed


def response_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Those of a service's headers that a caller may see."""
    return [(lower, value) for name, value in headers if (lower := name.lower()) in _RESPONSE]
