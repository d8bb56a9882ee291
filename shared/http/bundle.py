"""Requests that travel together: the gateway's way to send many creations of transactions as one call."""

from typing import Final

import msgspec

MEDIA_TYPE: Final = "application/msgpack"


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """One public request, as it came: its body, the headers that matter, and where it comes from."""

    body: bytes
    content_type: str
    authorization: str
    idempotency_key: str | None
    request_id: str
    traceparent: str
    ip: str | None = None


class Reply(msgspec.Struct, array_like=True, frozen=True):
    """The answer to one request."""

    status: int
    body: bytes
    headers: list[tuple[str, str]]


Replies = list[Reply | None]
"""An answer a parcel, in their order; None where the request has to be sent by itself, and nothing was done."""

_encode: Final = msgspec.msgpack.Encoder().encode
_parcels: Final = msgspec.msgpack.Decoder(list[Parcel])
_replies: Final = msgspec.msgpack.Decoder(Replies)

DecodeError = msgspec.DecodeError


def write_parcels(parcels: list[Parcel]) -> bytes:
    """A call's body."""
    return _encode(parcels)


def read_parcels(body: bytes) -> list[Parcel]:
    """What `write_parcels` wrote; raises DecodeError."""
    return _parcels.decode(body)


def write_replies(replies: Replies) -> bytes:
    """An answer's body."""
    return _encode(replies)


def read_replies(body: bytes) -> Replies:
    """What `write_replies` wrote; raises DecodeError."""
    return _replies.decode(body)
