"""Use cases of wallet-service."""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.auth import Principal
from shared.batching import Batcher
from shared.database import Asyncpg, Database, LockTimeoutError, with_retries
from shared.errors import ForbiddenError, NotFoundError
from shared.events import (
    Envelope,
    OutgoingEvent,
    WalletClosed,
    WalletCreated,
    WalletFrozen,
    WalletReopened,
    WalletStatusEvent,
    WalletUnfrozen,
)
from shared.http.context import Trace
from shared.inbox import new_ones
from shared.money import Money
from shared.outbox import Relay
from wallet_service import models, queries
from wallet_service.domain import (
    Action,
    Book,
    Outcome,
    Unit,
    UserStatusError,
    WalletExistsError,
    WalletNotEmptyError,
    WalletStatusError,
)
from wallet_service.events import events_of, person_of
from wallet_service.states import WalletState, WalletStates

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

MAX_BATCH: Final = 256  # postings in one transaction
MAX_WAITING: Final = 4096  # postings that wait for their transaction; beyond it, 503
MAX_IN_FLIGHT: Final = 2  # transactions: while one is being committed, the next one is decided


class Ledger:
    """Moves money: a batch is one transaction with a fixed number of statements."""

    def __init__(self, database: Database, relay: Relay, states: WalletStates | None = None) -> None:
        self._database = database
        self._relay = relay
        self._states = states
        self._batcher: Batcher[Unit, list[Outcome]] = Batcher(
            self._apply, max_size=MAX_BATCH, max_in_flight=MAX_IN_FLIGHT, max_waiting=MAX_WAITING, weigh=len
        )

    @property
    def busy(self) -> bool:
        """Whether a batch is under way."""
        return self._batcher.busy

    async def apply(self, units: Sequence[Unit]) -> list[list[Outcome] | Exception]:
        """Apply or refuse each unit for good, wholly, in order; a posting that was decided before keeps its outcome.

        A unit that the database would not have, or could not get at, has the exception as its outcome: nothing of it
        was done. A ConnectionError leaves open whether it was.
        """
        return await self._batcher.submit(units)

    async def settle(self) -> None:
        """Return when what was applied can be read by everybody; 50 ms at most, and at once where nothing caches."""
        if self._states is not None:
            await self._states.settle()

    async def close(self) -> None:
        """Finish what was begun; new postings are refused."""
        await self._batcher.close()

    async def _apply(self, units: Sequence[Unit]) -> Sequence[list[Outcome] | Exception]:
        try:
            return await self._applied(units)
        except LockTimeoutError:
            kept = await self._kept_from(units)
            if not kept:
                return await self._applied(units)
        return await self._apply_around(units, kept)

    async def _applied(self, units: Sequence[Unit]) -> list[list[Outcome]]:
        outcomes = await with_retries(lambda: self._apply_once(units))
        self._relay.wake()
        return outcomes

    async def _apply_around(self, units: Sequence[Unit], kept: set[UUID]) -> list[list[Outcome] | Exception]:
        """Apply what has nothing to do with the accounts that somebody keeps, and then try the rest once more.

        One stuck row delays what concerns it, and nobody else for longer than two lock time-outs.
        """
        stuck = [any(ref.id in kept for posting in unit for ref in posting.locked) for unit in units]
        free = [unit for unit, is_stuck in zip(units, stuck, strict=True) if not is_stuck]
        applied = iter(await self._applied(free) if free else [])
        late: Iterator[list[Outcome] | Exception]
        try:
            late = iter(await self._applied([unit for unit, is_stuck in zip(units, stuck, strict=True) if is_stuck]))
        except (LockTimeoutError, OSError) as error:
            late = itertools.repeat(error)
        return [next(late) if is_stuck else next(applied) for is_stuck in stuck]

    async def _kept_from(self, units: Sequence[Unit]) -> set[UUID]:
        """The accounts of these units that somebody else keeps locked."""
        ids = {ref.id for unit in units for posting in unit for ref in posting.locked}
        async with self._database.batch() as connection:
            return await queries.locked_by_others(connection, ids)

    async def _apply_once(self, units: Sequence[Unit]) -> list[list[Outcome]]:
        postings = [posting for unit in units for posting in unit]
        async with self._database.batch() as connection:
            accounts = await queries.lock_accounts(
                connection, {ref for posting in postings for ref in posting.locked}
            )
            held = [posting.id for posting in postings if posting.action in _ABOUT_HOLDS]
            holds = await queries.lock_holds(connection, held) if held else {}
            known_holds = set(holds)
            known, now = await queries.known_outcomes(connection, [posting.id for posting in postings])
            book = Book(accounts, holds, known)
            outcomes = book.apply(units)
            if book.decided and await queries.insert_postings(connection, book.decided) < len(book.decided):
                raise _decided_meanwhile()
            if book.changes:
                await self._store(connection, book, known_holds, now)
        if self._states is not None:
            # All of them, also where a posting is repeated whose first answer was lost with the process that gave it.
            self._states.put(book.accounts.values(), book.changed_ids)
        return outcomes

    async def _store(self, connection: Asyncpg, book: Book, known_holds: set[UUID], now: datetime) -> None:
        holds = book.changed_holds
        if holds and await queries.store_holds(connection, holds, known_holds) < len(holds):
            raise _decided_meanwhile()
        frozen = [change.frozen.id for _, change in book.changes if change.frozen]
        sequences = await queries.next_event_sequences(connection, frozen) if frozen else {}
        storing = queries.store_accounts(connection, book.changed_accounts, book.entries, now)
        events = await _meanwhile(storing, lambda: events_of(book, sequences))
        await outbox.append_batch(connection, events)


async def _meanwhile(statement: Coroutine[Any, Any, None], compute: Callable[[], Result]) -> Result:
    """What `compute` makes while the database is at work on `statement`."""
    task = asyncio.ensure_future(statement)
    try:
        for _ in range(2):  # one turn of the event loop to write the statement, one to send it
            await asyncio.sleep(0)
        return compute()
    finally:
        await task


_ABOUT_HOLDS: Final = frozenset({Action.HOLD, Action.CAPTURE, Action.RELEASE})


def _decided_meanwhile() -> Exception:
    """Without a wallet there is no common lock, and somebody else has decided the same posting at the same moment."""
    return asyncpg.SerializationError("postings were decided meanwhile")


class Wallets:
    """Opening, reading and closing wallets."""

    def __init__(self, database: Database, relay: Relay, states: WalletStates) -> None:
        self._database = database
        self._relay = relay
        self._states = states

    async def create(self, caller: Principal, user_id: UUID, currency: str) -> WalletState:
        """Open a wallet for oneself, or for anybody as admin.

        Raises ForbiddenError, NotFoundError for somebody nobody has heard of, UserStatusError, WalletExistsError.
        """
        if user_id != caller.user_id and caller.role != "admin":
            raise ForbiddenError("`user_id` must be your own; only an admin opens wallets for others.")
        try:
            row = await self._create(caller, user_id, currency)
        except WalletExistsError:
            await self._states.renew_list(user_id)  # whoever opened it may not have come to say so
            raise
        await self._states.renew_list(user_id)
        await self._tell([row])
        return WalletState.of(row)

    async def freeze(self, caller: Principal, wallet_id: UUID) -> WalletState:
        """Let no money leave the wallet; admins only. Raises NotFoundError, WalletStatusError."""
        return await self._set_status(caller, wallet_id, "frozen", WalletFrozen)

    async def unfreeze(self, caller: Principal, wallet_id: UUID) -> WalletState:
        """Let money leave the wallet again; admins only. Raises NotFoundError, WalletStatusError."""
        return await self._set_status(caller, wallet_id, "active", WalletUnfrozen)

    async def close(self, caller: Principal, wallet_id: UUID) -> WalletState:
        """Close an empty wallet of one's own, or anybody's as admin.

        Raises NotFoundError, WalletNotEmptyError, and WalletStatusError for a frozen one.
        """
        return await self._set_status(caller, wallet_id, "closed", WalletClosed)

    async def close_all(self, user_id: UUID, actor: str) -> int:
        """Close all wallets of a person, or none; how many were open.

        Raises WalletNotEmptyError, and WalletStatusError for a frozen one.
        """
        async with self._database.transaction() as session:
            await queries.lock_person(session, user_id)
            rows = [row for row in await queries.lock_wallets_of(session, user_id) if row.status != "closed"]
            for row in rows:
                _require_closable(row)
            await _close(session, rows, actor)
        await self._tell(rows)
        return len(rows)

    async def of(self, caller: Principal) -> list[WalletState]:
        """The caller's wallets, newest first."""
        return await self._states.of(caller.user_id)

    async def get(self, caller: Principal, wallet_id: UUID) -> WalletState:
        """One wallet of the caller's, or any as admin; raises NotFoundError."""
        return _visible(await self._states.get(wallet_id), caller)

    async def balance_at(self, caller: Principal, wallet_id: UUID, instant: datetime) -> Money:
        """What was in one wallet of the caller's, or any as admin, at that instant; raises NotFoundError."""
        async with self._database.transaction() as session:
            row = _visible(await queries.wallet(session, wallet_id), caller)
            return Money(await queries.balance_at(session, wallet_id, instant), row.currency)

    async def entries(
        self, caller: Principal, wallet_id: UUID, limit: int, *, after: int | None = None, before: int | None = None
    ) -> tuple[str, Sequence[models.EntryRow], bool]:
        """A wallet's currency, at most `limit` of its entries, newest first, and whether there are more this way.

        The list goes on after the entry of version `after`, or ends before that of version `before`.
        """
        async with self._database.transaction() as session:
            row = _visible(await queries.wallet(session, wallet_id), caller)
            entries = await queries.entries_of(session, wallet_id, limit + 1, after, before)
        shown = entries[:limit] if before is None else entries[-limit:]
        return row.currency, shown, len(entries) > limit

    async def _create(self, caller: Principal, user_id: UUID, currency: str) -> models.AccountRow:
        async with self._database.transaction() as session:
            await queries.lock_person(session, user_id)
            person = await queries.person(session, user_id)
            if person is not None and person.status != "active":
                raise UserStatusError(person.status)
            if person is None and user_id != caller.user_id and not await queries.has_wallets(session, user_id):
                raise NotFoundError("user")
            own_role = caller.role if user_id == caller.user_id else ""
            merchant = "merchant" in (own_role, person.role if person else "")
            row = await queries.insert_wallet(session, user_id, currency, merchant=merchant)
            kind: type[WalletCreated | WalletReopened] = WalletCreated
            before = None
            if row is None:
                row = await queries.wallet_in(session, user_id, currency)
                if row.status != "closed":
                    raise WalletExistsError(row.id)
                before, row.status, kind = row.status, "active", WalletReopened
                row.merchant = row.merchant or merchant
                row.event_sequence += 1
            await outbox.append(session, models.outbox, [_event(kind, row, str(caller.user_id), before)])
        return row

    async def _set_status(
        self, caller: Principal, wallet_id: UUID, status: str, kind: type[WalletStatusEvent]
    ) -> WalletState:
        """One that has the status already is answered as it is."""
        async with self._database.transaction() as session:
            row = _visible(await queries.wallet(session, wallet_id, lock=True), caller)
            if status != "closed" and caller.role != "admin":
                raise ForbiddenError("Only an admin freezes and unfreezes wallets.")
            if row.status != status:
                if row.status == "closed":
                    raise WalletStatusError(row.status)
                if status == "closed":
                    _require_closable(row)
                before, row.status = row.status, status
                row.event_sequence += 1
                await outbox.append(session, models.outbox, [_event(kind, row, str(caller.user_id), before)])
        await self._tell([row])
        return WalletState.of(row)

    async def _tell(self, rows: Sequence[models.AccountRow]) -> None:
        """Wake the relay, and have everybody read what was committed."""
        self._relay.wake()
        self._states.put_rows(rows)
        await self._states.settle()


class People:
    """What is known here of people: who takes payments, and who may open a wallet."""

    def __init__(self, database: Database, relay: Relay, states: WalletStates) -> None:
        self._database = database
        self._relay = relay
        self._states = states

    async def note(self, envelope: Envelope) -> None:
        """Learn what user-service says of a person, once, and never from an event older than the last one."""
        person = person_of(envelope)
        if person is None:
            return
        async with self._database.transaction() as session:
            if not await new_ones(session, models.inbox, [envelope.id]):
                return
            await queries.lock_person(session, person.user_id)
            if not await queries.store_person(session, person):
                return
            rows = await queries.lock_wallets_of(session, person.user_id)
            for row in rows:
                row.merchant = row.merchant or person.role == "merchant"
            if person.status == "closed":
                await self._close_empty(session, rows, envelope)
        self._relay.wake()
        self._states.put_rows(rows)

    async def _close_empty(
        self, session: AsyncSession, rows: Sequence[models.AccountRow], envelope: Envelope
    ) -> None:
        """Close what may be closed; what is left has money in it or is frozen, and somebody has to look after it."""
        left = [row for row in rows if row.status == "frozen" or row.balance_minor or row.held_minor]
        for row in left:
            _log.warning("a closed person's wallet stays open", extra={"wallet_id": str(row.id)})
        trace = Trace(envelope.requestid, envelope.traceparent)
        empty = [row for row in rows if row.status != "closed" and row not in left]
        await _close(session, empty, envelope.actor, trace)


async def _close(
    session: AsyncSession, rows: Sequence[models.AccountRow], actor: str, trace: Trace | None = None
) -> None:
    events = []
    for row in rows:
        before, row.status = row.status, "closed"
        row.event_sequence += 1
        events.append(_event(WalletClosed, row, actor, before, trace))
    await outbox.append(session, models.outbox, events)


def _require_closable(row: models.AccountRow) -> None:
    if row.status == "frozen":
        raise WalletStatusError(row.status)
    if row.balance_minor or row.held_minor:
        raise WalletNotEmptyError(Money(row.balance_minor, row.currency))


def _event(
    kind: type[WalletCreated | WalletStatusEvent],
    row: models.AccountRow,
    actor: str,
    status_before: str | None = None,
    trace: Trace | None = None,
) -> OutgoingEvent:
    fields: dict[str, object] = {"wallet_id": row.id, "user_id": row.user_id, "currency": row.currency}
    if status_before is not None:
        fields["before"] = {"status": status_before}
    data = kind.model_validate(fields)
    return OutgoingEvent.of(data, subject=row.id, sequence=row.event_sequence, actor=actor, trace=trace)


Seen = TypeVar("Seen", models.AccountRow, WalletState)


def _visible(wallet: Seen | None, caller: Principal) -> Seen:
    if wallet is None or (wallet.user_id != caller.user_id and caller.role != "admin"):
        raise NotFoundError("wallet")
    return wallet
