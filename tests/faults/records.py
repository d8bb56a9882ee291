"""What the services, Kafka, the audit and the mail server say of what happened, and whether they agree."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from ledger_reconciler.audit import walk
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from notification_service.domain import Channel, message_token
from shared.audit import AuditReader
from shared.chain import event_of
from shared.events import TOPICS
from shared.testing.sandbox import settings_of
from shared.testing.topics import records_of
from shared.testing.waiting import eventually
from tests.faults.crowd import Crowd
from tests.faults.outages import MailServer
from tests.load.premises import Premises

QUIET_LIMIT_SECONDS: Final = 60.0
MAILED_LIMIT_SECONDS: Final = 150.0
SLOWEST_SECONDS: Final = 10.0  # a person waits for an answer about money, on a machine that has other things to do
SCHEMAS: Final = tuple(topic.removesuffix(".events") for topic in TOPICS)

# Each aggregate, and how many events it has had.
DUE: Final = {
    "users": "select id::text, event_sequence from users.users",
    "wallets": "select id::text, 1 from wallets.postings where refusal is null union all "
    "select id::text, event_sequence from wallets.accounts where user_id is not null",
    "transactions": "select id::text, greatest(event_sequence, 1) from transactions.transactions",
    "payments": "select id::text, event_sequence from payments.payments where event_sequence > 0",
    "notifications": "select user_id::text, event_sequence from notifications.choosers",
}
TRANSFERS: Final = """
select k.user_id::text, k.key, t.id::text, t.status, t.amount_minor, t.from_wallet_id::text, t.to_wallet_id::text
from transactions.idempotency_keys k join transactions.transactions t on t.id = k.transaction_id
where t.type = 'transfer'
"""
LEADER_LOCK: Final = 0x6F757462
UNSENT: Final = "select count(*) from notifications.notifications where state = 'pending' and channel = 'email'"
END_LEADERS: Final = "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and classid = $1"
LEADS_FOR_SECONDS: Final = 2.0
WAITING: Final = " + ".join(f"(select count(*) from {schema}.outbox where {{}})" for schema in SCHEMAS)

Event = dict[str, Any]


class Records:
    """Looks into everything that the platform has written, past the services."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises
        self._settings = settings_of(ReconcilerSettings, premises.variables)

    async def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows, as the one who owns the database sees them."""
        async with self._premises.connection() as connection:
            return [tuple(row) for row in await connection.fetch(query, *values)]

    async def waiting(self, condition: str) -> int:
        """How many events wait in the outboxes, of those for which the condition holds."""
        [(count,)] = await self.ask(f"select {WAITING.format(*[condition] * len(SCHEMAS))}")
        return int(count)

    async def more_than(self, count: int, condition: str) -> None:
        """Wait until more than so many events wait for which the condition holds."""

        async def look() -> bool:
            return await self.waiting(condition) > count

        await eventually(look, QUIET_LIMIT_SECONDS)

    async def more_unsent_than(self, count: int) -> None:
        """Wait until more than so many mails wait to be sent."""

        async def look() -> bool:
            [(found,)] = await self.ask(UNSENT)
            return int(found) > count

        await eventually(look, QUIET_LIMIT_SECONDS)

    async def terms(self) -> int:
        """How often somebody has begun to lead a relay."""
        rows = [await self.ask(f"select term from {schema}.audit_chain") for schema in SCHEMAS]
        return sum(term for [(term,)] in rows)

    @asynccontextmanager
    async def leaders_ended(self) -> AsyncIterator[None]:
        """For the length of the block, whoever leads a relay loses the lock, again and again; each is led anew."""
        before = await self.terms()

        async def end() -> None:
            while True:
                await self.ask(END_LEADERS, LEADER_LOCK)
                await asyncio.sleep(LEADS_FOR_SECONDS)

        ending = asyncio.create_task(end())
        try:
            yield
        finally:
            ending.cancel()
            await asyncio.wait([ending])

        async def led_anew() -> bool:
            return await self.terms() >= before + len(SCHEMAS)

        await eventually(led_anew, QUIET_LIMIT_SECONDS)

    async def audited(self, schema: str) -> list[Event]:
        """The documents of a service in the order of their chain."""
        audit, found = AuditReader(self._settings), list[Event]()
        try:
            while batch := await audit.chained(schema, len(found)):
                found += batch
        finally:
            audit.close()
        return found

    async def published(self, schema: str) -> list[Event]:
        """What is in a service's topic, in the order of each partition."""
        found = []
        for record in await records_of(self._settings, f"{schema}.events"):
            event = json.loads(record.value)
            assert record.key.decode() == event["subject"]
            found.append(event)
        return found

    async def assert_money_is_right(self, crowd: Crowd) -> None:
        """Nobody was refused or kept waiting, and what they heard is what is on record, once."""
        heard = Counter(answer.status for payment in crowd.payments for answer in payment.answers)
        assert heard.keys() == {201}, heard
        assert set(crowd.profiles) == {200}
        assert crowd.slowest_seconds < SLOWEST_SECONDS
        rows = await self.ask(f"{TRANSFERS} and k.user_id = any($1)", [UUID(person.id) for person in crowd.people])
        on_record = {(user_id, key): rest for user_id, key, *rest in rows}
        for payment in crowd.payments:
            id_, *rest = on_record.pop((payment.payer.id, payment.key))
            assert rest == ["completed", payment.amount_minor, payment.payer.wallet_id, payment.payee.wallet_id]
            assert {json.loads(answer.content)["id"] for answer in payment.answers} == {id_}
        assert on_record == {}

    async def assert_quiet(self) -> None:
        """Everything is told after a while: no outbox has a row, and no mail waits."""

        async def quiet() -> bool:
            return await self.waiting("true") == 0

        await eventually(quiet, QUIET_LIMIT_SECONDS)

    async def assert_told_once(self) -> None:
        """Each committed change has its audit document, numbered without gaps and in order, and nothing else has."""
        for schema, query in DUE.items():
            due = {subject: list(range(1, last + 1)) for subject, last in await self.ask(query)}
            assert numbers(await self.audited(schema)) == due, schema
        walks = await walk(self._settings)
        assert [(each.schema, each.finding) for each in walks] == [(schema, None) for schema in SCHEMAS]
        audit = AuditReader(self._settings)
        try:
            done = await Reconciler(self._settings, audit).full()
        finally:
            audit.close()
        assert [str(finding) for result in done.results for finding in result.findings] == []
        assert [result.not_checked for result in done.results if result.not_checked] == []

    async def assert_published(self, ordered_since: str) -> None:
        """Each event of the audit is in Kafka as it is there, at least once, and nothing else is.

        Those of subjects that came into being at `ordered_since` or later are there in the order of their subject,
        repeats aside.
        """
        for schema in SCHEMAS:
            audited = {event["_id"]: json.loads(event_of(event)) for event in await self.audited(schema)}
            firsts: dict[str, Event] = {}
            for event in await self.published(schema):
                assert audited.get(event["id"]) == event, schema
                firsts.setdefault(event["id"], event)
            assert firsts.keys() == audited.keys(), schema
            new = {e["subject"] for e in audited.values() if e["sequence"] == 1 and e["time"] >= ordered_since}
            due = numbers([event for event in audited.values() if event["subject"] in new])
            assert numbers([event for event in firsts.values() if event["subject"] in new]) == due, schema

    async def assert_mailed(self, server: MailServer) -> None:
        """Each person has each mail once, about every transfer too.

        A mail that the server took and never answered has come once more, the same bytes under the same `Message-ID`.
        """
        transfers = {
            message_id(UUID(event["_id"]), UUID(event["data"][person]))
            for event in await self.audited("transactions")
            if event["type"] == "transactions.completed.v1" and event["data"]["transaction_type"] == "transfer"
            for person in ("user_id", "payee_user_id")
        }
        query = "select event_id, user_id, state from notifications.notifications where channel = 'email'"

        async def all_sent() -> bool:
            rows = await self.ask(query)
            told = {message_id(event_id, user_id) for event_id, user_id, _ in rows}
            return transfers <= told and {state for _, _, state in rows} == {"sent"}

        await eventually(all_sent, MAILED_LIMIT_SECONDS)  # the pause between attempts is up to half a minute by then
        due = Counter(message_id(event_id, user_id) for event_id, user_id, _ in await self.ask(query))
        assert set(due.values()) == {1}
        taken = server.taken()
        again = Counter(mail.message_id for mail in server.unanswered())
        assert Counter(mail.message_id for mail in taken) == due + again
        for _, same in itertools.groupby(sorted(taken), key=lambda mail: mail.message_id):
            assert len({(mail.recipient, mail.digest) for mail in same}) == 1


def message_id(event_id: UUID, user_id: UUID) -> str:
    """The `Message-ID` of the mail about an event to a person."""
    return f"<{message_token(event_id, user_id, Channel.EMAIL)}@payment-system.example>"


def numbers(events: Sequence[Event]) -> dict[str, list[int]]:
    """The sequence numbers of each subject, in the order of `events`."""
    found: dict[str, list[int]] = {}
    for event in events:
        found.setdefault(event["subject"], []).append(event["sequence"])
    return found
