"""Domain events: CloudEvents 1.0 in structured JSON, and the data of each type."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from shared.http.context import Trace, current_context
from shared.ids import new_id

UserId = Annotated[UUID, Field(description="whom it is about")]
WalletId = Annotated[UUID, Field(description="the wallet")]
Minor = Annotated[int, Field(description="in minor units of `currency`")]
Balance = Annotated[int, Field(description="the wallet's balance after it, in minor units of `currency`")]
Currency = Annotated[str, Field(description="ISO 4217 code")]
Ip = Annotated[str, Field(description="address that the request came from")]
Before = Field(description="what has changed, as it was; events of earlier releases do not say")
Unchanged = Field(description="null where it stayed as it was")
UserAgent = Annotated[str, Field(description="what the client calls itself")]
Reference = Annotated[str, Field(description="the provider's own id of the operation")]


class EventData(BaseModel):
    """What one type of event says; amounts are integer minor units of `currency`."""

    model_config = ConfigDict(frozen=True)
    type: ClassVar[str]
    topic: ClassVar[str]
    subject: ClassVar[str]  # the field that names the aggregate: the event's subject and its key in the topic


class UserContact(EventData):
    """Common to what carries a person's contact: all of it, so that the newest is enough.

    `phone` is empty where none is known.
    """

    topic = "users.events"
    subject = "user_id"
    user_id: UserId
    email: Annotated[str, Field(description="as they signed up")]
    phone: Annotated[str, Field(description="empty where none is known")]
    first_name: str
    last_name: str
    role: Annotated[str, Field(description="`user`, `merchant` or `admin`")]
    status: Annotated[Literal["active", "disabled", "closed"], Field(description="after it")] = "active"


class UserRegistered(UserContact):
    """Somebody registered."""

    type = "users.registered.v1"


class UserBefore(BaseModel):
    """What has changed of a person, as it was before."""

    model_config = ConfigDict(frozen=True)
    first_name: Annotated[str | None, Unchanged] = None
    last_name: Annotated[str | None, Unchanged] = None
    phone: Annotated[str | None, Unchanged] = None
    role: Annotated[str | None, Unchanged] = None
    status: Annotated[str | None, Unchanged] = None


class UserChange(UserContact):
    """Common to what changes a person; the contact is that after it."""

    before: Annotated[UserBefore | None, Before] = None


class UserUpdated(UserChange):
    """Somebody's profile or role has changed."""

    type = "users.updated.v1"


class UserDisabled(UserChange):
    """An admin has shut somebody out."""

    type = "users.disabled.v1"


class UserEnabled(UserChange):
    """An admin has let somebody in again."""

    type = "users.enabled.v1"


class UserClosed(UserChange):
    """Somebody has closed their account."""

    type = "users.closed.v1"


class UserPasswordChanged(UserContact):
    """Somebody has changed their password."""

    type = "users.password_changed.v1"


class UserSignedIn(EventData):
    """Somebody signed in; on a `new_device` where they never did so from this network with this user agent."""

    type = "users.signed_in.v1"
    topic = "users.events"
    subject = "user_id"
    user_id: UserId
    session_id: Annotated[UUID, Field(description="the session")]
    ip: Ip
    user_agent: UserAgent
    new_device: Annotated[bool, Field(description="never seen before with this person")]


class UserSessionsEnded(EventData):
    """Sessions have ended before their time."""

    type = "users.sessions_ended.v1"
    topic = "users.events"
    subject = "user_id"
    user_id: UserId
    session_ids: Annotated[list[UUID], Field(description="the sessions")]
    reason: Literal[
        "logged_out", "revoked", "reused", "too_many", "password_changed", "role_changed", "disabled", "closed"
    ]


class UserSessionReused(EventData):
    """A refresh token that had been replaced was used: somebody may have a copy, and the session ends."""

    type = "users.session_reused.v1"
    topic = "users.events"
    subject = "user_id"
    user_id: UserId
    session_id: Annotated[UUID, Field(description="the session")]
    ip: Ip
    user_agent: UserAgent


class WalletCreated(EventData):
    """A person has a wallet in one more currency."""

    type = "wallets.created.v1"
    topic = "wallets.events"
    subject = "wallet_id"
    wallet_id: WalletId
    user_id: UserId
    currency: Currency


class WalletBefore(BaseModel):
    """What has changed of a wallet, as it was before."""

    model_config = ConfigDict(frozen=True)
    status: Annotated[str, Field(description="`active`, `frozen` or `closed`")]


class WalletStatusEvent(EventData):
    """Common to what is said of a wallet's status."""

    topic = "wallets.events"
    subject = "wallet_id"
    wallet_id: WalletId
    user_id: UserId
    currency: Currency
    before: Annotated[WalletBefore | None, Before] = None


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
    subject = "hold_id"
    hold_id: Annotated[UUID, Field(description="the transaction that the money is for")]
    wallet_id: WalletId
    user_id: UserId
    currency: Currency
    amount_minor: Annotated[int, Field(description="set aside or let go, in minor units of `currency`")]
    balance_minor: Balance
    held_minor: Annotated[
        int, Field(description="all that is set aside in the wallet after it, in minor units of `currency`")
    ]


class WalletHeld(HoldEvent):
    """Money is set aside for a transaction."""

    type = "wallets.held.v1"


class WalletReleased(HoldEvent):
    """Money that was set aside is available again."""

    type = "wallets.released.v1"


class PostedEntry(BaseModel):
    """One wallet's side of a posting, with its balance and version after it."""

    model_config = ConfigDict(frozen=True)
    wallet_id: WalletId
    user_id: UserId
    amount_minor: Annotated[int, Field(description="in minor units of `currency`, negative where money leaves")]
    balance_minor: Balance
    version: Annotated[int, Field(description="how many entries the wallet has with this one")]


class WalletsPosted(EventData):
    """Money moved in the ledger. System accounts are not listed."""

    type = "wallets.posted.v1"
    topic = "wallets.events"
    subject = "posting_id"
    posting_id: Annotated[UUID, Field(description="the transaction that moved the money")]
    currency: Currency
    entries: Annotated[list[PostedEntry], Field(description="the wallets that it touched")]


class TransactionEvent(EventData):
    """Common to what is said of a transaction."""

    topic = "transactions.events"
    subject = "transaction_id"
    transaction_id: Annotated[UUID, Field(description="the transaction")]
    transaction_type: Literal["deposit", "withdrawal", "transfer", "payment", "refund", "payout_return", "dispute"]
    user_id: Annotated[UUID, Field(description="who asked for it, or whose money came back")]
    payee_user_id: Annotated[UUID | None, Field(description="whose wallet receives, where that is somebody else")]
    from_wallet_id: Annotated[UUID | None, Field(description="none where the money comes from outside")]
    to_wallet_id: Annotated[UUID | None, Field(description="none where the money goes outside")]
    original_transaction_id: Annotated[UUID | None, Field(description="what is given or taken back")] = None
    amount_minor: Minor
    fee_minor: Annotated[int, Field(description="kept of the amount, in minor units of `currency`")] = 0
    currency: Currency


class TransactionPending(TransactionEvent):
    """A transaction waits for somebody else's answer."""

    type = "transactions.pending.v1"


class TransactionCompleted(TransactionEvent):
    """A transaction is done: the money has moved."""

    type = "transactions.completed.v1"


class TransactionFailed(TransactionEvent):
    """A transaction was refused for good: no money has moved."""

    type = "transactions.failed.v1"
    failure_code: Annotated[str, Field(description="why, as the API says it")]


class PaymentEvent(EventData):
    """Common to what is said of a provider operation."""

    topic = "payments.events"
    subject = "payment_id"
    payment_id: Annotated[UUID, Field(description="the operation")]
    transaction_id: Annotated[UUID, Field(description="the transaction")]
    kind: Literal["charge", "refund", "payout"]
    provider: Annotated[str, Field(description="`stripe` or `paypal`")]
    amount_minor: Minor
    currency: Currency


class PaymentSucceeded(PaymentEvent):
    """The provider confirmed the operation."""

    type = "payments.succeeded.v1"
    provider_reference: Reference


class PaymentDeclined(PaymentEvent):
    """The provider declined the operation."""

    type = "payments.declined.v1"
    decline_code: Annotated[str, Field(description="why, as the provider says it")]


class PaymentDisputed(PaymentEvent):
    """A charge that succeeded was taken back by its payer; the amount is what it took."""

    type = "payments.disputed.v1"
    provider_reference: Reference


class PaymentReturned(PaymentEvent):
    """A payout that succeeded came back from the payee's bank; the amount is what came back."""

    type = "payments.returned.v1"
    provider_reference: Reference


class ChosenChannels(BaseModel):
    """Which channels one kind of notification takes."""

    model_config = ConfigDict(frozen=True)
    kind: Annotated[str, Field(description="what the notifications are about")]
    email: bool
    sms: bool


class NotificationPreferencesChanged(EventData):
    """Somebody wants to be told about something in another way."""

    type = "notifications.preferences_changed.v1"
    topic = "notifications.events"
    subject = "user_id"
    user_id: UserId
    preferences: Annotated[
        list[ChosenChannels], Field(description="the kinds that have changed, as they are after it")
    ]
    before: Annotated[list[ChosenChannels], Field(description="the same kinds, as they were")]


class Envelope(BaseModel):
    """A CloudEvent. `sequence` counts the subject's events from 1 without gaps."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    specversion: Annotated[Literal["1.0"], Field(description="of CloudEvents")] = "1.0"
    id: Annotated[UUID, Field(description="of the event, a UUIDv7; a repeated delivery has the same")]
    source: Annotated[str, Field(description="the publishing service's schema")]
    type: Annotated[str, Field(description="what has happened, with its version")]
    subject: Annotated[str, Field(description="the aggregate's id, and the key in the topic")]
    time: Annotated[datetime, Field(description="when it happened, UTC")]
    datacontenttype: Annotated[Literal["application/json"], Field(description="what `data` is")] = "application/json"
    sequence: Annotated[int, Field(ge=1, description="counts the subject's events from 1 without gaps")]
    traceparent: Annotated[str, Field(description="W3C trace context of the work that made it")]
    requestid: Annotated[str, Field(description="`X-Request-Id` of the request that made it")]
    actor: Annotated[str, Field(description="user id of who acted, or the name of the service that did")]
    data: Annotated[dict[str, object], Field(description="what the type says, see there")]


def _members(data: object) -> object:
    if isinstance(data, EventData):
        return data.model_dump()
    raise TypeError(f"{type(data).__name__} is no data of an event")


_encode: Final = msgspec.json.Encoder(enc_hook=_members).encode


class OutgoingEvent(NamedTuple):
    """An event on its way into an outbox: `payload` is the whole CloudEvent as JSON.

    `ip` is the address that the request came from: for the audit, and in no event.
    """

    id: UUID
    topic: str
    key: str
    payload: str
    ip: str | None = None

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
        request_id, traceparent, ip = trace or current_context().trace
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
        return cls(event_id, kind.topic, subject_id, _encode(envelope).decode(), ip)


def _types_of(base: type[EventData]) -> Iterator[type[EventData]]:
    for kind in base.__subclasses__():
        if "type" in vars(kind):
            yield kind
        yield from _types_of(kind)


# Every type there is, in the order of this file.
KINDS: Final[Mapping[str, type[EventData]]] = {kind.type: kind for kind in _types_of(EventData)}


def data_of(envelope: Envelope) -> EventData | None:
    """What the event says, or None for a type that is not known here; raises pydantic's ValidationError."""
    kind = KINDS.get(envelope.type)
    return kind.model_validate(envelope.data) if kind else None


TOPICS: Sequence[str] = (
    *("users.events", "wallets.events", "transactions.events"),
    *("payments.events", "notifications.events"),
)
