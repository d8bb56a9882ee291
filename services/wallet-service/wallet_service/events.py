"""What a batch of the ledger says to the world, and what user-service says of people."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from pydantic import BaseModel

from shared.events import (
    Envelope,
    EventData,
    HoldEvent,
    OutgoingEvent,
    WalletFrozen,
    WalletHeld,
    WalletReleased,
    WalletsPosted,
)
from wallet_service.domain import Account, Action, Book, Change, Hold, HoldStatus, Person, Posting


def events_of(book: Book, sequences: Mapping[UUID, int]) -> list[OutgoingEvent]:
    """The events of what the batch has changed, in order; `sequences` numbers those of wallets that it froze."""
    events = []
    for posting, change in book.changes:
        if change.entries:
            events.append(_event(posting, WalletsPosted, _posted(posting, change), posting.id, _sequence(posting)))
        elif change.hold is not None and change.accounts:
            kind, held = _HOLD_EVENTS[change.hold.status], _held(posting, change.hold, change.accounts[0])
            events.append(_event(posting, kind, held, posting.id, _sequence(posting)))
        if change.frozen is not None:
            wallet = change.frozen
            frozen = {
                "wallet_id": wallet.id,
                "user_id": wallet.user_id,
                "currency": wallet.balance.currency,
                "before": {"status": wallet.status},
            }
            events.append(_event(posting, WalletFrozen, frozen, wallet.id, sequences[wallet.id]))
    return events


def _sequence(posting: Posting) -> int:
    """What ends a hold follows the event of the hold."""
    return 2 if posting.action in _ENDINGS else 1


_ENDINGS: Final = frozenset({Action.CAPTURE, Action.RELEASE})
_HOLD_EVENTS: Final[dict[HoldStatus, type[HoldEvent]]] = {
    HoldStatus.OPEN: WalletHeld,
    HoldStatus.RELEASED: WalletReleased,
}


def _posted(posting: Posting, change: Change) -> dict[str, object]:
    owners = {account.id: account.user_id for account in change.accounts}
    return {
        "posting_id": posting.id,
        "currency": posting.amount.currency,
        "entries": [
            {
                "wallet_id": entry.account_id,
                "user_id": owner,
                "amount_minor": entry.amount.minor,
                "balance_minor": entry.balance.minor,
                "version": entry.version,
            }
            for entry in change.entries
            if (owner := owners[entry.account_id]) is not None
        ],
    }


def _held(posting: Posting, hold: Hold, wallet: Account) -> dict[str, object]:
    return {
        "hold_id": posting.id,
        "wallet_id": wallet.id,
        "user_id": wallet.user_id,
        "currency": wallet.balance.currency,
        "amount_minor": (hold.amount or posting.amount).minor,
        "balance_minor": wallet.balance.minor,
        "held_minor": wallet.held.minor,
    }


def _event(
    posting: Posting, kind: type[EventData], data: Mapping[str, object], subject: UUID, sequence: int
) -> OutgoingEvent:
    actor = str(posting.user_id)
    return OutgoingEvent.unchecked(kind, data, subject=subject, sequence=sequence, actor=actor, trace=posting.trace)


# ------------------------------------------------------------------------------------------------ people

# The types that are listened to, and the status that a person has after each.
ABOUT_PEOPLE: Final = {
    "users.registered.v1": "active",
    "users.disabled.v1": "disabled",
    "users.enabled.v1": "active",
    "users.closed.v1": "closed",
}


class _PersonIn(BaseModel):
    """What all of these say; whatever else they say is not needed here."""

    user_id: UUID
    role: str


def person_of(envelope: Envelope) -> Person | None:
    """Whom the event tells of; None for a type that is not listened to. Raises pydantic's ValidationError."""
    status = ABOUT_PEOPLE.get(envelope.type)
    if status is None:
        return None
    told = _PersonIn.model_validate(envelope.data)
    return Person(told.user_id, told.role, status, envelope.sequence)
