"""Double-entry rules. Pure: no database, no clock, no network."""

import re
from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from shared.errors import AppError
from shared.http.context import Trace
from shared.money import CURRENCIES, MAX_MINOR, Money

_SYSTEM_ACCOUNTS: Final = UUID("6f0c1f5e-9d6b-5c6b-8a51-0f4a8f1f7f00")
MAX_SYSTEM_MINOR: Final = 2**63 - 1  # what a BIGINT holds
MAX_UNIT: Final = 1000  # postings that are applied wholly or not at all

# How many parts the names have: `external:stripe:USD`, `fees:USD`.
_SYSTEM_KINDS: Final = {"external": 3, "fees": 2, "suspense": 2, "receivable": 2}
_PART: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII).fullmatch


class Action(StrEnum):
    """What is asked of the ledger for a transaction."""

    CHECK = (
        "check"  # whether a move would break a rule of owner, currency or status, before outside money moves for it
    )
    MOVE = "move"
    PAY = "pay"  # a move to a merchant's wallet
    HOLD = "hold"
    CAPTURE = "capture"
    RELEASE = "release"
    RETURN = "return"  # a payout that came back; it goes to suspense where the wallet cannot take it
    DISPUTE = "dispute"  # a charge taken back: from the wallet what is there, the rest becomes receivable


class Refusal(StrEnum):
    """Why the ledger refuses a posting; as final as a success."""

    WALLET_NOT_FOUND = "wallet_not_found"
    NOT_OWNER = "not_owner"
    FROZEN = "frozen"
    CLOSED = "closed"
    CURRENCY_MISMATCH = "currency_mismatch"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_LIMIT = "balance_limit"
    SAME_WALLET = "same_wallet"
    NOT_MERCHANT = "not_merchant"
    HOLD_RELEASED = "hold_released"
    HOLD_CAPTURED = "hold_captured"
    HOLD_NOT_OPEN = "hold_not_open"
    UNIT_REFUSED = "unit_refused"  # another posting of the same unit was refused


class RefusedError(Exception):
    """A posting that breaks a rule; `available` comes with insufficient funds."""

    def __init__(self, refusal: Refusal, available: Money | None = None) -> None:
        super().__init__(refusal)
        self.refusal = refusal
        self.available = available


class WalletExistsError(AppError):
    """409: one wallet per person and currency."""

    def __init__(self, wallet_id: UUID) -> None:
        super().__init__(
            "wallet_exists", 409, "There is a wallet in this currency already.", wallet_id=str(wallet_id)
        )


class WalletNotEmptyError(AppError):
    """409: only an empty wallet can be closed."""

    def __init__(self, balance: Money) -> None:
        super().__init__(
            "wallet_not_empty",
            409,
            "Only an empty wallet can be closed.",
            balance=str(balance),
            currency=balance.currency,
        )


class WalletStatusError(AppError):
    """409: the wallet's status does not allow this."""

    def __init__(self, status: str) -> None:
        super().__init__("wallet_" + status, 409, f"The wallet is {status}.")


class UserStatusError(AppError):
    """409: a person who is disabled or closed opens no wallet, and nobody opens one for them."""

    def __init__(self, status: str) -> None:
        super().__init__("user_" + status, 409, f"The user is {status}.")


class UnknownAccountError(ValueError):
    """Neither a wallet's id nor the name of a system account."""


class AccountRef(NamedTuple):
    """Where money comes from or goes to; `name` and `currency` for a system account."""

    id: UUID
    name: str | None = None
    currency: str | None = None


class Person(NamedTuple):
    """A person as user-service has told of them; the newest `sequence` counts."""

    user_id: UUID
    role: str
    status: str
    sequence: int


@dataclass(slots=True)  # four are made for each transfer, and a frozen one takes six times as long
class Account:
    """A person's wallet, or a system account (`name`, no `user_id`), which alone may be negative.

    `revision` is that of the row as it was read.
    """

    id: UUID
    name: str | None
    user_id: UUID | None
    status: str
    balance: Money
    held: Money
    version: int
    merchant: bool = False
    revision: int = 0
    created_at: datetime | None = None

    @property
    def available(self) -> Money:
        """What may be spent."""
        return self.balance - self.held

    def plus(self, amount: Money) -> "Account":
        """The account with `amount` (signed) more in it, one version later."""
        return Account(
            self.id,
            self.name,
            self.user_id,
            self.status,
            self.balance + amount,
            self.held,
            self.version + 1,
            self.merchant,
            self.revision,
            self.created_at,
        )

    @property
    def within_limits(self) -> bool:
        """Whether the balance can be recorded; a system account stands for everybody and may hold far more."""
        return abs(self.balance.minor) <= (MAX_MINOR if self.user_id is not None else MAX_SYSTEM_MINOR)


class HoldStatus(StrEnum):
    """A hold is open, then captured or released. Released without an account, it stands for one that never was."""

    OPEN = "open"
    CAPTURED = "captured"
    RELEASED = "released"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Hold:
    """Money of a wallet that is set aside for a transaction, whose id it has."""

    id: UUID
    status: HoldStatus
    account_id: UUID | None = None
    amount: Money | None = None
    refusal: Refusal | None = None
    available_minor: int | None = None


@dataclass(frozen=True, slots=True)
class Posting:
    """What to do with `amount`, from `source` to `target`, at the wish of `user_id`; `id` is the transaction's.

    `fee` is the part of the amount that goes to the fee account instead of the target.
    """

    id: UUID
    action: Action
    user_id: UUID
    source: AccountRef
    target: AccountRef
    amount: Money
    fee: Money | None = None
    trace: Trace | None = None

    @property
    def others(self) -> tuple[AccountRef, ...]:
        """The system accounts that may take part beside source and target."""
        if self.action is Action.RETURN:
            return (system_account("suspense", self.amount.currency),)
        if self.action is Action.DISPUTE:
            return (system_account("receivable", self.amount.currency),)
        return () if self.fee is None else (system_account("fees", self.amount.currency),)

    @property
    def locked(self) -> tuple[AccountRef, ...]:
        """The accounts whose balances or status decide about the posting. Outside money is not limited by its own."""
        match self.action:
            case Action.HOLD | Action.RELEASE:
                return (self.source,)
            case Action.CHECK:
                return (self.target,)
            case Action.MOVE if self.fee is None:
                return (self.source, self.target)
            case _:
                return (self.source, self.target, *self.others)


Unit = Sequence[Posting]


class Entry(NamedTuple):
    """One side of a posting: the signed amount, and the account's balance and version after it."""

    posting_id: UUID
    account_id: UUID
    amount: Money
    balance: Money
    version: int


class Outcome(NamedTuple):
    """What became of a posting; who is paid is known where the target is a wallet."""

    posting_id: UUID
    refusal: Refusal | None = None
    available_minor: int | None = None
    target_user_id: UUID | None = None


class Change(NamedTuple):
    """What a posting does: the accounts as it leaves them, its entries, the hold as it leaves it, the wallet that it
    freezes as it was before."""

    accounts: tuple[Account, ...] = ()
    entries: tuple[Entry, ...] = ()
    hold: Hold | None = None
    frozen: Account | None = None


def account_ref(text: str) -> AccountRef:
    """A wallet's id, or a system account such as `external:stripe:USD` or `fees:EUR`; raises UnknownAccountError."""
    if ":" in text:
        return _named(text)
    try:
        return AccountRef(UUID(text))
    except ValueError:
        raise UnknownAccountError from None


def system_account(kind: str, currency: str) -> AccountRef:
    """The system account of this kind: `fees`, `suspense` (money that is somebody's), `receivable` (owed to us)."""
    return _named(f"{kind}:{currency}")


@lru_cache(maxsize=4096)
def _named(name: str) -> AccountRef:
    parts = name.split(":")
    if _SYSTEM_KINDS.get(parts[0]) != len(parts) or parts[-1] not in CURRENCIES or not all(map(_PART, parts)):
        raise UnknownAccountError
    return AccountRef(uuid5(_SYSTEM_ACCOUNTS, name), name, parts[-1])


# ------------------------------------------------------------------------------------------- the rules


def check(posting: Posting, target: Account | None) -> None:
    """Refuse money from outside that the target cannot take; raises RefusedError."""
    if target is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    _check_owner(posting, target)
    if target.status == "closed":
        raise RefusedError(Refusal.CLOSED)
    _check_currency(posting, target)


def move(posting: Posting, source: Account | None, target: Account | None, fees: Account | None = None) -> Change:
    """Take the amount from `source`, give it to `target`, less the fee, which goes to `fees`; raises RefusedError."""
    if source is None or target is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    _check_owner(posting, source if source.user_id is not None else target)
    if source.status == "closed" or target.status == "closed":
        raise RefusedError(Refusal.CLOSED)
    if source.status == "frozen":
        raise RefusedError(Refusal.FROZEN)
    _check_currency(posting, source, target)
    amount = posting.amount
    if source.user_id is not None and source.available < amount:
        raise RefusedError(Refusal.INSUFFICIENT_FUNDS, available=source.available)
    if fees is None or posting.fee is None:
        return _entries(posting, (source, -amount), (target, amount))
    return _entries(posting, (source, -amount), (target, amount - posting.fee), (fees, posting.fee))


def pay(posting: Posting, source: Account | None, target: Account | None, fees: Account | None = None) -> Change:
    """A move that only a merchant's wallet takes; raises RefusedError."""
    if target is not None and not target.merchant:
        raise RefusedError(Refusal.NOT_MERCHANT)
    return move(posting, source, target, fees)


def hold(posting: Posting, source: Account | None) -> Change:
    """Set the amount aside; raises RefusedError."""
    if source is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    _check_owner(posting, source)
    if source.status != "active":
        raise RefusedError(Refusal(source.status))
    _check_currency(posting, source)
    if source.available < posting.amount:
        raise RefusedError(Refusal.INSUFFICIENT_FUNDS, available=source.available)
    held = Hold(posting.id, HoldStatus.OPEN, source.id, posting.amount)
    return Change((replace(source, held=source.held + posting.amount),), hold=held)


def capture(posting: Posting, held: Hold | None, source: Account | None, target: Account | None) -> Change:
    """Take what is held out of the wallet, frozen or not: outside the money has moved. Raises RefusedError."""
    if held is None or held.status is not HoldStatus.OPEN or source is None or target is None:
        raise RefusedError(Refusal.HOLD_NOT_OPEN)
    if (held.account_id, held.amount) != (source.id, posting.amount):
        raise RefusedError(Refusal.HOLD_NOT_OPEN)
    _check_outside(target)
    _check_currency(posting, target)
    source = replace(source, held=source.held - posting.amount)
    change = _entries(posting, (source, -posting.amount), (target, posting.amount))
    return change._replace(hold=replace(held, status=HoldStatus.CAPTURED))


def release(posting: Posting, held: Hold | None, source: Account | None) -> Change:
    """Let go of what is held, once; where nothing is, the hold that may come late is refused. Raises RefusedError."""
    if held is None:
        return Change(hold=Hold(posting.id, HoldStatus.RELEASED))
    if held.status is HoldStatus.CAPTURED:
        raise RefusedError(Refusal.HOLD_CAPTURED)
    if held.status is not HoldStatus.OPEN or held.amount is None:
        return Change()
    if source is None or source.id != held.account_id:
        raise RefusedError(Refusal.HOLD_NOT_OPEN)
    released = replace(source, held=source.held - held.amount)
    return Change((released,), hold=replace(held, status=HoldStatus.RELEASED))


def give_back(posting: Posting, source: Account | None, target: Account | None, suspense: Account | None) -> Change:
    """Money that comes back from outside, into the wallet or, where that cannot take it, into `suspense`."""
    if source is None or target is None or suspense is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    _check_owner(posting, target)
    _check_outside(source)
    _check_currency(posting, source, target)
    full = target.balance.minor + posting.amount.minor > MAX_MINOR
    target = suspense if full or target.status == "closed" else target
    return _entries(posting, (source, -posting.amount), (target, posting.amount))


def dispute(posting: Posting, source: Account | None, target: Account | None, receivable: Account | None) -> Change:
    """Money that outside took back: what is available leaves the wallet, the rest is owed, the wallet is frozen.

    One that was closed meanwhile, too, or closing it and asking for it again would be a way around the freeze.
    """
    if source is None or target is None or receivable is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    _check_owner(posting, source)
    _check_outside(target)
    _check_currency(posting, source, target)
    taken = min(source.available, posting.amount)
    owed = posting.amount - taken
    moves = [(source, -taken), (receivable, -owed), (target, posting.amount)]
    change = _entries(posting, *((account, amount) for account, amount in moves if amount.minor))
    if source.status == "frozen":
        return change
    wallet, rest = (change.accounts[0], change.accounts[1:]) if taken.minor else (source, change.accounts)
    return change._replace(accounts=(replace(wallet, status="frozen"), *rest), frozen=source)


def _check_owner(posting: Posting, account: Account) -> None:
    if account.user_id != posting.user_id:
        raise RefusedError(Refusal.NOT_OWNER)


def _check_outside(account: Account) -> None:
    """What comes from or goes to a provider never touches somebody else's wallet."""
    if account.user_id is not None:
        raise RefusedError(Refusal.NOT_OWNER)


def _check_currency(posting: Posting, *accounts: Account) -> None:
    for account in accounts:
        if account.balance.currency != posting.amount.currency:
            raise RefusedError(Refusal.CURRENCY_MISMATCH)


def _entries(posting: Posting, *moves: tuple[Account, Money]) -> Change:
    """Each account with its signed amount; the amounts of a posting always sum to zero."""
    accounts = tuple([account.plus(amount) for account, amount in moves])
    if len({account.id for account in accounts}) < len(accounts):
        raise RefusedError(Refusal.SAME_WALLET)
    entries = []
    for (_, amount), account in zip(moves, accounts, strict=True):
        if not account.within_limits:
            raise RefusedError(Refusal.BALANCE_LIMIT)
        entries.append(Entry(posting.id, account.id, amount, account.balance, account.version))
    return Change(accounts, tuple(entries))


# -------------------------------------------------------------------------------------------- a batch


@dataclass(slots=True)
class Book:
    """The accounts and holds of one batch while it is decided, in arrival order.

    `outcomes` and `holds` know what was decided before. What the batch itself decides is in `decided`, what that
    changes in `changes`.
    """

    accounts: MutableMapping[UUID, Account]
    holds: MutableMapping[UUID, Hold] = field(default_factory=dict)
    outcomes: MutableMapping[UUID, Outcome] = field(default_factory=dict)
    decided: list[Outcome] = field(default_factory=list)
    changes: list[tuple[Posting, Change]] = field(default_factory=list)

    @property
    def entries(self) -> list[Entry]:
        """The new entries of all accounts."""
        return [entry for _, change in self.changes for entry in change.entries]

    @property
    def changed_accounts(self) -> list[Account]:
        """Each changed account as the batch leaves it."""
        return [self.accounts[id_] for id_ in self.changed_ids]

    @property
    def changed_ids(self) -> set[UUID]:
        """The ids of the changed accounts."""
        return {account.id for _, change in self.changes for account in change.accounts}

    @property
    def changed_holds(self) -> list[Hold]:
        """Each new or changed hold as the batch leaves it."""
        return [self.holds[id_] for id_ in {change.hold.id for _, change in self.changes if change.hold is not None}]

    def apply(self, units: Sequence[Unit]) -> list[list[Outcome]]:
        """One outcome a posting. A unit is applied wholly or not at all; what was decided before, also in this batch,
        gets its first outcome again."""
        return [
            [self._known(unit[0]) or self._decide(unit[0])] if len(unit) == 1 else self._apply_unit(unit)
            for unit in units
        ]

    def _apply_unit(self, unit: Unit) -> list[Outcome]:
        trial = Book(ChainMap({}, self.accounts), ChainMap({}, self.holds), ChainMap({}, self.outcomes))
        outcomes = [trial._known(posting) or trial._decide(posting) for posting in unit]
        if not any(outcome.refusal for outcome in outcomes):
            for posting, change in trial.changes:
                self._record(posting, change)
            for outcome in trial.decided:
                self._remember(outcome)
            return outcomes
        return [
            self._known(posting) or self._remember(outcome if outcome.refusal else self._unit_refused(posting))
            for posting, outcome in zip(unit, outcomes, strict=True)
        ]

    def _known(self, posting: Posting) -> Outcome | None:
        """What was decided about the posting before. A release looks at the hold as it is."""
        if posting.action is Action.RELEASE:
            return None
        if posting.action is not Action.HOLD:
            known = self.outcomes.get(posting.id)
            return self._outcome(posting, known.refusal, known.available_minor) if known else None
        held = self.holds.get(posting.id)
        if held is None:
            return None
        never_was = held.status is HoldStatus.RELEASED and held.account_id is None
        return Outcome(posting.id, Refusal.HOLD_RELEASED if never_was else held.refusal, held.available_minor)

    def _decide(self, posting: Posting) -> Outcome:
        try:
            change = self._change(posting)
        except RefusedError as error:
            return self._refuse(posting, error)
        self._record(posting, change)
        outcome = self._outcome(posting)
        return self._remember(outcome) if change.entries else outcome

    def _change(self, posting: Posting) -> Change:
        """What the posting does by the rule of its action; a check does nothing and leaves the rest undecided."""
        source, target = self._side(posting.source), self._side(posting.target)
        match posting.action:
            case Action.MOVE:
                return move(posting, source, target, *map(self._side, posting.others))
            case Action.PAY:
                return pay(posting, source, target, *map(self._side, posting.others))
            case Action.CHECK:
                check(posting, target)
                return Change()
            case Action.HOLD:
                return hold(posting, source)
            case Action.CAPTURE:
                return capture(posting, self.holds.get(posting.id), source, target)
            case Action.RELEASE:
                return release(posting, self.holds.get(posting.id), source)
            case Action.RETURN:
                return give_back(posting, source, target, *map(self._side, posting.others))
            case Action.DISPUTE:
                return dispute(posting, source, target, *map(self._side, posting.others))

    def _record(self, posting: Posting, change: Change) -> None:
        for account in change.accounts:
            self.accounts[account.id] = account
        if change.hold is not None:
            self.holds[change.hold.id] = change.hold
        self.changes.append((posting, change))

    def _refuse(self, posting: Posting, error: RefusedError) -> Outcome:
        available_minor = error.available.minor if error.available is not None else None
        outcome = self._outcome(posting, error.refusal, available_minor)
        if posting.action is Action.RELEASE:
            return outcome
        if posting.action is Action.HOLD:
            refused = Hold(posting.id, HoldStatus.REFUSED, refusal=error.refusal, available_minor=available_minor)
            self._record(posting, Change(hold=refused))
            return outcome
        return self._remember(outcome)

    def _unit_refused(self, posting: Posting) -> Outcome:
        return self._outcome(posting, Refusal.UNIT_REFUSED)

    def _remember(self, outcome: Outcome) -> Outcome:
        self.outcomes[outcome.posting_id] = outcome
        self.decided.append(outcome)
        return outcome

    def _outcome(
        self, posting: Posting, refusal: Refusal | None = None, available_minor: int | None = None
    ) -> Outcome:
        target = self._side(posting.target)
        return Outcome(posting.id, refusal, available_minor, target.user_id if target else None)

    def _side(self, ref: AccountRef) -> Account | None:
        """A system account is meant only by its name, which no caller can give: its id is no secret."""
        account = self.accounts.get(ref.id)
        return account if account is not None and account.name == ref.name else None
