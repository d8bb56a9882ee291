"""What a failure is a failure of: the world around, which is waited for, or the thing in hand."""

from __future__ import annotations

from typing import Final

import asyncpg
from aiokafka.errors import KafkaError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from shared.errors import AppError

# PostgreSQL's classes of errors that say nothing about the row in hand: connection, login, deadlock and
# serialization, resources, an object in use, an operator, the system, the server itself.
_OUTAGE_CLASSES: Final = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58", "XX"})
# A right, a table or a column is missing: a deployment is half-way.
_OUTAGE_STATES: Final = frozenset({"42501", "42P01", "42703"})
_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500


def is_outage(error: BaseException) -> bool:
    """Whether the same work may succeed later, with nothing changed but the world around.

    A time-out, a lost connection, an answer of 5xx or 429, a database that is out, locked or not yet migrated.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(is_outage(each) for each in error.exceptions)
    if isinstance(error, AppError):
        return error.status >= _SERVER_ERROR or error.status == _TOO_MANY_REQUESTS
    if isinstance(error, OSError | KafkaError | PoolTimeoutError):
        return True
    cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        return state[:2] in _OUTAGE_CLASSES or state in _OUTAGE_STATES
    # asyncpg's own say that a connection is closed or in use; those about a value are ValueErrors, too.
    return isinstance(cause, asyncpg.InterfaceError) and not isinstance(cause, ValueError)
