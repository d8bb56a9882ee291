"""The journal: what people asked for, what became of it, and what they were told, each in one commit."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from shared import outbox
from shared.batching import Batcher
from shared.database import Asyncpg, CommitUnknownError, Database, LockTimeoutError, with_retries
from shared.errors import AppError, OutcomeUnknownError, UnavailableError
from shared.events import OutgoingEvent
from shared.http.problems import unexpected_error
from shared.ids import new_id
from shared.outbox import Relay
from transaction_service import queries
from transaction_service.answers import Answer, answer, event_of
from transaction_service.domain import (
    Command,
    Decision,
    IdempotencyKeyInUseError,
    IdempotencyKeyReusedError,
    Reversal,
    Status,
    Transaction,
    Type,
    reserve,
)

# The request's deadline and a margin: until then whoever opened a transaction is taken to be at work on it.
LEASE_SECONDS: Final = 25.0
SWEEP_LIMIT: Final = 100
MAX_BATCH: Final = 256
WISHES_AT_ONCE: Final = 3
LOOK_SECONDS: Final = 0.25  # for finding out which keys somebody keeps
KEY_DAYS: Final = 30
KEYS_AT_A_TIME: Final = 1000

_log = logging.getLogger(__name__)

# What a command becomes: a transaction to carry out, the answer from before, or a refusal.
Opened = Transaction | Answer | AppError


@dataclass(frozen=True, slots=True)
class _Open:
    """A command and the id that its transaction gets, also when the commit has to be tried again."""

    command: Command
    id: UUID


# What is written: a command to open, a decision to close with, a transaction that has to wait.
_Entry = _Open | Decision | Transaction
# What comes of it: for a close or a wait the transaction, if it was this that changed it.
_Written = Opened | None


class Journal:
    """Opens and closes transactions: what comes up during a commit is the next one, openings and closings alike."""

    def __init__(self, database: Database, relay: Relay) -> None:
        self._database = database
        self._relay = relay
        self._batcher: Batcher[_Entry, _Written] = Batcher(self._write, max_size=MAX_BATCH)
        self._callers = _Callers()
        self._wishes = asyncio.Semaphore(WISHES_AT_ONCE)

    @property
    def busy(self) -> bool:
        """Whether something is being written."""
        return self._batcher.busy

    async def open(self, commands: Sequence[Command]) -> list[Opened]:
        """Put each command on record as pending, with its key; known keys come back as they ended.

        A command has OutcomeUnknownError when the database went away in the middle of the commit and stays away.
        """
        written = await self._batcher.submit([_Open(command, new_id()) for command in commands])
        return [_opened(item) for item in written]

    async def close(self, decisions: Sequence[Decision]) -> dict[UUID, Transaction]:
        """End each transaction once, with its event and the answer for its key; those that this has ended, by id."""
        return _changed(await self._batcher.submit(decisions))

    async def wait(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """Leave the transactions to the sweeper: unknown is not failed. As they are afterwards, by id."""
        return _changed(await self._batcher.submit(transactions))

    def promise(self, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
        """The callers of these hear 202 whatever comes, so their keys stay; but those that are being refused with
        their keys let go of hear that, and are answered by id. Holds until `answered`."""
        return self._callers.promise(transaction.id for transaction in transactions)

    def answered(self, transactions: Sequence[Transaction]) -> None:
        """The request that opened these has done all that it will do about them."""
        self._callers.forget(transaction.id for transaction in transactions)

    async def claim_due(self, types: Collection[Type]) -> list[Transaction]:
        """Open transactions of these types that nobody works on, leased to the caller."""
        async with self._database.batch() as connection:
            return await queries.claim_due(connection, types, SWEEP_LIMIT, LEASE_SECONDS)

    async def request_cancel(self, transaction_id: UUID) -> Transaction | None:
        """Note that its owner wants it stopped; None when it is no longer pending.

        Wishes for one transaction wait for each other, longer than a batch does and on few of the connections that
        reading needs.
        """
        async with self._wishes, self._database.transaction() as session:
            return await queries.request_cancel(session, transaction_id, LEASE_SECONDS)

    async def statuses(self, transaction_ids: Sequence[UUID]) -> dict[UUID, Status]:
        """How the transactions stand."""
        async with self._database.batch() as connection:
            found = await queries.by_ids(connection, transaction_ids)
        return {id_: transaction.status for id_, transaction in found.items()}

    async def forget_old_keys(self) -> None:
        """Delete the idempotency keys that have been kept for long enough, some at a time."""
        deleted = KEYS_AT_A_TIME
        while deleted == KEYS_AT_A_TIME:
            async with self._database.batch() as connection:
                deleted = await queries.delete_old_keys(connection, KEY_DAYS, KEYS_AT_A_TIME)

    async def note(self, event_id: UUID, news: UUID | Reversal) -> None:
        """A provider has settled the transaction with this id, which is taken up at once, or has undone one. Once."""
        transaction_id = new_id()

        async def write() -> None:
            async with self._database.batch() as connection:
                if not await queries.first_time(connection, event_id):
                    return
                if isinstance(news, Reversal):
                    await queries.insert_reversal(connection, news, transaction_id)
                else:
                    await queries.wake(connection, news)

        await with_retries(write)

    async def finish(self) -> None:
        """Write what was handed in; nothing more is taken."""
        await self._batcher.close()

    async def _write(self, entries: Sequence[_Entry]) -> Sequence[_Written | Exception]:
        try:
            return await self._written(entries)
        except LockTimeoutError:
            if len(entries) == 1:
                raise
        return await self._write_around(entries, await self._kept_from(entries))

    async def _written(self, entries: Sequence[_Entry]) -> list[_Written]:
        return await with_retries(lambda: self._write_once(entries))

    async def _write_around(self, entries: Sequence[_Entry], stuck: Sequence[bool]) -> list[_Written | Exception]:
        """Write what needs nothing that somebody keeps, and then try the rest once more, together.

        So a batch is written within three lock time-outs and the time it takes to look, however many keys and rows
        somebody keeps; what is stuck has the time-out as its outcome.
        """
        free = iter(await self._tried([e for e, is_stuck in zip(entries, stuck, strict=True) if not is_stuck]))
        late = iter(await self._tried([e for e, is_stuck in zip(entries, stuck, strict=True) if is_stuck]))
        return [next(late) if is_stuck else next(free) for is_stuck in stuck]

    async def _tried(self, entries: Sequence[_Entry]) -> Sequence[_Written | Exception]:
        try:
            return await self._written(entries) if entries else []
        except (LockTimeoutError, OSError) as error:
            return [error] * len(entries)

    async def _kept_from(self, entries: Sequence[_Entry]) -> list[bool]:
        """Which of the entries need a key or a transaction that somebody else keeps locked."""
        commands = [entry.command for entry in entries if isinstance(entry, _Open) and entry.command.key is not None]
        async with self._database.batch() as connection:
            known = await queries.known_keys(connection, commands) if commands else {}
            needed = [_needed(entry, known) for entry in entries]
            rows = await queries.locked_by_others(connection, set().union(*needed))
            keys = await queries.keys_of_others(connection, commands, LOOK_SECONDS) if commands else set()
        return [
            not rows.isdisjoint(ids) or (isinstance(entry, _Open) and queries.key_id(entry.command) in keys)
            for entry, ids in zip(entries, needed, strict=True)
        ]

    async def _write_once(self, entries: Sequence[_Entry]) -> list[_Written]:
        """One transaction with a fixed number of statements; locks in the order keys, then transactions by id.

        Repeated under the same ids after an unknown commit: what is there already is its own work.
        """
        batch = _Batch([entry for entry in entries if isinstance(entry, _Open)])
        decisions = [entry for entry in entries if isinstance(entry, Decision)]
        waiting = [entry for entry in entries if isinstance(entry, Transaction)]
        async with self._database.batch() as connection:
            await batch.take_keys(connection)
            held = {decision.transaction.id for decision in decisions} | {transaction.id for transaction in waiting}
            held |= {decision.transaction.original_id for decision in decisions if decision.transaction.original_id}
            if to_lock := held | batch.to_lock:
                await queries.lock(connection, to_lock)
            opened = await batch.open(connection)
            changed = await _close(connection, decisions, self._callers) if decisions else {}
            begun = await _wait(connection, waiting) if waiting else {}
            await outbox.append_batch(connection, [_event(transaction) for transaction in (changed | begun).values()])
            told = bool(changed or begun)
            if waiting:
                changed |= _traced(await queries.by_ids(connection, [t.id for t in waiting]), waiting)
        if told:
            self._relay.wake()
        return [
            opened[entry.id]
            if isinstance(entry, _Open)
            else changed.get(entry.transaction.id if isinstance(entry, Decision) else entry.id)
            for entry in entries
        ]


class _Batch:
    """The commands of one commit on their way to being open."""

    def __init__(self, items: Sequence[_Open]) -> None:
        self._items = items
        self._keyed = [item for item in items if item.command.key is not None]
        self._won: set[UUID] = set()
        self._known: dict[queries.KeyId, queries.KnownKey] = {}

    async def take_keys(self, connection: Asyncpg) -> None:
        """Take the keys that are free, and learn what the others stand for."""
        if self._keyed:
            self._won = await queries.take_keys(connection, [(item.command, item.id) for item in self._keyed])
            lost = [item.command for item in self._keyed if item.id not in self._won]
            self._known = await queries.known_keys(connection, lost) if lost else {}

    @property
    def to_lock(self) -> set[UUID]:
        """The transactions that opening looks at: those that refunds give back, those to be taken up again."""
        originals = {item.command.original_id for item in self._fresh if item.command.original_id}
        return originals | set(self._unanswered)

    async def open(self, connection: Asyncpg) -> dict[UUID, Opened]:
        """What becomes of each command, by its id."""
        reserved, refused = await self._reserve(connection)
        fresh = [(reserved.get(item.id, item.command), item.id) for item in self._fresh if item.id not in refused]
        opened = await queries.insert_transactions(connection, fresh, LEASE_SECONDS) if fresh else {}
        if refused:
            await queries.free_keys(connection, list(refused))
        unanswered = self._unanswered
        resumed = await queries.claim(connection, unanswered, LEASE_SECONDS) if unanswered else {}
        return (
            opened
            | refused
            | {item.id: self._repeat(item, resumed) for item in self._keyed if item.id not in self._won}
        )

    @property
    def _fresh(self) -> list[_Open]:
        return [item for item in self._items if item.command.key is None or item.id in self._won]

    @property
    def _unanswered(self) -> list[UUID]:
        """What a crash has left without an answer and is asked for again, unless it is of this batch."""
        own = {item.id for item in self._items}
        asked = {queries.key_id(item.command) for item in self._keyed if self._stands_for(item.command)}
        return [
            key.transaction_id
            for id_, key in self._known.items()
            if key.answer is None and key.transaction_id not in own and id_ in asked
        ]

    def _stands_for(self, command: Command) -> bool:
        """Whether the command's key was taken for the same wish."""
        key = self._known.get(queries.key_id(command))
        return key is not None and key.fingerprint == command.fingerprint()

    async def _reserve(self, connection: Asyncpg) -> tuple[dict[UUID, Command], dict[UUID, AppError]]:
        """Refunds take their part of the original, in arrival order, or are refused; both by id."""
        refunds = [(item, item.command.original_id) for item in self._fresh if item.command.original_id is not None]
        if not refunds:
            return {}, {}
        found = await queries.by_ids(
            connection, {id_ for item, original_id in refunds for id_ in (item.id, original_id)}
        )
        deltas: dict[UUID, int] = defaultdict(int)
        reserved, refused = {}, {}
        for item, original_id in refunds:
            if item.id in found:  # on record already, after an unknown commit
                reserved[item.id] = replace(item.command, amount=found[item.id].amount)
                continue
            try:
                amount = reserve(found[original_id], item.command.amount, deltas[original_id])
            except AppError as error:
                refused[item.id] = error
            else:
                deltas[original_id] += amount.minor
                reserved[item.id] = replace(item.command, amount=amount)
        await queries.add_refunded(connection, deltas)
        return reserved, refused

    def _repeat(self, item: _Open, resumed: Mapping[UUID, Transaction]) -> Opened:
        """What a command gets whose key was taken; a key that vanished meanwhile is as good as one in use."""
        key = self._known.get(queries.key_id(item.command))
        if key is None:
            return IdempotencyKeyInUseError()
        if not self._stands_for(item.command):
            return IdempotencyKeyReusedError()
        if key.answer is not None:
            return key.answer
        if key.transaction_id in resumed:
            return replace(resumed[key.transaction_id], trace=item.command.trace)
        return IdempotencyKeyInUseError()


class _Callers:
    """What those who wait for their answers here are going to hear: a key is let go of for who hears why, not for who
    has heard 202."""

    def __init__(self) -> None:
        self._promised: set[UUID] = set()
        self._refused: dict[UUID, Transaction] = {}

    def promise(self, ids: Iterable[UUID]) -> dict[UUID, Transaction]:
        """These hear 202 unless they are being refused; the latter."""
        asked = set(ids)
        refused = {id_: self._refused[id_] for id_ in asked & self._refused.keys()}
        self._promised |= asked - refused.keys()
        return refused

    def refuse(self, transaction: Transaction) -> bool:
        """Whether its caller can still hear that it is refused, and then does."""
        # Once somebody else has taken a transaction up, its caller may have heard 202 and its id.
        if transaction.attempts or transaction.id in self._promised:
            return False
        self._refused[transaction.id] = transaction
        return True

    def forget(self, ids: Iterable[UUID]) -> None:
        """These have been answered."""
        for id_ in ids:
            self._promised.discard(id_)
            self._refused.pop(id_, None)


async def _close(connection: Asyncpg, decisions: Sequence[Decision], callers: _Callers) -> dict[UUID, Transaction]:
    closed = _traced(await queries.close(connection, decisions), [decision.transaction for decision in decisions])
    answers = {id_: answer(transaction) for id_, transaction in closed.items() if transaction.keyed}
    kept = {id_ for id_, told in answers.items() if told.final or not callers.refuse(closed[id_])}
    if kept:
        await queries.store_answers(connection, [(id_, answers[id_]) for id_ in kept])
    if freed := list(answers.keys() - kept):
        await queries.free_keys(connection, freed)
    given_back = {
        transaction.original_id
        for transaction in closed.values()
        if transaction.type is Type.REFUND and transaction.status is Status.FAILED and transaction.original_id
    }
    if given_back:
        await queries.recount_refunded(connection, given_back)
    return closed


async def _wait(connection: Asyncpg, transactions: Sequence[Transaction]) -> dict[UUID, Transaction]:
    """Those whose waiting begins; their callers hear 202 from now on."""
    begun = _traced(await queries.begin_waiting(connection, [t.id for t in transactions]), transactions)
    if begun:
        await queries.store_answers(connection, [(id_, answer(t)) for id_, t in begun.items()])
    return begun


def _needed(entry: _Entry, known: Mapping[queries.KeyId, queries.KnownKey]) -> set[UUID]:
    """The transactions that an entry may have to lock, or whose keys it changes."""
    if isinstance(entry, _Open):
        key = known.get(queries.key_id(entry.command)) if entry.command.key is not None else None
        ids = {entry.command.original_id, key.transaction_id if key else None}
    elif isinstance(entry, Decision):
        ids = {entry.transaction.id, entry.transaction.original_id}
    else:
        ids = {entry.id}
    return {id_ for id_ in ids if id_ is not None}


def _traced(found: dict[UUID, Transaction], asked: Sequence[Transaction]) -> dict[UUID, Transaction]:
    """The transactions as they were found, with the requests that they are being carried out for."""
    for known in asked:
        transaction = found.get(known.id)
        if transaction is not None:
            transaction.trace, transaction.keyed = known.trace, known.keyed
    return found


def _opened(written: _Written | Exception) -> Opened:
    """What has become of one command: the others of its call are on record, and never hear of its trouble."""
    if isinstance(written, CommitUnknownError):
        return OutcomeUnknownError()
    if isinstance(written, AppError | Transaction | Answer):
        return written
    if isinstance(written, OSError):
        _log.warning("a command was not opened: %s: %s", type(written).__name__, written)
        return UnavailableError()
    _log.error("a command was not opened", exc_info=written)
    return unexpected_error()


def _changed(written: Sequence[_Written | Exception]) -> dict[UUID, Transaction]:
    """Raises the first exception when there is nothing but exceptions; else what could be written counts."""
    changed = {item.id: item for item in written if isinstance(item, Transaction)}
    errors = [item for item in written if isinstance(item, Exception)]
    if errors and len(errors) == len(written):
        raise errors[0]
    return changed


def _event(transaction: Transaction) -> OutgoingEvent:
    kind, data = event_of(transaction)
    return OutgoingEvent.unchecked(
        kind,
        data,
        subject=transaction.id,
        sequence=transaction.event_sequence,
        actor=str(transaction.user_id),
        trace=transaction.trace,
    )
