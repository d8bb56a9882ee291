"""Headers that pass the gateway: an allowlist each way, everything else is dropped."""

from collections.abc import Iterable
from typing import Final

from shared.errors import AppError

RawHeaders = Iterable[tuple[bytes, bytes]]

_REQUEST: Final = {
    name.lower().encode(): name
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
_REPEATABLE: Final = frozenset({"Accept", "Accept-Language"})
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


def request_headers(headers: RawHeaders) -> dict[str, str]:
    """Those of a request's headers that a service may see.

    Raises AppError: 400 where a header of a single value comes twice (two readers could choose differently). Control
    characters have been refused by the server's parser (llhttp).
    """
    passed: dict[str, str] = {}
    for raw_name, value in headers:
        name = _REQUEST.get(raw_name)
        if name is None:
            continue
        text = value.decode("utf-8", "replace")
        if name not in passed:
            passed[name] = text
        elif name in _REPEATABLE:
            passed[name] += f", {text}"
        else:
            raise AppError("header_repeated", 400, f"The header {name} came more than once.")
    passed.pop("Host", None)  # seen to be single; the service gets its own
    return passed


def response_headers(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Those of a service's headers that a caller may see."""
    return [header for header in headers if header[0] in _RESPONSE]
