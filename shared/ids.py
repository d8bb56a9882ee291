"""Identifiers: UUIDv7, made by us, ordered by time and not guessable."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A fresh UUIDv7."""
    return uuid7()
