"""SQL of wallet-service: set-based functions for the ledger, ORM ones for reading."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Asyncpg, column
from shared.ids import new_id
from shared.money import Money
from wallet_service.domain import Account, AccountRef, Entry, Hold, HoldStatus, Outcome, Person, Refusal
from wallet_service.models import AccountRow, EntryRow, PersonRow

# ------------------------------------------------------------------------------------ the ledger


async def lock_accounts(connection: Asyncpg, refs: Collection[AccountRef]) -> dict[UUID, Account]:
    """The accounts, locked in the order of their ids; system accounts that are missing are made first."""
    found = await _lock_accounts(connection, refs)
    missing = sorted({ref for ref in refs if ref.name and ref.id not in found}, key=lambda ref: ref.id)
    if missing:
        await connection.execute(
            "insert into accounts (id, name, currency) "
            "select * from unnest($1::uuid[], $2::text[], $3::text[]) on conflict do nothing",
            [ref.id for ref in missing],
            [ref.name for ref in missing],
            [ref.currency for ref in missing],
        )
        found = await _lock_accounts(connection, refs)
    return found


async def locked_by_others(connection: Asyncpg, account_ids: Collection[UUID]) -> set[UUID]:
    """Those of the accounts that somebody else has locked; the others are locked now."""
    rows = await connection.fetch(
        "with free as materialized (select id from accounts where id = any($1) for no key update skip locked) "
        "select id from accounts where id = any($1) and id not in (select id from free)",
        list(account_ids),
    )
    return {row["id"] for row in rows}


async def lock_holds(connection: Asyncpg, ids: Collection[UUID]) -> dict[UUID, Hold]:
    """The holds with these ids, locked in the order of the ids."""
    rows = await connection.fetch(
        "select h.id, h.account_id, h.amount_minor, a.currency, h.status, h.refusal, h.available_minor "
        "from holds h left join accounts a on a.id = h.account_id "
        "where h.id = any($1) order by h.id for no key update of h",
        list(ids),
    )
    return {
        row["id"]: Hold(
            row["id"],
            HoldStatus(row["status"]),
            row["account_id"],
            Money(row["amount_minor"], row["currency"]) if row["account_id"] else None,
            Refusal(row["refusal"]) if row["refusal"] else None,
            row["available_minor"],
        )
        for row in rows
    }


async def known_outcomes(connection: Asyncpg, posting_ids: Collection[UUID]) -> tuple[dict[UUID, Outcome], datetime]:
    """What was decided before, and the database's clock: read after the locks, so that time follows their order."""
    now, *rows = await connection.fetch(
        "select null as id, null as refusal, null as available_minor, clock_timestamp() as now "
        "union all select id, refusal, available_minor, null from postings where id = any($1)",
        list(posting_ids),
    )
    outcomes = {
        row["id"]: Outcome(row["id"], Refusal(row["refusal"]) if row["refusal"] else None, row["available_minor"])
        for row in rows
    }
    return outcomes, now["now"]


async def insert_postings(connection: Asyncpg, outcomes: Sequence[Outcome]) -> int:
    """Remember what was decided; how many of them nobody else has decided meanwhile."""
    return _count(
        await connection.execute(
            "insert into postings (id, refusal, available_minor) "
            "select * from unnest($1::uuid[], $2::text[], $3::bigint[]) on conflict do nothing",
            [outcome.posting_id for outcome in outcomes],
            column([outcome.refusal for outcome in outcomes]),
            column([outcome.available_minor for outcome in outcomes]),
        )
    )


async def store_accounts(
    connection: Asyncpg, accounts: Sequence[Account], entries: Sequence[Entry], now: datetime
) -> None:
    """Store what became of the accounts, and append their `entries`, none of which is older than the last one of its
    account, whatever the clock did."""
    await connection.execute(
        "with changed as ("
        "  update accounts a set balance_minor = n.balance_minor, held_minor = n.held_minor, version = n.version, "
        "    status = n.status, revision = a.revision + 1, "
        "    last_entry_at = case when n.version = a.version then a.last_entry_at "
        "                    else greatest(a.last_entry_at, $6) end "
        "  from unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[]) "
        "    as n (id, balance_minor, held_minor, version, status) "
        "  where a.id = n.id and a.id = any($1) "  # said twice, or the planner may read all accounts
        "  returning a.id, a.last_entry_at"
        ") "
        "insert into entries (account_id, version, posting_id, amount_minor, balance_minor, created_at) "
        "select e.*, changed.last_entry_at "
        "from unnest($7::uuid[], $8::bigint[], $9::uuid[], $10::bigint[], $11::bigint[]) "
        "  as e (account_id, version, posting_id, amount_minor, balance_minor) "
        "join changed on changed.id = e.account_id",
        [account.id for account in accounts],
        [account.balance.minor for account in accounts],
        [account.held.minor for account in accounts],
        [account.version for account in accounts],
        [account.status for account in accounts],
        now,
        [entry.account_id for entry in entries],
        [entry.version for entry in entries],
        [entry.posting_id for entry in entries],
        [entry.amount.minor for entry in entries],
        [entry.balance.minor for entry in entries],
    )


async def store_holds(connection: Asyncpg, holds: Sequence[Hold], known: Collection[UUID]) -> int:
    """Store what became of the holds; those that are not `known` are new. How many were stored: somebody else may
    have made one of the new ones meanwhile."""
    new = [hold for hold in holds if hold.id not in known]
    ended = [hold for hold in holds if hold.id in known]
    count = 0
    if new:
        count += _count(
            await connection.execute(
                "insert into holds (id, account_id, amount_minor, status, refusal, available_minor, ended_at) "
                "select n.*, case when n.status <> 'open' then clock_timestamp() end "
                "from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::bigint[]) "
                "  as n (id, account_id, amount_minor, status, refusal, available_minor) on conflict do nothing",
                [hold.id for hold in new],
                [hold.account_id for hold in new],
                [hold.amount.minor if hold.amount else None for hold in new],
                [hold.status for hold in new],
                [hold.refusal for hold in new],
                [hold.available_minor for hold in new],
            )
        )
    if ended:
        count += _count(
            await connection.execute(
                "update holds h set status = n.status, ended_at = clock_timestamp() "
                "from unnest($1::uuid[], $2::text[]) as n (id, status) where h.id = n.id",
                [hold.id for hold in ended],
                [hold.status for hold in ended],
            )
        )
    return count


async def next_event_sequences(connection: Asyncpg, account_ids: Collection[UUID]) -> dict[UUID, int]:
    """Count one more event of each account, and answer its number."""
    rows = await connection.fetch(
        "update accounts set event_sequence = event_sequence + 1 where id = any($1) returning id, event_sequence",
        list(account_ids),
    )
    return {row["id"]: row["event_sequence"] for row in rows}


def _count(status: str) -> int:
    """The number of rows in a command's status, such as `INSERT 0 5`."""
    return int(status.rpartition(" ")[2])


async def _lock_accounts(connection: Asyncpg, refs: Collection[AccountRef]) -> dict[UUID, Account]:
    rows = await connection.fetch(
        f"select {_ACCOUNT} from accounts where id = any($1) order by id for no key update", [ref.id for ref in refs]
    )
    return {account.id: account for account in _accounts(rows)}


_ACCOUNT: Final = (
    "id, name, user_id, currency, status, balance_minor, held_minor, version, merchant, revision, created_at"
)


def _accounts(rows: Sequence[asyncpg.Record]) -> list[Account]:
    return [
        Account(
            id_,
            name,
            user_id,
            status,
            Money(balance, currency),
            Money(held, currency),
            version,
            merchant,
            revision,
            created_at,
        )
        for id_, name, user_id, currency, status, balance, held, version, merchant, revision, created_at in rows
    ]


# ------------------------------------------------------------------------------------ wallets


async def insert_wallet(session: AsyncSession, user_id: UUID, currency: str, *, merchant: bool) -> AccountRow | None:
    """The new wallet, or None when there is one in this currency."""
    statement = (
        insert(AccountRow)
        .values(id=new_id(), user_id=user_id, currency=currency, merchant=merchant)
        .on_conflict_do_nothing(constraint="accounts_user_currency")
        .returning(AccountRow)
    )
    return (await session.scalars(statement)).one_or_none()


async def wallets(connection: Asyncpg, ids: Collection[UUID]) -> list[Account]:
    """The wallets with these ids, as they are; system accounts are none."""
    return _accounts(
        await connection.fetch(
            f"select {_ACCOUNT} from accounts where id = any($1) and user_id is not null", list(ids)
        )
    )


async def wallet_ids_of(connection: Asyncpg, user_ids: Collection[UUID]) -> dict[UUID, list[UUID]]:
    """The ids of each person's wallets, newest first."""
    rows = await connection.fetch(
        "select user_id, array_agg(id order by id desc) as ids from accounts "
        "where user_id = any($1) group by user_id",
        list(user_ids),
    )
    return {row["user_id"]: row["ids"] for row in rows}


async def lock_wallets_of(session: AsyncSession, user_id: UUID) -> Sequence[AccountRow]:
    """A person's wallets, locked in the order of their ids."""
    statement = sa.select(AccountRow).where(AccountRow.user_id == user_id).order_by(AccountRow.id)
    return (await session.scalars(statement.with_for_update(key_share=True))).all()


async def wallet_in(session: AsyncSession, user_id: UUID, currency: str) -> AccountRow:
    """A person's wallet in a currency, locked."""
    statement = sa.select(AccountRow).where(AccountRow.user_id == user_id, AccountRow.currency == currency)
    return (await session.scalars(statement.with_for_update(key_share=True))).one()


async def wallet(session: AsyncSession, wallet_id: UUID, *, lock: bool = False) -> AccountRow | None:
    """The wallet with this id; system accounts are none. `lock` keeps the ledger from changing it."""
    statement = sa.select(AccountRow).where(AccountRow.id == wallet_id, AccountRow.user_id.is_not(None))
    if lock:
        statement = statement.with_for_update(key_share=True)
    return (await session.scalars(statement)).one_or_none()


async def balance_at(session: AsyncSession, wallet_id: UUID, instant: datetime) -> int:
    """Minor units in the wallet at that instant: after its last entry that is not later.

    Entries are in the order of their times, so halving the versions finds it by a handful of key look-ups.
    """
    statement = sa.text(
        "with recursive search (low, high) as ("
        "  select 0::bigint, version from accounts where id = :id"
        "  union all"
        "  select case when e.created_at <= :instant then e.version else low end,"
        "         case when e.created_at <= :instant then high else e.version - 1 end"
        "  from search join entries e on e.account_id = :id and e.version = (low + high + 1) / 2"
        "  where low < high) "
        "select balance_minor from entries e join search on low = high and e.version = low where e.account_id = :id"
    )
    return (await session.execute(statement, {"id": wallet_id, "instant": instant})).scalar() or 0


async def entries_of(
    session: AsyncSession, wallet_id: UUID, limit: int, after: int | None, before: int | None
) -> Sequence[EntryRow]:
    """At most `limit` entries of a wallet, newest first: those that follow version `after`, or come just `before`."""
    statement = sa.select(EntryRow).where(EntryRow.account_id == wallet_id).limit(limit)
    if before is not None:
        statement = statement.where(EntryRow.version > before).order_by(EntryRow.version)
        return (await session.scalars(statement)).all()[::-1]
    if after is not None:
        statement = statement.where(EntryRow.version < after)
    return (await session.scalars(statement.order_by(EntryRow.version.desc()))).all()


# ------------------------------------------------------------------------------------ people

_PERSON_LOCK: Final = 0x70657273  # "pers", with the person's hash beside it


async def lock_person(session: AsyncSession, user_id: UUID) -> None:
    """Keep everybody else from opening wallets for this person, and from learning of them, known or not."""
    await session.execute(
        sa.text("select pg_advisory_xact_lock(:lock, hashtext(:person))"),
        {"lock": _PERSON_LOCK, "person": str(user_id)},
    )


async def person(session: AsyncSession, user_id: UUID) -> PersonRow | None:
    """What is known of a person."""
    return await session.get(PersonRow, user_id)


async def has_wallets(session: AsyncSession, user_id: UUID) -> bool:
    """Whether the person has opened a wallet in any currency."""
    return bool(await session.scalar(sa.select(sa.exists().where(AccountRow.user_id == user_id))))


async def store_person(session: AsyncSession, person: Person) -> bool:
    """Learn what is newer than what is known; False for what is not."""
    statement = insert(PersonRow).values(person._asdict())
    statement = statement.on_conflict_do_update(
        index_elements=[PersonRow.user_id],
        set_={"role": person.role, "status": person.status, "sequence": person.sequence},
        where=PersonRow.sequence < person.sequence,
    )
    return (await session.scalar(statement.returning(PersonRow.user_id))) is not None
