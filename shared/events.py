"""Domain events: CloudEvents 1.0 in structured JSON, and the data of each type."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal, NamedTuple, Self
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from shared.http.context import Trace, current_context
from shared.ids import new_id


class EventData(BaseModel):
    """What one type of event says; amounts are integer minor units of `currency`."""

    model_config = ConfigDict(frozen=True)
    type: ClassVar[str]
    topic: ClassVar[str]


class UserContact(EventData):
    """Common to what carries a person's contact: all of it, so that the newest is enough.

    `phone` is empty where none is known.
    """

    topic = "users.events"
    user_id: UUID
    email: str
    phone: str
    first_name: str
    last_name: str
    role: str
    status: Literal["active", "disabled", "closed"] = "active"


class UserRegistered(UserContact):
    """Somebody registered."""

    type = "users.registered.v1"


class UserUpdated(UserContact):
    """Somebody's profile or role has changed."""

    type = "users.updated.v1"


class UserPasswordChanged(UserContact):
    """Somebody has changed their password."""

    type = "users.password_changed.v1"


class UserDisabled(UserContact):
    """An admin has shut somebody out."""

    type = "users.disabled.v1"


class UserEnabled(UserContact):
    """An admin has let somebody in again."""

    type = "users.enabled.v1"


class UserClosed(UserContact):
    """Somebody has closed their account."""

    type = "users.closed.v1"


class UserSignedIn(EventData):
    """Somebody signed in; on a `new_device` where they never did so from this network with this user agent."""

    type = "users.signed_in.v1"
    topic = "users.events"
    user_id: UUID
    session_id: UUID
    ip: str
    user_agent: str
    new_device: bool


class UserSessionsEnded(EventData):
    """Sessions have ended before their time."""

    type = "users.sessions_ended.v1"
    topic = "users.events"
    user_id: UUID
    session_ids: list[UUID]
    reason: Literal[
        "logged_out", "revoked", "reused", "too_many", "password_changed", "role_changed", "disabled", "closed"
    ]


class UserSessionReused(EventData):
    """A refresh token that had been replaced was used: somebody may have a copy, and the session ends."""

    type = "users.session_reused.v1"
    topic = "users.events"
    user_id: UUID
    session_id: UUID
    ip: str
    user_agent: str


class WalletCreated(EventData):
    """A person has a wallet in one more currency."""

    type = "wallets.created.v1"
    topic = "wallets.events"
    wallet_id: UUID
    user_id: UUID
    currency: str


class WalletStatusEvent(EventData):
    """Common to what is said of a wallet's status."""

    topic = "wallets.events"
    wallet_id: UUID
    user_id: UUID
    currency: str


class WalletFrozen(WalletStatusEvent):
    """No money leaves the wallet any more."""

    type = "wallets.frozen.v1"


class WalletUnfrozen(WalletStatusEvent):
    """Money may leave the wallet again."""

    type = "wallets.unfrozen.v1"


class WalletClosed(WalletStatusEvent):
    """The wallet is empty and takes no money any more."""

    type = "wallets.closed.v1"


class WalletReopened(WalletStatusEvent):
    """A closed wallet was asked for again."""

    type = "wallets.reopened.v1"


class HoldEvent(EventData):
    """Common to what is said of money set aside; `hold_id` is the transaction's, the amounts are those after it."""

    topic = "wallets.events"
    hold_id: UUID
    wallet_id: UUID
    user_id: UUID
    currency: str
    amount_minor: int
    balance_minor: int
    held_minor: int


class WalletHeld(HoldEvent):
    """Money is set aside for a transaction."""

    type = "wallets.held.v1"


class WalletReleased(HoldEvent):
    """Money that was set aside is available again."""

    type = "wallets.released.v1"


class PostedEntry(BaseModel):
    """One wallet's side of a posting, with its balance and version after it."""

    model_config = ConfigDict(frozen=True)
    wallet_id: UUID
    user_id: UUID
    amount_minor: int
    balance_minor: int
    version: int


class WalletsPosted(EventData):
    """Money moved in the ledger. System accounts are not listed."""

    type = "wallets.posted.v1"
    topic = "wallets.events"
    posting_id: UUID
    currency: str
    entries: list[PostedEntry]


class TransactionEvent(EventData):
    """Common to what is said of a transaction."""

    transaction_id: UUID
    transaction_type: Literal["deposit", "withdrawal", "transfer", "payment", "refund", "payout_return", "dispute"]
    user_id: UUID
    payee_user_id: UUID | None
    from_wallet_id: UUID | None
    to_wallet_id: UUID | None
    original_transaction_id: UUID | None = None
    amount_minor: int
    fee_minor: int = 0
    currency: str


class TransactionPending(TransactionEvent):
    """A transaction waits for somebody else's answer."""

    type = "transactions.pending.v1"
    topic = "transactions.events"


class TransactionCompleted(TransactionEvent):
    """A transaction is done: the money has moved."""

    type = "transactions.completed.v1"
    topic = "transactions.events"


class TransactionFailed(TransactionEvent):
    """A transaction was refused for good: no money has moved."""

    type = "transactions.failed.v1"
    topic = "transactions.events"
    failure_code: str


class PaymentEvent(EventData):
    """Common to what is said of a provider operation."""

    payment_id: UUID
    transaction_id: UUID
    kind: Literal["charge", "refund", "payout"]
    provider: str
    amount_minor: int
    currency: str


class PaymentSucceeded(PaymentEvent):
    """The provider confirmed the operation."""

    type = "payments.succeeded.v1"
    topic = "payments.events"
    provider_reference: str


class PaymentDeclined(PaymentEvent):
    """The provider declined the operation."""

    type = "payments.declined.v1"
    topic = "payments.events"
    decline_code: str


class PaymentDisputed(PaymentEvent):
    """A charge that succeeded was taken back by its payer; the amount is what it took."""

    type = "payments.disputed.v1"
    topic = "payments.events"
    provider_reference: str


class PaymentReturned(PaymentEvent):
    """A payout that succeeded came back from the payee's bank; the amount is what came back."""

    type = "payments.returned.v1"
    topic = "payments.events"
    provider_reference: str


class Envelope(BaseModel):
    """A CloudEvent. `sequence` counts the subject's events from 1 without gaps."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    specversion: Literal["1.0"] = "1.0"
    id: UUID
    source: str
    type: str
    subject: str
    time: datetime
    datacontenttype: Literal["application/json"] = "application/json"
    sequence: int = Field(ge=1)
    traceparent: str
    requestid: str
    actor: str
    data: dict[str, object]


def _members(data: object) -> object:
    if isinstance(data, EventData):
        return data.model_dump()
    raise TypeError(f"{type(data).__name__} is no data of an event")


_encode: Final = msgspec.json.Encoder(enc_hook=_members).encode


class OutgoingEvent(NamedTuple):
    """An event on its way into an outbox: `payload` is the whole CloudEvent as JSON."""

    id: UUID
    topic: str
    key: str
    payload: str

    @classmethod
    def of(cls, data: EventData, *, subject: UUID, sequence: int, actor: str, trace: Trace | None = None) -> Self:
        """Wrap `data` about the aggregate `subject`; `actor` is the user's id or the service that acted.

        `trace` is that of the work which the event tells of, where it is not the request in hand.
        """
        return cls.unchecked(type(data), data, subject=subject, sequence=sequence, actor=actor, trace=trace)

    @classmethod
    def unchecked(
        cls,
        kind: type[EventData],
        data: EventData | Mapping[str, object],
        *,
        subject: UUID,
        sequence: int,
        actor: str,
        trace: Trace | None = None,
    ) -> Self:
        """As `of`, for a hot path: `data` has the fields of `kind`, and nobody looks whether it has."""
        request_id, traceparent = trace or current_context().trace
        event_id, subject_id = new_id(), str(subject)
        envelope = {  # what `Envelope` reads
            "specversion": "1.0",
            "id": event_id,
            "source": kind.topic.partition(".")[0],
            "type": kind.type,
            "subject": subject_id,
            "time": datetime.now(UTC),
            "datacontenttype": "application/json",
            "sequence": sequence,
            "traceparent": traceparent,
            "requestid": request_id,
            "actor": actor,
            "data": data,
        }
        return cls(event_id, kind.topic, subject_id, _encode(envelope).decode())


KINDS: Final[Mapping[str, type[EventData]]] = {
    kind.type: kind
    for kind in (
        UserRegistered,
        UserUpdated,
        UserPasswordChanged,
        UserDisabled,
        UserEnabled,
        UserClosed,
        UserSignedIn,
        UserSessionsEnded,
        UserSessionReused,
        WalletCreated,
        WalletFrozen,
        WalletUnfrozen,
        WalletClosed,
        WalletReopened,
        WalletHeld,
        WalletReleased,
        WalletsPosted,
        TransactionPending,
        TransactionCompleted,
        TransactionFailed,
        PaymentSucceeded,
        PaymentDeclined,
        PaymentDisputed,
        PaymentReturned,
    )
}


def data_of(envelope: Envelope) -> EventData | None:
    """What the event says, or None for a type that is not known here; raises pydantic's ValidationError."""
    kind = KINDS.get(envelope.type)
    return kind.model_validate(envelope.data) if kind else None


TOPICS: Sequence[str] = ("users.events", "wallets.events", "transactions.events", "payments.events")
