"""SQL of transaction-service: set-based functions for the journal, ORM ones for one transaction or a page."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Asyncpg, column
from shared.money import Money
from transaction_service.answers import Answer
from transaction_service.domain import Command, Decision, Filters, Reversal, Status, Transaction, Type
from transaction_service.models import TransactionRow

_COLUMNS: Final = (
    "id, type, status, user_id, payee_user_id, from_wallet_id, to_wallet_id, amount_minor, fee_minor, "
    "refunded_minor, currency, payment_method, provider, description, metadata, original_id, original_type, "
    "failure_code, available_minor, declined, cancel_requested, attempts, event_sequence, created_at, completed_at"
)
_RETURNED: Final = ", ".join(f"t.{column}" for column in _COLUMNS.split(", "))
LOOK_LOCK_TIMEOUT_MS: Final = 1
# When the row is there, which may be long after the transaction began.
_NOW: Final = sa.func.clock_timestamp(type_=sa.DateTime(timezone=True))


_NO_METADATA: Final = "{}"

KeyId = tuple[UUID, str, str]  # user, operation, key


@dataclass(frozen=True, slots=True)
class KnownKey:
    """What an idempotency key stands for already."""

    fingerprint: bytes
    transaction_id: UUID
    answer: Answer | None


# -------------------------------------------------------------------------------------- the journal


def key_id(command: Command) -> KeyId:
    """What a command's key is remembered by."""
    return command.user_id, command.operation, command.key or ""


async def take_keys(connection: Asyncpg, items: Sequence[tuple[Command, UUID]]) -> set[UUID]:
    """Take each command's key for its transaction; answers the transactions that have theirs."""
    ids = [transaction_id for _, transaction_id in items]
    await connection.execute(
        "insert into idempotency_keys (user_id, operation, key, fingerprint, transaction_id) "
        "select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::uuid[]) "
        "  as k (user_id, operation, key, fingerprint, transaction_id) "
        "order by k.user_id, k.operation, k.key on conflict do nothing",
        [command.user_id for command, _ in items],
        [command.operation for command, _ in items],
        [command.key for command, _ in items],
        [command.fingerprint() for command, _ in items],
        ids,
    )
    rows = await connection.fetch("select transaction_id from idempotency_keys where transaction_id = any($1)", ids)
    return {row["transaction_id"] for row in rows}


async def known_keys(connection: Asyncpg, commands: Sequence[Command]) -> dict[KeyId, KnownKey]:
    """What the keys of these commands stand for, by user, operation and key."""
    rows = await connection.fetch(
        "select k.user_id, k.operation, k.key, k.fingerprint, k.transaction_id, k.response_status, k.response_body "
        "from unnest($1::uuid[], $2::text[], $3::text[]) as w (user_id, operation, key) "
        "join idempotency_keys k using (user_id, operation, key)",
        [command.user_id for command in commands],
        [command.operation for command in commands],
        [command.key for command in commands],
    )
    return {
        (row["user_id"], row["operation"], row["key"]): KnownKey(
            row["fingerprint"],
            row["transaction_id"],
            Answer(row["response_status"], row["response_body"], replayed=True) if row["response_status"] else None,
        )
        for row in rows
    }


async def lock(connection: Asyncpg, transaction_ids: Collection[UUID]) -> None:
    """Lock the transactions in the order of their ids, so that no two batches wait for each other."""
    await connection.execute(
        "select from transactions where id = any($1) order by id for no key update", list(transaction_ids)
    )


async def locked_by_others(connection: Asyncpg, transaction_ids: Collection[UUID]) -> set[UUID]:
    """Those of the transactions that somebody else has locked, or the keys of which; this locks nothing."""
    await connection.execute("savepoint looking")
    rows = await connection.fetch(
        "with t as materialized (select id from transactions where id = any($1) for no key update skip locked), "
        "k as materialized ("
        "  select user_id, operation, key from idempotency_keys where transaction_id = any($1) "
        "  for update skip locked) "
        "select id from transactions where id = any($1) and id not in (select id from t) "
        "union select transaction_id from idempotency_keys where transaction_id = any($1) "
        "  and (user_id, operation, key) not in (select user_id, operation, key from k)",
        list(transaction_ids),
    )
    await connection.execute("rollback to savepoint looking")
    return {row["id"] for row in rows}


async def keys_of_others(connection: Asyncpg, commands: Sequence[Command], seconds: float) -> set[KeyId]:
    """Those of the commands' keys that somebody else is taking or letting go of; this takes none.

    What a transaction that is under way does with a key can only be seen by running into it. What could not be looked
    at within `seconds` is in the answer, too.
    """
    await connection.execute(f"set local lock_timeout = {LOOK_LOCK_TIMEOUT_MS}")
    until = time.monotonic() + seconds
    kept = set()
    await connection.execute("savepoint looking")
    for command in commands:
        if time.monotonic() > until:
            kept.add(key_id(command))
            continue
        try:
            await connection.execute(
                "insert into idempotency_keys (user_id, operation, key, fingerprint, transaction_id) "
                "values ($1, $2, $3, '', $1) on conflict do nothing",
                *key_id(command),
            )
        except asyncpg.LockNotAvailableError:
            kept.add(key_id(command))
        await connection.execute("rollback to savepoint looking")
    return kept


async def insert_transactions(
    connection: Asyncpg, items: Sequence[tuple[Command, UUID]], lease_seconds: float
) -> dict[UUID, Transaction]:
    """Put the commands on record as pending; nobody else takes them up for `lease_seconds`."""
    commands = [command for command, _ in items]
    rows = await connection.fetch(
        "insert into transactions as t (id, type, user_id, from_wallet_id, to_wallet_id, amount_minor, fee_minor, "
        "  currency, payment_method, description, metadata, original_id, original_type, next_attempt_at) "
        "select n.*, now() + make_interval(secs => $14) from unnest($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], "
        "  $5::uuid[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[], $11::jsonb[], $12::uuid[], "
        "  $13::text[]) as n "
        f"on conflict (id) do nothing returning {_RETURNED}",
        [transaction_id for _, transaction_id in items],
        [command.type for command in commands],
        [command.user_id for command in commands],
        [command.from_wallet_id for command in commands],
        [command.to_wallet_id for command in commands],
        [command.amount.minor if command.amount else None for command in commands],
        [command.fee_minor for command in commands],
        [command.amount.currency if command.amount else None for command in commands],
        column([command.payment_method for command in commands]),
        [command.description for command in commands],
        [json.dumps(command.metadata) if command.metadata else _NO_METADATA for command in commands],
        column([command.original_id for command in commands]),
        column([command.original_type for command in commands]),
        lease_seconds,
    )
    inserted = {row["id"]: _transaction(row) for row in rows}
    if len(inserted) < len(items):  # the others are there already, after an unknown commit
        inserted |= await by_ids(connection, {id_ for _, id_ in items} - inserted.keys())
    for command, id_ in items:
        inserted[id_].trace, inserted[id_].keyed = command.trace, command.key is not None
    return inserted


async def insert_reversal(connection: Asyncpg, reversal: Reversal, transaction_id: UUID) -> None:
    """Put on record, to be carried out at once, that a provider has undone a transaction; once for each.

    What a dispute takes cannot be refunded any more.
    """
    await connection.execute(
        "with undone as ("
        "  insert into transactions (id, type, user_id, from_wallet_id, to_wallet_id, amount_minor, currency, "
        "    payment_method, provider, metadata, original_id, original_type, next_attempt_at) "
        "  select $2, $3, o.user_id, o.to_wallet_id, o.from_wallet_id, $4, o.currency, "
        "    o.payment_method, $5, '{}', o.id, o.type, now() from transactions o where o.id = $1 "
        "  on conflict do nothing returning original_id, type) "
        "update transactions o set refunded_minor = least(o.amount_minor, o.refunded_minor + $4) "
        "from undone where o.id = undone.original_id and undone.type = 'dispute'",
        reversal.original_id,
        transaction_id,
        reversal.type,
        reversal.amount_minor,
        reversal.provider,
    )


async def add_refunded(connection: Asyncpg, deltas: Mapping[UUID, int]) -> None:
    """Reserve so many minor units of the transactions for refunds."""
    await connection.execute(
        "update transactions t set refunded_minor = t.refunded_minor + d.delta_minor "
        "from unnest($1::uuid[], $2::bigint[]) as d (id, delta_minor) where t.id = d.id",
        list(deltas),
        list(deltas.values()),
    )


async def recount_refunded(connection: Asyncpg, transaction_ids: Collection[UUID]) -> None:
    """Let go of what failed refunds had reserved of the transactions, which are locked.

    Counted anew: a dispute may have taken what was reserved, and keeps it.
    """
    await connection.execute(
        "update transactions o set refunded_minor = least(o.amount_minor, ("
        "  select coalesce(sum(r.amount_minor), 0) from transactions r where r.original_id = o.id "
        "  and (r.type = 'dispute' or (r.type = 'refund' and r.status <> 'failed')))) "
        "where o.id = any($1)",
        list(transaction_ids),
    )


async def claim(
    connection: Asyncpg, transaction_ids: Collection[UUID], lease_seconds: float
) -> dict[UUID, Transaction]:
    """Those of the transactions that are open and that nobody works on, now leased to the caller."""
    rows = await connection.fetch(
        "update transactions t set attempts = t.attempts + 1, next_attempt_at = now() + make_interval(secs => $2) "
        f"where id = any($1) and status = 'pending' and next_attempt_at <= now() returning {_RETURNED}",
        list(transaction_ids),
        lease_seconds,
    )
    return {row["id"]: _transaction(row) for row in rows}


async def wake(connection: Asyncpg, transaction_id: UUID) -> None:
    """Have the sweeper take the transaction up at once, if it waits: before that its request is at work on it."""
    await connection.execute(
        "update transactions set next_attempt_at = now() where id = $1 and status = 'pending' and event_sequence > 0",
        transaction_id,
    )


async def first_time(connection: Asyncpg, event_id: UUID) -> bool:
    """Remember the event; False when it was handled before."""
    status = await connection.execute("insert into inbox (event_id) values ($1) on conflict do nothing", event_id)
    return status == "INSERT 0 1"


async def delete_old_keys(connection: Asyncpg, days: int, limit: int) -> int:
    """Forget at most `limit` keys that are older than `days`; how many there were."""
    status = await connection.execute(
        "delete from idempotency_keys where ctid = any(array("
        "  select k.ctid from idempotency_keys k where k.created_at < now() - make_interval(days => $1) limit $2))",
        days,
        limit,
    )
    return int(status.rpartition(" ")[2])


async def claim_due(
    connection: Asyncpg, types: Collection[Type], limit: int, lease_seconds: float
) -> list[Transaction]:
    """At most `limit` open transactions of these types whose time has come, leased to the caller."""
    rows = await connection.fetch(
        "with due as materialized ("
        "  select id from transactions where status = 'pending' and next_attempt_at <= now() and type = any($3) "
        "  order by next_attempt_at limit $1 for no key update skip locked) "
        "update transactions t set attempts = t.attempts + 1, next_attempt_at = now() + make_interval(secs => $2) "
        f"from due where t.id = due.id returning {_RETURNED}",
        limit,
        lease_seconds,
        list(types),
    )
    return [_transaction(row) for row in rows]


async def close(connection: Asyncpg, decisions: Sequence[Decision]) -> dict[UUID, Transaction]:
    """End the transactions that are still pending; answers only those."""
    rows = await connection.fetch(
        "update transactions t set status = d.status, failure_code = d.failure_code, "
        "  available_minor = d.available_minor, payee_user_id = d.payee_user_id, declined = d.declined, "
        "  provider = coalesce(d.provider, t.provider), completed_at = clock_timestamp(), "
        "  next_attempt_at = null, event_sequence = t.event_sequence + 1 "
        "from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::uuid[], $6::boolean[], $7::text[]) "
        "  as d (id, status, failure_code, available_minor, payee_user_id, declined, provider) "
        f"where t.id = d.id and t.status = 'pending' returning {_RETURNED}",
        [decision.transaction.id for decision in decisions],
        [decision.status for decision in decisions],
        column([decision.failure_code for decision in decisions]),
        column([decision.available_minor for decision in decisions]),
        [decision.payee_user_id for decision in decisions],
        [decision.declined for decision in decisions],
        column([decision.provider for decision in decisions]),
    )
    return {row["id"]: _transaction(row) for row in rows}


async def begin_waiting(connection: Asyncpg, transaction_ids: Collection[UUID]) -> dict[UUID, Transaction]:
    """Leave what is pending to the sweeper, with a back-off that doubles to a minute; answers what waits from now."""
    await connection.execute(
        "update transactions set next_attempt_at = now() "
        "  + make_interval(secs => least(60, power(2, least(attempts, 6))) * (0.5 + random() / 2)) "
        "where id = any($1) and status = 'pending' and next_attempt_at > now()",  # unless news has come meanwhile
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


# -------------------------------------------------------------------------------------- one at a time


async def request_cancel(session: AsyncSession, transaction_id: UUID, lease_seconds: float) -> Transaction | None:
    """Note that the owner wants the transaction stopped, if it is still open; it is leased to the caller."""
    statement = (
        sa.update(TransactionRow)
        .where(TransactionRow.id == transaction_id, TransactionRow.status == Status.PENDING)
        .values(
            cancel_requested=True,
            attempts=TransactionRow.attempts + 1,
            next_attempt_at=_NOW + timedelta(seconds=lease_seconds),
        )
        .returning(TransactionRow)
    )
    row = (await session.scalars(statement)).one_or_none()
    return _from_row(row) if row else None


async def visible(session: AsyncSession, user_id: UUID | None, transaction_id: UUID) -> Transaction | None:
    """The transaction, if this user (None: anybody) may see it."""
    statement = sa.select(TransactionRow).where(TransactionRow.id == transaction_id, _seen_by(user_id))
    row = (await session.scalars(statement)).one_or_none()
    return _from_row(row) if row else None


async def page(
    session: AsyncSession,
    user_id: UUID | None,
    filters: Filters,
    limit: int,
    cursor: Transaction | None,
    *,
    newer: bool = False,
) -> list[Transaction]:
    """At most `limit` of the transactions that this user (None: anybody) may see, newest first.

    They are the ones next to the cursor, on its older side, or the `newer` one.
    """
    conditions = _conditions(filters)
    position = sa.tuple_(TransactionRow.created_at, TransactionRow.id)
    if cursor is not None:
        at = sa.tuple_(sa.literal(cursor.created_at), sa.literal(cursor.id))
        conditions.append(position > at if newer else position < at)

    columns = (TransactionRow.created_at, TransactionRow.id)
    order = columns if newer else tuple(column.desc() for column in columns)

    def nearest(*more: sa.ColumnElement[bool]) -> sa.ScalarSelect[UUID]:
        ids = sa.select(TransactionRow.id).where(*conditions, *more).order_by(*order).limit(limit)
        return ids.correlate(None).scalar_subquery()

    # Each half walks its own index; an OR in one query would walk neither.
    halves = [nearest()] if user_id is None else [nearest(_paid_by(user_id)), nearest(_received_by(user_id))]
    statement = sa.select(TransactionRow).where(sa.or_(*(TransactionRow.id.in_(half) for half in halves)))
    statement = statement.order_by(*order).limit(limit)
    found = [_from_row(row) for row in await session.scalars(statement)]
    return found[::-1] if newer else found


def _conditions(filters: Filters) -> list[sa.ColumnElement[bool]]:
    row = TransactionRow
    equal = {row.type: filters.type, row.status: filters.status, row.currency: filters.currency}
    conditions = [column == value for column, value in equal.items() if value is not None]
    if filters.wallet_id is not None:
        conditions.append(sa.or_(row.from_wallet_id == filters.wallet_id, row.to_wallet_id == filters.wallet_id))
    if filters.min_minor is not None:
        conditions.append(row.amount_minor >= filters.min_minor)
    if filters.max_minor is not None:
        conditions.append(row.amount_minor <= filters.max_minor)
    if filters.created_from is not None:
        conditions.append(row.created_at >= filters.created_from)
    if filters.created_to is not None:
        conditions.append(row.created_at < filters.created_to)
    return conditions


def _seen_by(user_id: UUID | None) -> sa.ColumnElement[bool]:
    """The payer sees a transaction from the start, the payee once it is completed, nobody else ever."""
    if user_id is None:
        return sa.true()
    return sa.or_(_paid_by(user_id), _received_by(user_id))


def _paid_by(user_id: UUID) -> sa.ColumnElement[bool]:
    return TransactionRow.user_id == user_id


def _received_by(user_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(TransactionRow.payee_user_id == user_id, TransactionRow.status == Status.COMPLETED)


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
        fee=Money(row["fee_minor"], currency),
        refunded=Money(row["refunded_minor"], currency),
        from_wallet_id=row["from_wallet_id"],
        to_wallet_id=row["to_wallet_id"],
        payment_method=row["payment_method"],
        description=row["description"],
        metadata=_metadata(metadata) if isinstance(metadata, str) else metadata,
        created_at=created_at,
        original_id=row["original_id"],
        original_type=Type(row["original_type"]) if row["original_type"] else None,
        provider=row["provider"],
        completed_at=completed_at,
        payee_user_id=row["payee_user_id"],
        failure_code=row["failure_code"],
        available=None if available is None else Money(available, currency),
        declined=row["declined"],
        cancel_requested=row["cancel_requested"],
        attempts=row["attempts"],
        event_sequence=row["event_sequence"],
    )


def _metadata(text: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(text) if text != _NO_METADATA else {}
    return found
