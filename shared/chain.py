"""The audit's chain: each document's hash covers the one before it, so that none is changed or taken out unseen.

What is hashed, and how; `shared/chain_head.py` gives out the positions.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import asyncpg
import msgspec
from bson.int64 import Int64

CHAIN: Final = "chain"  # the member of a document that says where it stands
IP: Final = "ip"  # the member that says where the request came from; missing where there was none
_POSITION_BYTES: Final = 8
_NOT_PUBLISHED: Final = frozenset({"_id", CHAIN, IP})
_FRAME: Final = struct.Struct(">Q32sQQQ")  # all but the last of the parts, and that one's length


class ChainBrokenError(Exception):
    """What the outbox, the chain's head and the audit say does not fit together; a person has to look."""


def _plain(value: object) -> object:
    if isinstance(value, Int64):  # how the driver gives back a large number
        return int(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


_encode: Final = msgspec.json.Encoder(enc_hook=_plain).encode
_encode_sorted: Final = msgspec.json.Encoder(order="deterministic", enc_hook=_plain).encode


def genesis(schema: str) -> bytes:
    """What the first document of a service's chain has before it, in place of a hash."""
    return hashlib.sha256(f"audit of {schema}".encode()).digest()


def canonical(document: Mapping[str, Any]) -> bytes:
    """The bytes that a document is hashed as: JSON in UTF-8, keys sorted, no spaces, its place in the chain left out.

    Raises TypeError for what no event can hold.
    """
    return _encode_sorted({name: value for name, value in document.items() if name != CHAIN})


def event_of(document: Mapping[str, Any]) -> bytes:
    """The event in a document, as it was published: JSON in UTF-8. Raises TypeError for what no event can hold."""
    return _encode({name: value for name, value in document.items() if name not in _NOT_PUBLISHED})


def link(previous: bytes, position: int, document: Mapping[str, Any]) -> bytes:
    """The hash of a document: SHA-256 over what is before it, its position and its bytes, each after its length.

    `position` and lengths are 8 bytes, the highest first. Raises TypeError as `canonical` does.
    """
    return _hash(previous, position, canonical(document))


def _hash(previous: bytes, position: int, encoded: bytes) -> bytes:
    frame = _FRAME.pack(len(previous), previous, _POSITION_BYTES, position, len(encoded))
    return hashlib.sha256(frame + encoded).digest()


def linked(
    rows: Sequence[asyncpg.Record], previous: bytes, first: int, *, addresses: bool = True
) -> tuple[list[dict[str, Any]], bytes]:
    """The documents of outbox rows that follow `previous`, from the position `first` on, and the hash of the last.

    Without `addresses` they are those of a release that had none.
    """
    documents = []
    for position, row in enumerate(rows, first):
        event = msgspec.json.decode(row["payload"])
        document = {"_id": event["id"], **event}
        if addresses and row["ip"] is not None:
            document[IP] = row["ip"]
        previous = _hash(previous, position, _encode_sorted(document))
        document[CHAIN] = {"position": position, "hash": previous.hex()}
        documents.append(document)
    return documents, previous
