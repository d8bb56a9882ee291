"""SQL of transaction-service: set-based functions for the journal, ORM ones for reading."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Asyncpg
from shared.money import Money
from transaction_service.answers import Answer
from transaction_service.domain import Command, Decision, Status, Transaction, Type
from transaction_service.models import TransactionRow

_COLUMNS: Final = (
    "id, type, status, user_id, payee_user_id, from_wallet_id, to_wallet_id, amount_minor, currency, "
    "payment_method, description, metadata, failure_code, available_minor, declined, attempts, "
    "event_sequence, created_at, completed_at"
)
_RETURNED: Final = ", ".join(f"t.{column}" for column in _COLUMNS.split(", "))


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What an idempotency key stands for already."""

    fingerprint: bytes
    transaction: Transaction
    answer: Answer | None


# -------------------------------------------------------------------------------------- the journal


async def take_keys(connection: Asyncpg, operation: str, items: Sequence[tuple[Command, UUID]]) -> set[UUID]:
    """Take each command's key for its transaction; answers the transactions that have theirs."""
    users, keys = [command.user_id for command, _ in items], [command.key for command, _ in items]
    ids = [transaction_id for _, transaction_id in items]
    await connection.execute(
        "insert into idempotency_keys (user_id, operation, key, fingerprint, transaction_id) "
        "select k.user_id, $1, k.key, k.fingerprint, k.transaction_id "
        "from unnest($2::uuid[], $3::text[], $4::bytea[], $5::uuid[]) "
        "  as k (user_id, key, fingerprint, transaction_id) "
        "order by k.user_id, k.key on conflict do nothing",
        operation,
        users,
        keys,
        [command.fingerprint() for command, _ in items],
        ids,
    )
    rows = await connection.fetch("select transaction_id from idempotency_keys where transaction_id = any($1)", ids)
    return {row["transaction_id"] for row in rows}


async def known_keys(
    connection: Asyncpg, operation: str, commands: Sequence[Command]
) -> dict[tuple[UUID, str], KnownKey]:
    """What the keys of these commands stand for, by user and key."""
    rows = await connection.fetch(
        f"select k.key, k.fingerprint, k.response_status, k.response_body, {_RETURNED} "
        "from unnest($2::uuid[], $3::text[]) as w (user_id, key) "
        "join idempotency_keys k on k.user_id = w.user_id and k.operation = $1 and k.key = w.key "
        "join transactions t on t.id = k.transaction_id",
        operation,
        [command.user_id for command in commands],
        [command.key for command in commands],
    )
    return {
        (row["user_id"], row["key"]): KnownKey(
            row["fingerprint"],
            _transaction(row),
            Answer(row["response_status"], row["response_body"], replayed=True) if row["response_status"] else None,
        )
        for row in rows
    }


async def insert_transactions(
    connection: Asyncpg, items: Sequence[tuple[Command, UUID]], lease_seconds: float
) -> dict[UUID, Transaction]:
    """Put the commands on record as pending; nobody else takes them up for `lease_seconds`."""
    await connection.execute(
        "insert into transactions as t (id, type, user_id, from_wallet_id, to_wallet_id, amount_minor, currency, "
        "  payment_method, description, metadata, next_attempt_at) "
        "select n.*, now() + make_interval(secs => $11) from unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], "
        "  $5::uuid[], $6::bigint[], $7::text[], $8::text[], $9::text[], $10::jsonb[]) as n "
        "on conflict (id) do nothing",
        [transaction_id for _, transaction_id in items],
        [command.type for command, _ in items],
        [command.user_id for command, _ in items],
        [command.from_wallet_id for command, _ in items],
        [command.to_wallet_id for command, _ in items],
        [command.amount.minor for command, _ in items],
        [command.amount.currency for command, _ in items],
        [command.payment_method for command, _ in items],
        [command.description for command, _ in items],
        [json.dumps(command.metadata) for command, _ in items],
        lease_seconds,
    )
    return await by_ids(connection, [transaction_id for _, transaction_id in items])


async def claim(connection: Asyncpg, transaction_ids: Collection[UUID], lease_seconds: float) -> set[UUID]:
    """Those of the transactions that are open and that nobody works on, now leased to the caller."""
    rows = await connection.fetch(
        "update transactions set attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $2) "
        "where id = any($1) and status = 'pending' and next_attempt_at <= now() returning id",
        list(transaction_ids),
        lease_seconds,
    )
    return {row["id"] for row in rows}


async def claim_due(connection: Asyncpg, limit: int, lease_seconds: float) -> list[Transaction]:
    """At most `limit` open transactions whose time has come, leased to the caller."""
    rows = await connection.fetch(
        "update transactions t set attempts = t.attempts + 1, next_attempt_at = now() + make_interval(secs => $2) "
        "from (select id from transactions where status = 'pending' and next_attempt_at <= now() "
        "      order by next_attempt_at limit $1 for no key update skip locked) due "
        f"where t.id = due.id returning {_RETURNED}",
        limit,
        lease_seconds,
    )
    return [_transaction(row) for row in rows]


async def close(connection: Asyncpg, decisions: Sequence[Decision]) -> dict[UUID, Transaction]:
    """End the transactions that are still pending; answers only those."""
    rows = await connection.fetch(
        "update transactions t set status = d.status, failure_code = d.failure_code, "
        "  available_minor = d.available_minor, payee_user_id = d.payee_user_id, declined = d.declined, "
        "  completed_at = clock_timestamp(), "
        "  next_attempt_at = null, event_sequence = t.event_sequence + 1 "
        "from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::boolean[]) "
        "  as d (id, status, failure_code, available_minor, payee_user_id, declined) "
        f"where t.id = d.id and t.status = 'pending' returning {_RETURNED}",
        [decision.transaction_id for decision in decisions],
        [decision.status for decision in decisions],
        [decision.failure_code for decision in decisions],
        [decision.available_minor for decision in decisions],
        [decision.payee_user_id for decision in decisions],
        [decision.declined for decision in decisions],
    )
    return {row["id"]: _transaction(row) for row in rows}


async def begin_waiting(connection: Asyncpg, transaction_ids: Collection[UUID]) -> dict[UUID, Transaction]:
    """Leave what is pending to the sweeper, with a back-off that doubles to a minute; answers what waits from now."""
    await connection.execute(
        "update transactions set next_attempt_at = now() "
        "  + make_interval(secs => least(60, power(2, least(attempts, 6))) * (0.5 + random() / 2)) "
        "where id = any($1) and status = 'pending'",
        list(transaction_ids),
    )
    rows = await connection.fetch(
        "update transactions t set event_sequence = 1 "
        f"where id = any($1) and status = 'pending' and event_sequence = 0 returning {_RETURNED}",
        list(transaction_ids),
    )
    return {row["id"]: _transaction(row) for row in rows}


async def by_ids(connection: Asyncpg, transaction_ids: Collection[UUID]) -> dict[UUID, Transaction]:
    """The transactions as they are."""
    rows = await connection.fetch(
        f"select {_RETURNED} from transactions t where id = any($1)",
        list(transaction_ids),
    )
    return {row["id"]: _transaction(row) for row in rows}


async def store_answers(connection: Asyncpg, answers: Sequence[tuple[UUID, Answer]]) -> None:
    """Keep each answer for the repeats of its request; the first one stands."""
    await connection.execute(
        "update idempotency_keys k set response_status = a.status, response_body = a.body "
        "from unnest($1::uuid[], $2::int[], $3::text[]) as a (transaction_id, status, body) "
        "where k.transaction_id = a.transaction_id and k.response_status is null",
        [transaction_id for transaction_id, _ in answers],
        [answer.status for _, answer in answers],
        [answer.body for _, answer in answers],
    )


async def free_keys(connection: Asyncpg, transaction_ids: Sequence[UUID]) -> None:
    """Let go of keys whose request turned out to be wrong, unless they have an answer."""
    await connection.execute(
        "delete from idempotency_keys where transaction_id = any($1) and response_status is null",
        transaction_ids,
    )


# -------------------------------------------------------------------------------------- reading


async def visible(session: AsyncSession, user_id: UUID | None, transaction_id: UUID) -> Transaction | None:
    """The transaction, if this user (None: anybody) may see it."""
    statement = sa.select(TransactionRow).where(TransactionRow.id == transaction_id, _seen_by(user_id))
    row = (await session.scalars(statement)).one_or_none()
    return _from_row(row) if row else None


async def page(
    session: AsyncSession, user_id: UUID | None, limit: int, after: Transaction | None
) -> list[Transaction]:
    """At most `limit` of the transactions that this user (None: anybody) may see, newest first."""
    statement = sa.select(TransactionRow).where(_seen_by(user_id))
    if after is not None:
        position = sa.tuple_(TransactionRow.created_at, TransactionRow.id)
        statement = statement.where(position < sa.tuple_(sa.literal(after.created_at), sa.literal(after.id)))
    statement = statement.order_by(TransactionRow.created_at.desc(), TransactionRow.id.desc()).limit(limit)
    return [_from_row(row) for row in await session.scalars(statement)]


def _seen_by(user_id: UUID | None) -> sa.ColumnElement[bool]:
    """The payer sees a transaction from the start, the payee once it is completed, nobody else ever."""
    if user_id is None:
        return sa.true()
    received = sa.and_(TransactionRow.payee_user_id == user_id, TransactionRow.status == Status.COMPLETED)
    return sa.or_(TransactionRow.user_id == user_id, received)


def _from_row(row: TransactionRow) -> Transaction:
    return _transaction(
        {column: getattr(row, column) for column in _COLUMNS.split(", ") if column != "metadata"}
        | {"metadata": row.details}
    )


def _transaction(row: Any) -> Transaction:
    currency, available = row["currency"], row["available_minor"]
    metadata, created_at = row["metadata"], row["created_at"]
    completed_at: datetime | None = row["completed_at"]
    return Transaction(
        id=row["id"],
        type=Type(row["type"]),
        status=Status(row["status"]),
        user_id=row["user_id"],
        amount=Money(row["amount_minor"], currency),
        from_wallet_id=row["from_wallet_id"],
        to_wallet_id=row["to_wallet_id"],
        payment_method=row["payment_method"],
        description=row["description"],
        metadata=json.loads(metadata) if isinstance(metadata, str) else metadata,
        created_at=created_at,
        completed_at=completed_at,
        payee_user_id=row["payee_user_id"],
        failure_code=row["failure_code"],
        available=None if available is None else Money(available, currency),
        declined=row["declined"],
        attempts=row["attempts"],
        event_sequence=row["event_sequence"],
    )
