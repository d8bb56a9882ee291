"""Double-entry rules. Pure: no database, no clock, no network."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

from shared.errors import AppError
from shared.money import CURRENCIES, MAX_MINOR, Money

_SYSTEM_ACCOUNTS: Final = UUID("6f0c1f5e-9d6b-5c6b-8a51-0f4a8f1f7f00")
MAX_SYSTEM_MINOR: Final = 2**63 - 1  # what a BIGINT holds

_SYSTEM_KINDS: Final = {"external": 3, "fees": 2}


class Refusal(StrEnum):
    """Why the ledger refuses a posting; as final as a success."""

    WALLET_NOT_FOUND = "wallet_not_found"
    NOT_OWNER = "not_owner"
    FROZEN = "frozen"
    CLOSED = "closed"
    CURRENCY_MISMATCH = "currency_mismatch"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    BALANCE_LIMIT = "balance_limit"


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


class UnknownAccountError(ValueError):
    """Neither a wallet's id nor the name of a system account."""


@dataclass(frozen=True, slots=True)
class Account:
    """A person's wallet, or a system account (`name`, no `user_id`), which alone may be negative."""

    id: UUID
    name: str | None
    user_id: UUID | None
    status: str
    balance: Money
    held: Money
    version: int

    @property
    def available(self) -> Money:
        """What may be spent."""
        return self.balance - self.held

    @property
    def within_limits(self) -> bool:
        """Whether the balance can be recorded; a system account stands for everybody and may hold far more."""
        return abs(self.balance.minor) <= (MAX_MINOR if self.user_id is not None else MAX_SYSTEM_MINOR)


@dataclass(frozen=True, slots=True)
class AccountRef:
    """Where money comes from or goes to; `name` and `currency` for a system account."""

    id: UUID
    name: str | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Posting:
    """Move `amount` from `source` to `target` at the wish of `user_id`; `id` is the transaction's."""

    id: UUID
    user_id: UUID
    source: AccountRef
    target: AccountRef
    amount: Money


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of a posting: the signed amount, and the account's balance and version after it."""

    posting_id: UUID
    account_id: UUID
    amount: Money
    balance: Money
    version: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a posting; who is paid is known where the target is a wallet."""

    posting_id: UUID
    refusal: Refusal | None = None
    available_minor: int | None = None
    target_user_id: UUID | None = None


def account_ref(text: str) -> AccountRef:
    """A wallet's id, or a system account such as `external:stripe:USD` or `fees:EUR`."""
    parts = text.split(":")
    if len(parts) == 1:
        try:
            return AccountRef(UUID(text))
        except ValueError:
            raise UnknownAccountError from None
    if _SYSTEM_KINDS.get(parts[0]) != len(parts) or parts[-1] not in CURRENCIES or not all(parts):
        raise UnknownAccountError
    return AccountRef(uuid5(_SYSTEM_ACCOUNTS, text), text, parts[-1])


def check(posting: Posting, source: Account | None, target: Account | None) -> tuple[Account, Account]:
    """Both accounts when everything but the balance allows the posting; raises RefusedError."""
    if source is None or target is None:
        raise RefusedError(Refusal.WALLET_NOT_FOUND)
    owned = source if source.user_id is not None else target
    if owned.user_id != posting.user_id:
        raise RefusedError(Refusal.NOT_OWNER)
    if "closed" in {source.status, target.status}:
        raise RefusedError(Refusal.CLOSED)
    if source.status == "frozen":
        raise RefusedError(Refusal.FROZEN)
    if {source.balance.currency, target.balance.currency} != {posting.amount.currency}:
        raise RefusedError(Refusal.CURRENCY_MISMATCH)
    return source, target


def post(posting: Posting, source: Account | None, target: Account | None) -> tuple[Account, Account, list[Entry]]:
    """Both accounts after the posting and its entries, which always sum to zero; raises RefusedError."""
    source, target = check(posting, source, target)
    if source.user_id is not None and source.available < posting.amount:
        raise RefusedError(Refusal.INSUFFICIENT_FUNDS, available=source.available)
    source = replace(source, balance=source.balance - posting.amount, version=source.version + 1)
    target = replace(target, balance=target.balance + posting.amount, version=target.version + 1)
    if not (source.within_limits and target.within_limits):
        raise RefusedError(Refusal.BALANCE_LIMIT)
    return (
        source,
        target,
        [
            Entry(posting.id, source.id, -posting.amount, source.balance, source.version),
            Entry(posting.id, target.id, posting.amount, target.balance, target.version),
        ],
    )


@dataclass(slots=True)
class Book:
    """The accounts of one batch while it is decided, in arrival order; `outcomes` knows what was decided before."""

    accounts: dict[UUID, Account]
    outcomes: dict[UUID, Outcome] = field(default_factory=dict)
    decided: list[Outcome] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    touched: set[UUID] = field(default_factory=set)

    def apply(self, postings: Iterable[Posting]) -> list[Outcome]:
        """One outcome a posting; a posting seen before, also in this batch, gets its first outcome again."""
        return [self._known(posting) or self._decide(posting) for posting in postings]

    def check(self, postings: Iterable[Posting]) -> list[Outcome]:
        """Refuse what breaks a rule, for good, and let the rest stand undecided; no money moves.

        What was decided before keeps its outcome, so whoever checks a posting that was applied learns of it.
        """
        return [self._known(posting) or self._check(posting) for posting in postings]

    def _known(self, posting: Posting) -> Outcome | None:
        known = self.outcomes.get(posting.id)
        return self._outcome(posting, known.refusal, known.available_minor) if known else None

    def _decide(self, posting: Posting) -> Outcome:
        try:
            source, target, entries = post(posting, *self._sides(posting))
        except RefusedError as error:
            outcome = self._refused(posting, error)
        else:
            self.accounts[source.id], self.accounts[target.id] = source, target
            self.touched |= {source.id, target.id}
            self.entries += entries
            outcome = self._outcome(posting)
        return self._remember(outcome)

    def _check(self, posting: Posting) -> Outcome:
        try:
            check(posting, *self._sides(posting))
        except RefusedError as error:
            return self._remember(self._refused(posting, error))
        return self._outcome(posting)

    def _remember(self, outcome: Outcome) -> Outcome:
        self.outcomes[outcome.posting_id] = outcome
        self.decided.append(outcome)
        return outcome

    def _refused(self, posting: Posting, error: RefusedError) -> Outcome:
        return self._outcome(posting, error.refusal, error.available.minor if error.available else None)

    def _outcome(
        self, posting: Posting, refusal: Refusal | None = None, available_minor: int | None = None
    ) -> Outcome:
        target = self._side(posting.target)
        return Outcome(posting.id, refusal, available_minor, target.user_id if target else None)

    def _sides(self, posting: Posting) -> tuple[Account | None, Account | None]:
        return self._side(posting.source), self._side(posting.target)

    def _side(self, ref: AccountRef) -> Account | None:
        """A system account is meant only by its name, which no caller can give: its id is no secret."""
        account = self.accounts.get(ref.id)
        return account if account is not None and account.name == ref.name else None
