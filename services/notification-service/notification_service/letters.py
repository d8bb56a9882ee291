"""A notification as an e-mail: HTML and plain text, from the same words."""

from dataclasses import dataclass
from datetime import datetime
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import idna
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from notification_service.domain import SECURITY, Channel, Contact, Kind, message_token, plain, speaks_of_a_place
from notification_service.words import WORDS, listed_facts, subject_of

MAX_NAME_LENGTH: Final = 60
TEMPLATES: Final = Path(__file__).parent / "templates"


class AddressError(ValueError):
    """Nothing that a mail can be sent to."""


@dataclass(frozen=True, slots=True)
class Message:
    """A notification to be delivered, as it is stored, and its person's contact."""

    id: UUID
    event_id: UUID
    kind: Kind
    template: str
    facts: dict[str, str]
    occurred_at: datetime
    created_at: datetime
    contact: Contact

    def token(self, channel: Channel) -> UUID:
        """The same whenever this is sent."""
        return message_token(self.event_id, self.contact.user_id, channel)


class Letters:
    """Writes e-mails from one sender."""

    def __init__(self, sender: str, sender_name: str, preferences_link: str) -> None:
        self._sender = Address(display_name=sender_name, addr_spec=sender)
        self._preferences_link = preferences_link
        templates = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(["html"]),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._html = templates.get_template("mail.html")
        self._text = templates.get_template("mail.txt")

    def write(self, message: Message) -> EmailMessage:
        """The e-mail, the same bytes whenever it is written; raises AddressError."""
        recipient = _recipient(message.contact)
        letter = EmailMessage(SMTP if recipient.addr_spec.isascii() else SMTPUTF8)
        subject = subject_of(message.template, message.facts)
        letter["From"] = self._sender
        letter["To"] = recipient
        letter["Subject"] = subject
        letter["Date"] = format_datetime(message.created_at)
        letter["Message-ID"] = f"<{message.token(Channel.EMAIL)}@{self._sender.domain}>"
        letter["Auto-Submitted"] = "auto-generated"
        link = "" if message.kind in SECURITY else self._preferences_link
        if link:
            letter["List-Unsubscribe"] = f"<{link}>"
        words = WORDS[message.template]
        context = {
            "sender": self._sender.display_name,
            "name": _greeted(message.contact.first_name),
            "subject": subject,
            "headline": subject_of(message.template, _unbroken(message.facts)),
            "text": words.text,
            "advice": words.advice,
            "facts": [*listed_facts(message.facts), ("Time", f"{message.occurred_at:%d %B %Y, %H:%M} UTC")],
            "is_about_security": message.kind in SECURITY,
            "preferences_link": link,
        }
        letter.set_content(self._text.render(context), cte="quoted-printable")
        letter.add_alternative(self._html.render(context), subtype="html", cte="quoted-printable")
        letter.set_boundary(f"=_{message.token(Channel.EMAIL).hex}")
        return letter


def _recipient(contact: Contact) -> Address:
    """The person's address, its domain in ASCII; raises AddressError."""
    user, _, domain = contact.email.rpartition("@")
    try:
        if not domain.isascii():
            domain = idna.encode(domain, uts46=True).decode()
        name = plain(f"{contact.first_name} {contact.last_name}", MAX_NAME_LENGTH)
        # Address reads ASCII alone; what it is given in parts it only looks through for line ends.
        given = {"addr_spec": f"{user}@{domain}"} if user.isascii() else {"username": user, "domain": domain}
        address = Address(name, **given)
    except (ValueError, IndexError, MessageError) as error:
        raise AddressError("not an address") from error
    if not (address.username and address.domain):
        raise AddressError("not an address")
    return address


def _unbroken(facts: dict[str, str]) -> dict[str, str]:
    """The facts with spaces that no line ends at, so that an amount keeps its currency."""
    return {name: fact.replace(" ", "\u00a0") for name, fact in facts.items()}


def _greeted(first_name: str) -> str:
    """A name to greet somebody by; none where it would make a link: anybody can register a stranger's address."""
    name = plain(first_name, MAX_NAME_LENGTH)
    return "" if speaks_of_a_place(name) else name
