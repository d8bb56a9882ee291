"""Events, people and mail servers for tests."""

import asyncio
import email
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from typing import Any
from uuid import UUID

from aiosmtpd.smtp import SMTP, Envelope, Session

from notification_service.domain import Contact, Kind, notices
from notification_service.letters import Message
from notification_service.service import Notifications
from shared.events import Envelope as Event
from shared.events import (
    EventData,
    OutgoingEvent,
    TransactionCompleted,
    UserContact,
    UserRegistered,
    UserSignedIn,
)
from shared.ids import new_id
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually

HOST = "127.0.0.1"


def event_of(data: EventData, subject: UUID, sequence: int = 1) -> Event:
    """An event as it comes off a topic."""
    payload = OutgoingEvent.of(data, subject=subject, sequence=sequence, actor=str(subject)).payload
    return Event.model_validate_json(payload)


def contact_event(
    user_id: UUID, sequence: int = 1, kind: type[UserContact] = UserRegistered, **changes: Any
) -> Event:
    """An event that carries a person's contact."""
    fields = {
        "user_id": user_id,
        "email": f"{user_id}@example.com",
        "phone": "+1234567890",
        "first_name": "John",
        "last_name": "Doe",
        "role": "user",
    }
    return event_of(kind(**(fields | changes)), user_id, sequence)


def sign_in_event(user_id: UUID, sequence: int = 2, *, new_device: bool = True) -> Event:
    """Somebody signed in."""
    data = UserSignedIn(
        user_id=user_id, session_id=new_id(), ip="203.0.113.7", user_agent="Firefox", new_device=new_device
    )
    return event_of(data, user_id, sequence)


def completed_event(kind: Any, user_id: UUID, payee_user_id: UUID | None = None, **changes: Any) -> Event:
    """A transaction of 50.00 USD is done."""
    fields = {
        "transaction_id": new_id(),
        "transaction_type": kind,
        "user_id": user_id,
        "payee_user_id": payee_user_id,
        "from_wallet_id": new_id(),
        "to_wallet_id": new_id(),
        "amount_minor": 5_000,
        "currency": "USD",
    }
    data = TransactionCompleted(**(fields | changes))
    return event_of(data, data.transaction_id)


def message(event: Event, **contact: Any) -> Message:
    """What the first person concerned is told of an event."""
    notice = notices(event.type, event.data)[0]
    fields = {"email": "john@example.com", "phone": "+1234567890", "first_name": "John", "last_name": "Doe"}
    return Message(
        id=new_id(),
        event_id=event.id,
        kind=Kind(notice.kind),
        template=notice.template,
        facts=notice.facts,
        occurred_at=event.time,
        created_at=datetime(2026, 11, 24, 9, 30, tzinfo=UTC),
        contact=Contact(user_id=notice.user_id, **(fields | contact), status="active", sequence=1),
    )


Answer = Callable[[str], str | None]


@dataclass
class MailServer:
    """A real SMTP server. `at_rcpt` and `at_data` may answer an address for it; None accepts."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    at_rcpt: Answer = lambda _: None
    at_data: Answer = lambda _: None
    silent: asyncio.Event | None = None  # what was taken is not confirmed before it is set
    connections: int = 0

    def to(self, address: str) -> list[EmailMessage]:
        """The mails that somebody got."""
        return [mail for mail in self.mails if mail["X-RcptTo"] == address]

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, _: SMTP, session: Session, __: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Somebody has come."""
        session.host_name = hostname
        self.connections += 1
        return responses

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: list[str]
    ) -> str:
        """Take a recipient or not."""
        refused = self.at_rcpt(address)
        if refused is None:
            envelope.rcpt_tos.append(address)
        return refused or "250 OK"

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Take a mail or not."""
        [address] = envelope.rcpt_tos
        refused = self.at_data(address)
        if refused is not None:
            return refused
        content = envelope.original_content
        mail = email.message_from_bytes(content or b"", policy=default)
        assert isinstance(mail, EmailMessage)
        mail["X-RcptTo"] = address
        self.mails.append(mail)
        if self.silent is not None:
            await self.silent.wait()
        return "250 OK"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def listening(server: MailServer, **options: Any) -> AsyncIterator[None]:
    """The mail server is up for the length of the block; what came before stays in it."""
    connections: set[asyncio.Transport] = set()

    class Connection(SMTP):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert isinstance(transport, asyncio.Transport)
            connections.add(transport)

    loop = asyncio.get_running_loop()
    socket_server = await loop.create_server(
        lambda: Connection(server, hostname="mail.example", enable_SMTPUTF8=True, loop=loop, **options),
        HOST,
        server.port,
    )
    try:
        yield
    finally:
        socket_server.close()
        for transport in connections:
            transport.abort()
        await socket_server.wait_closed()


Process = Callable[..., Any]


@dataclass
class Post:
    """The service's database, and processes of the service on it."""

    sandbox: Sandbox
    notifications: Notifications

    async def happened(self, *events: Event) -> None:
        """The events were consumed."""
        await self.notifications.handle(events)

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        """Rows as the owner of the schema sees them."""
        connection = await self.sandbox.connect()
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    async def rows(self, *user_ids: UUID) -> list[tuple[str, str, str, str | None]]:
        """Kind, channel, state and reason of what these people are told, in a fixed order."""
        found = await self.sql(
            "select kind, channel, state, reason from notifications.notifications where user_id = any($1) "
            "order by kind, channel, state",
            list(user_ids),
        )
        return [tuple(row) for row in found]

    async def ended(self, *user_ids: UUID, limit_seconds: float = 20.0) -> list[tuple[str, str, str, str | None]]:
        """As `rows`, once nothing of it is pending."""

        async def nothing_pending() -> bool:
            rows = await self.rows(*user_ids)
            return bool(rows) and all(state != "pending" for _, _, state, _ in rows)

        await eventually(nothing_pending, limit_seconds)
        return await self.rows(*user_ids)
