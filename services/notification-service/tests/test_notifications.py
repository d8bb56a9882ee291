"""Who is told what, once."""

import json
import logging
from collections.abc import AsyncIterator

import pytest

from notification_service.app import create_app
from notification_service.domain import notices
from notification_service.settings import NotificationSettings
from shared.events import OutgoingEvent, TransactionCompleted, TransactionFailed, UserRegistered, WalletsPosted
from shared.ids import new_id
from shared.kafka import EventProducer, ensure_topics
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually

ALICE, BOB = new_id(), new_id()


def transfer() -> TransactionCompleted:
    return TransactionCompleted(
        transaction_id=new_id(),
        transaction_type="transfer",
        user_id=ALICE,
        payee_user_id=BOB,
        from_wallet_id=new_id(),
        to_wallet_id=new_id(),
        amount_minor=5_000,
        currency="USD",
    )


def test_a_transfer_is_told_to_both() -> None:
    told = notices("transactions.completed.v1", transfer().model_dump(mode="json"))

    assert [(notice.user_id, notice.template, notice.text) for notice in told] == [
        (ALICE, "money_sent", "You sent 50.00 USD."),
        (BOB, "money_received", "You received 50.00 USD."),
    ]


@pytest.mark.parametrize(
    ("kind", "template", "text"),
    [
        ("deposit", "deposit", "Your deposit of 50.00 USD has arrived."),
        ("withdrawal", "withdrawal", "50.00 USD are on their way to you."),
        ("refund", "refund", "50.00 USD of your deposit are on their way back to you."),
        ("payout_return", "payout_return", "A withdrawal of 50.00 USD came back and is in your wallet again."),
        ("dispute", "dispute", "A deposit of 50.00 USD was disputed and taken back. Your wallet is frozen."),
    ],
)
def test_what_concerns_one_person_is_told_in_its_own_words(kind: str, template: str, text: str) -> None:
    change = {"transaction_type": kind, "payee_user_id": None, "to_wallet_id": None}

    [notice] = notices("transactions.completed.v1", transfer().model_dump(mode="json") | change)

    assert (notice.user_id, notice.template, notice.text) == (ALICE, template, text)


def test_a_refund_of_a_payment_is_told_to_both() -> None:
    told = notices("transactions.completed.v1", transfer().model_dump(mode="json") | {"transaction_type": "refund"})

    assert [(notice.user_id, notice.template) for notice in told] == [(ALICE, "money_sent"), (BOB, "money_received")]


def test_what_was_cancelled_was_not_refused() -> None:
    data = TransactionFailed(**transfer().model_dump(), failure_code="cancelled").model_dump(mode="json")

    assert [notice.text for notice in notices("transactions.failed.v1", data)] == [
        "Your transfer of 50.00 USD was cancelled. No money has moved."
    ]


def test_a_failure_is_told_to_the_payer_alone() -> None:
    data = TransactionFailed(**transfer().model_dump(), failure_code="insufficient_funds").model_dump(mode="json")

    [notice] = notices("transactions.failed.v1", data)

    assert (notice.user_id, notice.template) == (ALICE, "failure")
    assert notice.text == "Your transfer of 50.00 USD was refused. No money has moved."


def test_a_posting_by_itself_is_told_to_nobody() -> None:
    data = WalletsPosted(posting_id=new_id(), currency="USD", entries=[]).model_dump(mode="json")

    assert notices("wallets.posted.v1", data) == []


def without_data(event: OutgoingEvent) -> bytes:
    """A well-formed envelope of a known type with nothing in it."""
    return json.dumps(json.loads(event.payload) | {"id": str(new_id()), "data": {}}).encode()


def in_no_currency() -> bytes:
    """An amount that cannot be written."""
    event = OutgoingEvent.of(
        transfer().model_copy(update={"currency": "ZZZ"}), subject=new_id(), sequence=1, actor=str(ALICE)
    )
    return event.payload.encode()


class Lines(logging.Handler):
    """Remembers what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "would send":
            self.sent.append((record.__dict__["template"], record.__dict__["user_id"]))


@pytest.fixture(scope="module")
async def lines(sandbox: Sandbox) -> AsyncIterator[Lines]:
    async with in_process(create_app(sandbox.settings(NotificationSettings))):
        handler = Lines()
        logging.getLogger("notification_service.service").addHandler(handler)
        yield handler
        logging.getLogger("notification_service.service").removeHandler(handler)


async def test_events_off_the_broker_are_told_once_and_rubbish_is_passed_over(sandbox: Sandbox, lines: Lines) -> None:
    settings = sandbox.settings(NotificationSettings)
    registered = OutgoingEvent.of(
        UserRegistered(
            user_id=ALICE, email="a@example.com", phone="+1234567890", first_name="A", last_name="B", role="user"
        ),
        subject=ALICE,
        sequence=1,
        actor=str(ALICE),
    )
    sent = OutgoingEvent.of(transfer(), subject=new_id(), sequence=1, actor=str(ALICE))
    topics = ["users.events", "transactions.events"]
    await ensure_topics(settings.kafka_bootstrap_servers, [settings.kafka_topic_prefix + t for t in topics], 1)
    producer = EventProducer(settings)
    try:
        await producer.send(
            [
                ("users.events", b"rubbish", b"{not json"),
                ("users.events", b"rubbish", b'{"specversion": "1.0"}'),
                ("users.events", registered.key.encode(), without_data(registered)),
                ("transactions.events", b"rubbish", in_no_currency()),
                ("users.events", registered.key.encode(), registered.payload.encode()),
                ("users.events", registered.key.encode(), registered.payload.encode()),
                ("transactions.events", sent.key.encode(), sent.payload.encode()),
                ("transactions.events", sent.key.encode(), sent.payload.encode()),
            ]
        )

        async def all_told() -> bool:
            return len(lines.sent) >= 3

        await eventually(all_told, 30)
        last = OutgoingEvent.of(transfer(), subject=new_id(), sequence=1, actor=str(ALICE))
        await producer.send([(topic, last.key.encode(), last.payload.encode()) for topic in topics[1:]])

        async def last_told() -> bool:
            return len(lines.sent) >= 5

        await eventually(last_told)
    finally:
        await producer.close()
    expected = [
        ("welcome", ALICE),
        ("money_sent", ALICE),
        ("money_received", BOB),
        ("money_sent", ALICE),
        ("money_received", BOB),
    ]
    assert sorted(lines.sent) == sorted((template, str(user_id)) for template, user_id in expected)
