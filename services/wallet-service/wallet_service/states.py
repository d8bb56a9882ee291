"""Wallets as people see them: from Redis when they are warm there, else from the database."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec
from redis.asyncio import Redis

from shared.cache import Cache, Versioned
from shared.database import Database
from shared.metrics import CacheMetrics
from wallet_service import queries
from wallet_service.domain import Account
from wallet_service.models import AccountRow

TTL_SECONDS: Final = 300.0


class WalletState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A wallet as of one revision."""

    id: UUID
    user_id: UUID
    currency: str
    status: str
    balance_minor: int
    held_minor: int
    created_at: datetime

    @classmethod
    def of(cls, row: AccountRow) -> "WalletState":
        """The wallet that the row is; raises TypeError for a system account, which has no owner."""
        if row.user_id is None:
            raise TypeError("a system account is nobody's wallet")
        return cls(row.id, row.user_id, row.currency, row.status, row.balance_minor, row.held_minor, row.created_at)


class WalletStates:
    """The cache of wallets, and of which wallets a person has.

    A wallet's version is its revision. A person's list only grows, so that its length is its version.
    """

    def __init__(self, database: Database, redis: Redis, metrics: CacheMetrics, key_prefix: str) -> None:
        self._database = database
        self._redis = redis
        self._wallets = Cache(redis, metrics, f"{key_prefix}wallets:wallet", TTL_SECONDS, WalletState, self._load)
        self._lists = Cache(redis, metrics, f"{key_prefix}wallets:list", TTL_SECONDS, list[UUID], self._load_lists)

    async def get(self, wallet_id: UUID) -> WalletState | None:
        """One wallet, whoever owns it."""
        return await self._wallets.get(str(wallet_id))

    async def of(self, user_id: UUID) -> list[WalletState]:
        """A person's wallets, newest first."""
        ids = await self._lists.get(str(user_id))
        found = await self._wallets.get_many([str(id_) for id_ in ids]) if ids else []
        return [wallet for wallet in found if wallet is not None]

    def put(self, accounts: Iterable[Account], changed: frozenset[UUID] | set[UUID]) -> None:
        """Say how a batch left the accounts; those in `changed` are a revision later than they were read."""
        self._wallets.put(
            {str(each.id): _versioned(each, each.id in changed) for each in accounts if each.user_id is not None}
        )

    def put_rows(self, rows: Sequence[AccountRow]) -> None:
        """Say how a transaction left the wallets."""
        self._wallets.put({str(row.id): Versioned(row.revision, WalletState.of(row)) for row in rows})

    async def renew_list(self, user_id: UUID) -> None:
        """Read anew which wallets a person has, after one more was committed."""
        self._lists.put(await self._load_lists([str(user_id)]))

    async def settle(self) -> None:
        """Return when everybody can read what was put, or cannot for another reason than that it is on its way."""
        await self._wallets.settle()
        await self._lists.settle()

    async def check(self) -> None:
        """Raises when Redis does not answer."""
        await self._redis.ping()

    async def close(self) -> None:
        """Write what is left."""
        await self._wallets.close()
        await self._lists.close()

    async def _load(self, keys: Sequence[str]) -> Mapping[str, Versioned[WalletState]]:
        async with self._database.batch() as connection:
            found = await queries.wallets(connection, [UUID(key) for key in keys])
        return {str(account.id): _versioned(account) for account in found}

    async def _load_lists(self, keys: Sequence[str]) -> Mapping[str, Versioned[list[UUID]]]:
        async with self._database.batch() as connection:
            found = await queries.wallet_ids_of(connection, [UUID(key) for key in keys])
        lists = {key: found.get(UUID(key), []) for key in keys}
        return {key: Versioned(len(ids), ids) for key, ids in lists.items()}


def _versioned(account: Account, changed: bool = False) -> Versioned[WalletState]:
    state = WalletState(
        account.id,
        account.user_id,  # type: ignore[arg-type] # a wallet has an owner
        account.balance.currency,
        account.status,
        account.balance.minor,
        account.held.minor,
        account.created_at,  # type: ignore[arg-type] # it was read from the database
    )
    return Versioned(account.revision + changed, state)
