"""SQL of wallet-service: set-based functions for the ledger, ORM ones for reading."""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Asyncpg
from shared.ids import new_id
from shared.money import Money
from wallet_service.domain import Account, AccountRef, Entry, Outcome, Refusal
from wallet_service.models import AccountRow, EntryRow

# ------------------------------------------------------------------------------------ the ledger

_ACCOUNT_COLUMNS = "id, name, user_id, currency, status, balance_minor, held_minor, version"


async def lock_accounts(connection: Asyncpg, refs: Collection[AccountRef]) -> dict[UUID, Account]:
    """The accounts, locked in the order of their ids; system accounts that are missing are made first."""
    found = await _select_accounts(connection, refs)
    missing = sorted({ref for ref in refs if ref.name and ref.id not in found}, key=lambda ref: ref.id)
    if missing:
        await connection.execute(
            "insert into accounts (id, name, currency) "
            "select * from unnest($1::uuid[], $2::text[], $3::text[]) on conflict do nothing",
            [ref.id for ref in missing],
            [ref.name for ref in missing],
            [ref.currency for ref in missing],
        )
        found = await _select_accounts(connection, refs)
    return found


async def lock_wallets(connection: Asyncpg, refs: Collection[AccountRef]) -> dict[UUID, Account]:
    """The wallets, locked in the order of their ids; system accounts, which nothing is taken from, as empty ones."""
    found = await _select_accounts(connection, [ref for ref in refs if ref.name is None])
    for ref in refs:
        if ref.currency:
            zero = Money(0, ref.currency)
            found[ref.id] = Account(ref.id, ref.name, None, "active", zero, zero, 0)
    return found


async def known_outcomes(connection: Asyncpg, posting_ids: Collection[UUID]) -> tuple[dict[UUID, Outcome], datetime]:
    """What was decided before, and the database's clock: read after the locks, so that time follows their order."""
    now: datetime = await connection.fetchval("select clock_timestamp()")
    rows = await connection.fetch(
        "select id, refusal, available_minor from postings where id = any($1)", list(posting_ids)
    )
    outcomes = {
        row["id"]: Outcome(row["id"], Refusal(row["refusal"]) if row["refusal"] else None, row["available_minor"])
        for row in rows
    }
    return outcomes, now


async def insert_postings(connection: Asyncpg, outcomes: Sequence[Outcome]) -> set[UUID]:
    """Remember what was decided; the ids that somebody else has decided meanwhile are left out of the answer."""
    rows = await connection.fetch(
        "insert into postings (id, refusal, available_minor) "
        "select * from unnest($1::uuid[], $2::text[], $3::bigint[]) on conflict do nothing returning id",
        [outcome.posting_id for outcome in outcomes],
        [outcome.refusal for outcome in outcomes],
        [outcome.available_minor for outcome in outcomes],
    )
    return {row["id"] for row in rows}


async def insert_entries(connection: Asyncpg, entries: Sequence[Entry], now: datetime) -> None:
    """Append `entries`; none is older than the last one of its account, whatever the clock did."""
    await connection.execute(
        "insert into entries (account_id, version, posting_id, amount_minor, balance_minor, created_at) "
        "select e.*, greatest(a.last_entry_at, $6) "
        "from unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::bigint[], $5::bigint[]) "
        "  as e (account_id, version, posting_id, amount_minor, balance_minor) "
        "join accounts a on a.id = e.account_id",
        [entry.account_id for entry in entries],
        [entry.version for entry in entries],
        [entry.posting_id for entry in entries],
        [entry.amount.minor for entry in entries],
        [entry.balance.minor for entry in entries],
        now,
    )


async def update_accounts(connection: Asyncpg, accounts: Sequence[Account], now: datetime) -> None:
    """Store the balances that the entries led to."""
    await connection.execute(
        "update accounts a set balance_minor = n.balance_minor, version = n.version, "
        "  last_entry_at = greatest(a.last_entry_at, $4) "
        "from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as n (id, balance_minor, version) "
        "where a.id = n.id",
        [account.id for account in accounts],
        [account.balance.minor for account in accounts],
        [account.version for account in accounts],
        now,
    )


async def _select_accounts(connection: Asyncpg, refs: Collection[AccountRef]) -> dict[UUID, Account]:
    rows = await connection.fetch(
        f"select {_ACCOUNT_COLUMNS} from accounts where id = any($1) order by id for no key update",
        sorted({ref.id for ref in refs}),
    )
    return {
        row["id"]: Account(
            id=row["id"],
            name=row["name"],
            user_id=row["user_id"],
            status=row["status"],
            balance=Money(row["balance_minor"], row["currency"]),
            held=Money(row["held_minor"], row["currency"]),
            version=row["version"],
        )
        for row in rows
    }


# ------------------------------------------------------------------------------------ wallets


async def insert_wallet(session: AsyncSession, user_id: UUID, currency: str) -> AccountRow | None:
    """The new wallet, or None when there is one in this currency."""
    statement = (
        insert(AccountRow)
        .values(id=new_id(), user_id=user_id, currency=currency)
        .on_conflict_do_nothing(constraint="accounts_user_currency")
        .returning(AccountRow)
    )
    return (await session.scalars(statement)).one_or_none()


async def wallets_of(session: AsyncSession, user_id: UUID, currency: str | None = None) -> Sequence[AccountRow]:
    """A person's wallets, newest first."""
    statement = sa.select(AccountRow).where(AccountRow.user_id == user_id)
    if currency is not None:
        statement = statement.where(AccountRow.currency == currency)
    return (await session.scalars(statement.order_by(AccountRow.id.desc()))).all()


async def wallet(session: AsyncSession, wallet_id: UUID) -> AccountRow | None:
    """The wallet with this id; system accounts are none."""
    statement = sa.select(AccountRow).where(AccountRow.id == wallet_id, AccountRow.user_id.is_not(None))
    return (await session.scalars(statement)).one_or_none()


async def entries_of(
    session: AsyncSession, wallet_id: UUID, limit: int, before_version: int | None
) -> Sequence[EntryRow]:
    """At most `limit` entries of a wallet, newest first."""
    statement = sa.select(EntryRow).where(EntryRow.account_id == wallet_id)
    if before_version is not None:
        statement = statement.where(EntryRow.version < before_version)
    return (await session.scalars(statement.order_by(EntryRow.version.desc()).limit(limit))).all()
