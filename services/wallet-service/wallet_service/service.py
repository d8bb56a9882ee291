"""Use cases of wallet-service."""

from collections import defaultdict
from collections.abc import Sequence
from uuid import UUID

import asyncpg

from shared import outbox
from shared.auth import Principal
from shared.database import Asyncpg, Database, with_retries
from shared.errors import ForbiddenError, NotFoundError
from shared.events import OutgoingEvent, PostedEntry, WalletCreated, WalletsPosted
from shared.outbox import Relay
from wallet_service import models, queries
from wallet_service.domain import AccountRef, Book, Outcome, Posting, WalletExistsError


class Ledger:
    """Moves money: a batch is one transaction with a fixed number of statements."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay

    async def apply(self, postings: Sequence[Posting]) -> list[Outcome]:
        """Apply or refuse each posting for good, in order; one that was decided before keeps its outcome."""
        outcomes = await with_retries(lambda: self._apply(postings))
        self._relay.wake()
        return outcomes

    async def check(self, postings: Sequence[Posting]) -> list[Outcome]:
        """Refuse for good what breaks a rule of owner, currency or status, before outside money moves for it."""
        return await with_retries(lambda: self._check(postings))

    async def _apply(self, postings: Sequence[Posting]) -> list[Outcome]:
        async with self._database.batch() as connection:
            accounts = await queries.lock_accounts(connection, _refs(postings))
            known, now = await queries.known_outcomes(connection, [posting.id for posting in postings])
            book = Book(accounts, known)
            outcomes = book.apply(postings)
            await self._store_decisions(connection, book)
            if book.entries:
                await queries.insert_entries(connection, book.entries, now)
                await queries.update_accounts(connection, [book.accounts[id_] for id_ in book.touched], now)
                await outbox.append_batch(connection, _posted_events(postings, book))
            return outcomes

    async def _check(self, postings: Sequence[Posting]) -> list[Outcome]:
        async with self._database.batch() as connection:
            accounts = await queries.lock_wallets(connection, _refs(postings))
            known, _ = await queries.known_outcomes(connection, [posting.id for posting in postings])
            book = Book(accounts, known)
            outcomes = book.check(postings)
            await self._store_decisions(connection, book)
            return outcomes

    async def _store_decisions(self, connection: Asyncpg, book: Book) -> None:
        if book.decided and len(await queries.insert_postings(connection, book.decided)) < len(book.decided):
            # Refused for want of a wallet, so without a common lock, and decided elsewhere at the same moment.
            raise asyncpg.SerializationError("postings were decided meanwhile")


class Wallets:
    """Opening and reading wallets."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay

    async def create(self, caller: Principal, user_id: UUID, currency: str) -> models.AccountRow:
        """Open a wallet for oneself, or for anybody as admin; raises WalletExistsError."""
        if user_id != caller.user_id and caller.role != "admin":
            raise ForbiddenError("`user_id` must be your own; only an admin opens wallets for others.")
        async with self._database.transaction() as session:
            row = await queries.insert_wallet(session, user_id, currency)
            if row is None:
                existing = await queries.wallets_of(session, user_id, currency)
                raise WalletExistsError(existing[0].id)
            event = OutgoingEvent.of(
                WalletCreated(wallet_id=row.id, user_id=user_id, currency=currency),
                subject=row.id,
                sequence=1,
                actor=str(caller.user_id),
            )
            await outbox.append(session, models.outbox, [event])
        self._relay.wake()
        return row

    async def of(self, caller: Principal) -> Sequence[models.AccountRow]:
        """The caller's wallets."""
        async with self._database.transaction() as session:
            return await queries.wallets_of(session, caller.user_id)

    async def get(self, caller: Principal, wallet_id: UUID) -> models.AccountRow:
        """One wallet of the caller's, or any as admin; raises NotFoundError."""
        async with self._database.transaction() as session:
            return _visible(await queries.wallet(session, wallet_id), caller)

    async def entries(
        self, caller: Principal, wallet_id: UUID, limit: int, before_version: int | None
    ) -> tuple[models.AccountRow, Sequence[models.EntryRow], bool]:
        """A wallet, at most `limit` of its entries, newest first, and whether there are more."""
        async with self._database.transaction() as session:
            row = _visible(await queries.wallet(session, wallet_id), caller)
            entries = await queries.entries_of(session, wallet_id, limit + 1, before_version)
        return row, entries[:limit], len(entries) > limit


def _refs(postings: Sequence[Posting]) -> set[AccountRef]:
    return {ref for posting in postings for ref in (posting.source, posting.target)}


def _visible(row: models.AccountRow | None, caller: Principal) -> models.AccountRow:
    if row is None or (row.user_id != caller.user_id and caller.role != "admin"):
        raise NotFoundError("wallet")
    return row


def _posted_events(postings: Sequence[Posting], book: Book) -> list[OutgoingEvent]:
    """One event for each posting of the batch that was applied now."""
    entries: dict[UUID, list[PostedEntry]] = defaultdict(list)
    for entry in book.entries:
        owner = book.accounts[entry.account_id].user_id
        if owner is not None:
            entries[entry.posting_id].append(
                PostedEntry(
                    wallet_id=entry.account_id,
                    user_id=owner,
                    amount_minor=entry.amount.minor,
                    balance_minor=entry.balance.minor,
                    version=entry.version,
                )
            )
    return [
        OutgoingEvent.of(
            WalletsPosted(posting_id=posting.id, currency=posting.amount.currency, entries=entries.pop(posting.id)),
            subject=posting.id,
            sequence=1,
            actor=str(posting.user_id),
        )
        for posting in postings
        if posting.id in entries
    ]
