"""What e-mails look like to the programs that read them."""

import email
from email.message import EmailMessage
from email.policy import default
from email.utils import parseaddr
from html.parser import HTMLParser
from typing import Any

import pytest

from notification_service.letters import AddressError, Letters
from notification_service.testing import completed_event, message, sign_in_event
from notification_service.words import WORDS
from shared.ids import new_id

LINK = "https://pay.example.org/preferences"
ALICE = new_id()


def written(event: Any, **contact: Any) -> EmailMessage:
    """A mail as its reader's program parses it."""
    letter = Letters("pay@example.org", "Payment System", LINK).write(message(event, **contact))
    parsed = email.message_from_bytes(bytes(letter), policy=default)
    assert isinstance(parsed, EmailMessage)
    assert not parsed.defects
    return parsed


def body(letter: EmailMessage, kind: str) -> str:
    part = letter.get_body((kind,))
    assert part is not None
    text: str = part.get_content()
    return text.replace("\r\n", "\n")


class Markup(HTMLParser):
    """Tags, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_a_mail_has_its_headers_and_both_bodies() -> None:
    letter = written(completed_event("deposit", ALICE))

    assert (letter["From"], letter["To"]) == ("Payment System <pay@example.org>", "John Doe <john@example.com>")
    assert letter["Subject"] == "You deposited 50.00 USD"
    assert letter["Date"] == "Tue, 24 Nov 2026 09:30:00 +0000"
    assert letter["Message-ID"].endswith("@example.org>")
    assert letter["List-Unsubscribe"] == f"<{LINK}>"
    assert letter["Auto-Submitted"] == "auto-generated"
    assert letter.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in letter.iter_parts()] == ["text/plain", "text/html"]
    for kind in ("plain", "html"):
        assert "50.00 USD" in body(letter, kind)
        assert "Hello" in body(letter, kind)
        assert "Your deposit has arrived and is in your wallet." in body(letter, kind)


async def test_a_mail_about_security_offers_no_way_out() -> None:
    letter = written(sign_in_event(ALICE))

    assert letter["List-Unsubscribe"] is None
    assert LINK not in letter.as_string()
    assert "cannot be turned off" in body(letter, "plain")


@pytest.mark.parametrize(
    "name",
    [
        "John\r\nBcc: eve@evil.example",
        "John\nSubject: Won",
        "John\x00",
        "\u2028Bcc: eve@evil.example",
        '"><script>alert(1)</script>',
        "<img src=x onerror=alert(1)>",
        'a" <eve@evil.example>, "b',
        "=?utf-8?q?=0d=0aBcc:_eve@evil.example?=",
        "{{ 7 * 7 }}{amount}%s",
        "\u202egnisrever",
        "x" * 100_000,
        "אברהם",
        "محمد بن سلمان",
        "李小龍",
        "👩‍👩‍👧‍👦",
        "\ud800",
    ],
)
async def test_no_name_is_more_than_a_name(name: str) -> None:
    letter = written(completed_event("deposit", ALICE), first_name=name, last_name=name)

    assert letter["Bcc"] is None
    assert len(letter.get_all("Subject", [])) == len(letter.get_all("To", [])) == 1
    [address] = letter["To"].addresses
    assert address.addr_spec == "john@example.com"
    assert len(address.display_name) <= 61  # a reader may see a space where a long name is folded
    assert parseaddr(letter["To"])[1] == "john@example.com"
    assert letter["Subject"] == "You deposited 50.00 USD"
    markup = Markup(body(letter, "html"))
    assert not {"script", "img"} & set(markup.tags)
    assert "\u202e" not in letter["To"] + body(letter, "plain") + body(letter, "html")
    assert "49" not in body(letter, "plain").split("You deposited")[0]
    assert max(len(line) for line in bytes(letter).split(b"\n")) <= 998


@pytest.mark.parametrize(
    "name", ["Win at http://evil.example", "evil.example/win", "call www.evil", "eve@evil.example"]
)
async def test_a_name_that_would_be_a_link_is_not_repeated(name: str) -> None:
    letter = written(completed_event("deposit", ALICE), first_name=name)

    assert "evil" not in body(letter, "html")
    assert "evil" not in body(letter, "plain")
    assert body(letter, "plain").startswith("Hello,\n")


async def test_a_name_that_is_written_from_the_right_turns_nothing_else() -> None:
    letter = written(completed_event("deposit", ALICE), first_name="אברהם")

    assert "<bdi>אברהם</bdi>," in body(letter, "html")
    assert "Hello \u2068אברהם\u2069," in body(letter, "plain")


async def test_markup_and_links_in_a_device_stay_out() -> None:
    event = sign_in_event(ALICE)
    for agent, shown in (
        ("<b>Firefox</b>", "<b>Firefox</b>"),
        ("see https://evil.example", "unknown"),
        ("", "unknown"),
    ):
        device = event.model_copy(update={"data": event.data | {"user_agent": agent}})
        markup = Markup(body(written(device), "html"))
        assert shown in markup.text
        assert "b" not in markup.tags


@pytest.mark.parametrize(
    ("given", "sent_to"),
    [("jürgen@example.com", "jürgen@example.com"), ("john@bücher.example", "john@xn--bcher-kva.example")],
)
async def test_addresses_beyond_ascii(given: str, sent_to: str) -> None:
    letter = Letters("pay@example.org", "Payment System", "").write(
        message(completed_event("deposit", ALICE), email=given)
    )

    assert letter["To"].addresses[0].addr_spec == sent_to


@pytest.mark.parametrize(
    "given", ["", "john", "@", "john@", "@example.com", "a@b@c d", "john@example.com\r\nBcc: x@y"]
)
async def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(AddressError):
        Letters("pay@example.org", "Payment System", "").write(
            message(completed_event("deposit", ALICE), email=given)
        )


async def test_a_repeat_is_the_same_mail() -> None:
    told = message(completed_event("deposit", ALICE))
    letters = Letters("pay@example.org", "Payment System", LINK)
    first, second = (letters.write(told) for _ in range(2))

    assert bytes(first) == bytes(second)


async def test_every_template_has_words_for_its_facts() -> None:
    kinds = ("deposit", "withdrawal", "transfer", "payment", "refund", "payout_return", "dispute")
    used = {message(completed_event(kind, ALICE)).template for kind in kinds} | {"deposit_refund"}

    assert used < set(WORDS)
