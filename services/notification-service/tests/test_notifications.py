"""Who is told what, once."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from notification_service.app import create_app
from notification_service.domain import (
    Channel,
    Kind,
    Preference,
    decide,
    message_token,
    notices,
    pause_seconds,
    plain,
    speaks_of_a_place,
)
from notification_service.settings import DEVELOPMENT_SENDER, NotificationSettings
from notification_service.testing import completed_event
from notification_service.words import WORDS, sms_of, subject_of
from shared.events import OutgoingEvent, TransactionFailed, UserRegistered, WalletsPosted
from shared.ids import new_id
from shared.kafka import EventProducer, ensure_topics
from shared.settings import SettingsError, load
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

ALICE, BOB = new_id(), new_id()


def transfer(**changes: Any) -> dict[str, Any]:
    return dict(completed_event("transfer", ALICE, BOB).data) | changes


@pytest.mark.parametrize(
    ("kind", "to_alice", "to_bob"),
    [
        ("transfer", ("money_sent", "You sent 50.00 USD"), ("money_received", "You received 50.00 USD")),
        ("payment", ("money_sent", "You sent 50.00 USD"), ("payment_received", "You were paid 50.00 USD")),
        ("refund", ("refund", "You refunded 50.00 USD"), ("refund", "You were refunded 50.00 USD")),
    ],
)
async def test_both_are_told_each_in_their_own_words(
    kind: str, to_alice: tuple[str, str], to_bob: tuple[str, str]
) -> None:
    told = notices("transactions.completed.v1", transfer(transaction_type=kind))

    assert [(notice.user_id, notice.kind, subject_of(notice.template, notice.facts)) for notice in told] == [
        (ALICE, *to_alice),
        (BOB, *to_bob),
    ]


@pytest.mark.parametrize(
    ("kind", "about", "text"),
    [
        ("deposit", "deposit", "Your deposit of 50.00 USD has arrived."),
        (
            "withdrawal",
            "withdrawal",
            "Your withdrawal of 50.00 USD is on its way. If this was not you, change your password now.",
        ),
        ("refund", "refund", "50.00 USD of your deposit are on their way back to you."),
        ("payout_return", "payout_return", "A withdrawal of 50.00 USD came back and is in your wallet again."),
        ("dispute", "dispute", "A deposit of 50.00 USD was disputed and taken back. Your wallet is frozen."),
    ],
)
async def test_what_concerns_one_person_is_told_in_its_own_words(kind: str, about: str, text: str) -> None:
    change = {"transaction_type": kind, "payee_user_id": None, "to_wallet_id": None}

    [notice] = notices("transactions.completed.v1", transfer(**change))

    assert (notice.user_id, notice.kind, sms_of(notice.template, notice.facts)) == (ALICE, about, text)


async def test_who_bears_a_fee_is_told_of_it_and_nobody_else() -> None:
    payer, payee = notices("transactions.completed.v1", transfer(transaction_type="payment", fee_minor=125))

    assert "fee" not in payer.facts
    assert (payee.facts["amount"], payee.facts["fee"], payee.facts["net"]) == ("50.00 USD", "1.25 USD", "48.75 USD")


@pytest.mark.parametrize(
    ("minor", "currency", "text"),
    [
        (5, "USD", "0.05 USD"),
        (123_456_789, "USD", "1,234,567.89 USD"),
        (1_200, "JPY", "1,200 JPY"),
        (500, "KWD", "0.500 KWD"),
    ],
)
async def test_amounts_have_the_decimals_of_their_currency(minor: int, currency: str, text: str) -> None:
    notice, _ = notices("transactions.completed.v1", transfer(amount_minor=minor, currency=currency))

    assert notice.facts["amount"] == text


@pytest.mark.parametrize(
    ("code", "subject"),
    [
        ("cancelled", "Your transfer of 50.00 USD was cancelled"),
        ("insufficient_funds", "Your transfer of 50.00 USD was refused"),
    ],
)
async def test_a_failure_is_told_to_the_payer_alone(code: str, subject: str) -> None:
    data = TransactionFailed.model_validate(transfer(failure_code=code)).model_dump(mode="json")

    [notice] = notices("transactions.failed.v1", data)

    assert (notice.user_id, notice.kind, subject_of(notice.template, notice.facts)) == (ALICE, "failure", subject)


async def test_a_posting_by_itself_and_a_known_device_are_told_to_nobody() -> None:
    posted = WalletsPosted(posting_id=new_id(), currency="USD", entries=[]).model_dump(mode="json")
    known = {"user_id": str(ALICE), "ip": "::1", "user_agent": "x", "new_device": False}

    assert notices("wallets.posted.v1", posted) == []
    assert notices("users.signed_in.v1", known) == []


def test_every_channel_is_decided_on_by_kind_and_preference() -> None:
    def decided(kind: Kind, chosen: Preference | None = None) -> list[tuple[str, str]]:
        return [(channel, state) for channel, state, _ in decide(kind, chosen)]

    assert decided(Kind.DEPOSIT) == [("email", "pending")]
    assert decided(Kind.WITHDRAWAL) == [("email", "pending"), ("sms", "pending")]
    assert decided(Kind.DEPOSIT, Preference(email=False, sms=True)) == [("email", "skipped"), ("sms", "pending")]
    assert decided(Kind.NEW_DEVICE, Preference(email=False, sms=False)) == [("email", "pending"), ("sms", "skipped")]


def test_text_messages_fit_in_one_of_160_letters_of_the_basic_alphabet() -> None:
    facts = {
        "amount": "9,999,999,999,999.99 USD",
        "transaction": "withdrawal",
        "ip": "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    }
    for template in WORDS:
        text = sms_of(template, facts)
        assert len(text) <= 160, template
        assert text.isascii(), template


def test_pauses_double_up_to_the_longest_and_vary_by_half() -> None:
    assert [pause_seconds(n, 5, 300, 1.0) for n in (1, 2, 3, 7, 50, 10_000)] == [5, 10, 20, 300, 300, 300]
    assert pause_seconds(2, 5, 300, 0.0) == 5


def test_the_token_is_that_of_event_person_and_channel() -> None:
    event, tokens = new_id(), set()
    for user_id in (ALICE, BOB):
        for channel in Channel:
            assert message_token(event, user_id, channel) == message_token(event, user_id, channel)
            tokens.add(message_token(event, user_id, channel))
    assert len(tokens) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("John\r\nBcc: eve@example.com", "John Bcc: eve@example.com"),
        ("\u202emoc.live\u202c", "moc.live"),
        ("\x1b[31mred\x00", "[31mred"),
        ("नि\u200dखिल", "नि\u200dखिल"),
        ("x" * 200, "x" * 119 + "…"),
    ],
)
def test_strangers_words_are_one_harmless_line(given: str, expected: str) -> None:
    assert plain(given) == expected


@pytest.mark.parametrize("text", ["http://evil.example", "evil.example", "www.evil", "a@b", "pay。evil"])
def test_what_could_be_a_link_is_seen(text: str) -> None:
    assert speaks_of_a_place(text)


@pytest.mark.parametrize("text", ["John", "J. R.", "Dr. No", "O'Neil", "אברהם", "Jean-Luc"])
def test_names_are_no_links(text: str) -> None:
    assert not speaks_of_a_place(text)


COMPLETE = {
    "environment": "production",
    "jwt_secret_key": "j" * 32,
    "service_secret_key": "s" * 32,
    "postgres_password": "own",
    "mongo_password": "own",
    "smtp_host": "smtp.example.org",
    "mail_from": "pay@example.org",
    "sms_provider": "none",
}


@pytest.fixture
def settings_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], NotificationSettings]:
    """The settings that complete ones become by a change."""
    monkeypatch.setenv("ENV_FILE", "")

    def settings(change: dict[str, str]) -> NotificationSettings:
        for name, value in (COMPLETE | change).items():
            monkeypatch.setenv(name.upper(), value)
        return load(NotificationSettings)

    return settings


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"smtp_host": ""}, "SMTP_HOST"),
        ({"mail_from": DEVELOPMENT_SENDER}, "MAIL_FROM"),
        ({"smtp_username": "someone"}, "SMTP_SECURITY"),
        ({"sms_provider": "console"}, "SMS_PROVIDER"),
        ({"sms_provider": "twilio"}, "TWILIO_AUTH_TOKEN"),
        ({"mail_from": "a@b\r\nBcc: c@d"}, "MAIL_FROM"),
        ({"mail_from_name": "a\nb"}, "MAIL_FROM_NAME"),
    ],
)
def test_settings_that_would_tell_nobody_stop_the_start(
    settings_from: Callable[[dict[str, str]], NotificationSettings], change: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError, match=named):
        settings_from(change)


def test_complete_settings_do_not(settings_from: Callable[[dict[str, str]], NotificationSettings]) -> None:
    assert settings_from({}).smtp_host == "smtp.example.org"


# ------------------------------------------------------------------------------------ off the broker


def without_data(event: OutgoingEvent) -> bytes:
    """A well-formed envelope of a known type with nothing in it."""
    return json.dumps(json.loads(event.payload) | {"id": str(new_id()), "data": {}}).encode()


def in_no_currency() -> bytes:
    """An amount that cannot be written."""
    event = completed_event("transfer", ALICE, BOB).model_dump(mode="json")
    return json.dumps(event | {"data": event["data"] | {"currency": "ZZZ"}}).encode()


@pytest.fixture(scope="module")
async def client(sandbox: Sandbox) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(create_app(sandbox.settings(NotificationSettings))) as client:
        yield client


async def test_events_off_the_broker_are_told_once_and_rubbish_is_passed_over(
    sandbox: Sandbox, client: httpx.AsyncClient
) -> None:
    settings = sandbox.settings(NotificationSettings)
    registered = OutgoingEvent.of(
        UserRegistered(
            user_id=ALICE, email="a@example.com", phone="+1234567890", first_name="A", last_name="B", role="user"
        ),
        subject=ALICE,
        sequence=1,
        actor=str(ALICE),
    )
    sent, last = (completed_event("transfer", ALICE, BOB).model_dump_json().encode() for _ in range(2))
    topics = ["users.events", "transactions.events"]
    await ensure_topics(settings.kafka_bootstrap_servers, [settings.kafka_topic_prefix + t for t in topics], 1)
    producer = EventProducer(settings)

    async def titles(user_id: Any) -> list[str]:
        answer = await client.get("/notifications", headers=Person(id=user_id).headers)
        return [each["title"] for each in answer.json()["data"]]

    async def bob_was_told_of(count: int) -> bool:
        return len(await titles(BOB)) >= count

    try:
        await producer.send(
            [
                ("users.events", b"rubbish", b"{not json"),
                ("users.events", b"rubbish", b'{"specversion": "1.0"}'),
                ("users.events", registered.key.encode(), without_data(registered)),
                ("transactions.events", b"rubbish", in_no_currency()),
                ("users.events", registered.key.encode(), registered.payload.encode()),
                ("users.events", registered.key.encode(), registered.payload.encode()),
                ("transactions.events", b"a", sent),
                ("transactions.events", b"a", sent),
            ]
        )
        await eventually(lambda: bob_was_told_of(1), 30)
        await producer.send([("transactions.events", b"a", last)])
        await eventually(lambda: bob_was_told_of(2))

        async def alice_was_told_of_three() -> bool:
            return len(await titles(ALICE)) >= 3

        await eventually(alice_was_told_of_three)
    finally:
        await producer.close()
    assert sorted(await titles(ALICE)) == ["Welcome", "You sent 50.00 USD", "You sent 50.00 USD"]
    assert await titles(BOB) == ["You received 50.00 USD", "You received 50.00 USD"]

    async def alices_mails() -> list[str]:
        return [
            file.read_text() for file in settings.mail_folder.glob("*.eml") if "a@example.com" in file.read_text()
        ]

    async def three_mails() -> bool:
        return len(await alices_mails()) == 3

    await eventually(three_mails)
