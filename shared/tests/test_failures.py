"""What is waited for, and what is the thing's own fault."""

import ssl

import asyncpg
import pytest
import sqlalchemy as sa
from aiokafka.errors import KafkaConnectionError
from pydantic import TypeAdapter, ValidationError

from shared.database import CommitUnknownError, Database, LockTimeoutError
from shared.errors import AppError, NotFoundError, OutcomeUnknownError, UnavailableError
from shared.failures import is_outage
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox

WAITED_FOR = [
    ConnectionResetError(),
    TimeoutError(),
    ssl.SSLCertVerificationError(),  # a ValueError, too
    KafkaConnectionError(),
    UnavailableError(),
    OutcomeUnknownError(),
    LockTimeoutError(),
    CommitUnknownError(),
    AppError("rate_limited", 429, "Too many."),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.DeadlockDetectedError(),
    asyncpg.SerializationError(),
    asyncpg.CannotConnectNowError(),
    asyncpg.DiskFullError(),
    ExceptionGroup("both", [ValueError(), ConnectionResetError()]),
]
OWN_FAULT = [
    ValueError(),
    KeyError("name"),
    RuntimeError(),
    NotFoundError("wallet"),
    asyncpg.UniqueViolationError(),
    asyncpg.RaiseError(),
    asyncpg.exceptions.DataError("a value that PostgreSQL does not take"),
    ExceptionGroup("both", [ValueError(), RuntimeError()]),
]


@pytest.mark.parametrize("error", WAITED_FOR, ids=lambda error: type(error).__name__)
def test_the_world_around_is_waited_for(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize("error", OWN_FAULT, ids=lambda error: type(error).__name__)
def test_the_things_own_fault_is_not(error: Exception) -> None:
    assert not is_outage(error)


def test_a_value_that_a_model_refuses_is_not_waited_for() -> None:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(int).validate_python("x")

    assert not is_outage(raised.value)


@pytest.mark.parametrize(
    ("statement", "waited_for"),
    [
        ("select * from not_yet_migrated", True),
        ("select not_yet_migrated from notes", True),
        ("update notes set text = ''", True),  # no right to
        ("select 1 / 0", False),
        ("insert into notes values (1, null)", False),
        ("select from from", False),
    ],
)
async def test_what_the_database_says_tells(
    sandbox: Sandbox, probe: type[DatabaseSettings], statement: str, waited_for: bool
) -> None:
    database = Database(sandbox.settings(probe))
    with pytest.raises(sa.exc.DBAPIError) as raised:
        async with database.transaction() as session:
            await session.execute(sa.text(statement))
    await database.close()

    assert is_outage(raised.value) == waited_for
