"""What a batch of the ledger says to the world."""

from collections.abc import Mapping
from typing import Final
from uuid import UUID

from shared.events import (
    EventData,
    HoldEvent,
    OutgoingEvent,
    PostedEntry,
    WalletFrozen,
    WalletHeld,
    WalletReleased,
    WalletsPosted,
)
from wallet_service.domain import Account, Action, Book, Change, Hold, HoldStatus, Posting


def events_of(book: Book, sequences: Mapping[UUID, int]) -> list[OutgoingEvent]:
    """The events of what the batch has changed, in order; `sequences` numbers those of wallets that it froze."""
    events = []
    for posting, change in book.changes:
        if change.entries:
            events.append(_event(posting, _posted(book, posting, change), posting.id, _sequence(posting)))
        elif change.hold is not None and change.accounts:
            held = _held(posting, change.hold, change.accounts[0])
            events.append(_event(posting, held, posting.id, _sequence(posting)))
        if change.frozen is not None:
            frozen = WalletFrozen.model_validate(
                {"wallet_id": change.frozen.id, "user_id": change.frozen.user_id, "currency": posting.amount.currency}
            )
            events.append(_event(posting, frozen, change.frozen.id, sequences[change.frozen.id]))
    return events


def _sequence(posting: Posting) -> int:
    """What ends a hold follows the event of the hold."""
    return 2 if posting.action in _ENDINGS else 1


_ENDINGS: Final = frozenset({Action.CAPTURE, Action.RELEASE})
_HOLD_EVENTS: Final[dict[HoldStatus, type[HoldEvent]]] = {
    HoldStatus.OPEN: WalletHeld,
    HoldStatus.RELEASED: WalletReleased,
}


def _posted(book: Book, posting: Posting, change: Change) -> WalletsPosted:
    owners = {account.id: account.user_id for account in change.accounts}
    return WalletsPosted(
        posting_id=posting.id,
        currency=posting.amount.currency,
        entries=[
            PostedEntry(
                wallet_id=entry.account_id,
                user_id=owner,
                amount_minor=entry.amount.minor,
                balance_minor=entry.balance.minor,
                version=entry.version,
            )
            for entry in change.entries
            if (owner := owners[entry.account_id]) is not None
        ],
    )


def _held(posting: Posting, hold: Hold, wallet: Account) -> HoldEvent:
    return _HOLD_EVENTS[hold.status].model_validate(
        {
            "hold_id": posting.id,
            "wallet_id": wallet.id,
            "user_id": wallet.user_id,
            "currency": wallet.balance.currency,
            "amount_minor": (hold.amount or posting.amount).minor,
            "balance_minor": wallet.balance.minor,
            "held_minor": wallet.held.minor,
        }
    )


def _event(posting: Posting, data: EventData, subject: UUID, sequence: int) -> OutgoingEvent:
    return OutgoingEvent.of(data, subject=subject, sequence=sequence, actor=str(posting.user_id), trace=posting.trace)
