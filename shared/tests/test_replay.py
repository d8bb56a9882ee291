"""`python -m shared.replay`: what the audit has is in Kafka again, as it was, in order."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from shared.audit import READ_BATCH, AuditLog
from shared.background import running
from shared.chain import genesis, linked
from shared.database import Database
from shared.events import OutgoingEvent
from shared.http.wire import utc_text
from shared.ids import new_id
from shared.outbox import Relay
from shared.replay import ReplayError, instant, replay
from shared.settings import ROOT, DatabaseSettings
from shared.testing.relayed import by_key, commit, in_kafka
from shared.testing.sandbox import Sandbox
from shared.testing.waiting import eventually

BEGAN = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


@pytest.fixture
async def settings(sandbox: Sandbox, service_kind: Any) -> AsyncIterator[DatabaseSettings]:
    async with service_kind() as kind:
        yield sandbox.settings(kind)


def events_at(settings: DatabaseSettings, times: list[datetime]) -> list[OutgoingEvent]:
    """An event at each of the times, of three aggregates by turns."""
    keys = [str(new_id()) for _ in range(3)]
    found = []
    for number, time in enumerate(times):
        event_id, key = new_id(), keys[number % 3]
        payload = {"id": str(event_id), "subject": key, "sequence": number // 3 + 1, "time": utc_text(time)}
        text = json.dumps(payload | {"data": {"text": "Zoë", "amount_minor": 2**40}}, ensure_ascii=False)
        found.append(
            OutgoingEvent(event_id, f"{settings.schema_name}.events", key, text.replace(": ", ":").replace(", ", ","))
        )
    return found


async def write(settings: DatabaseSettings, events: list[OutgoingEvent]) -> None:
    """Put the events into the audit, in this order."""
    rows: Any = [{"payload": event.payload, "ip": event.ip} for event in events]
    documents, _ = linked(rows, genesis(settings.schema_name), 1)
    audit = AuditLog(settings)
    await audit.write(documents)
    audit.close()


async def test_what_was_relayed_is_published_again_byte_for_byte_and_in_order(
    settings: DatabaseSettings, owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    database = Database(settings)
    await database.open()
    events = events_at(settings, [datetime.now(UTC)] * 90)
    await commit(database, [event._replace(ip="203.0.113.7") for event in events])  # which is in no event
    relay = Relay(database, settings, CollectorRegistry())

    async def is_empty() -> bool:
        return not await owner.fetchval(f"select count(*) from {settings.schema_name}.outbox")

    async with running(relay.run):
        await eventually(is_empty)
    await relay.close()
    await database.close()
    assert len(await in_kafka(settings, events)) == 90

    assert await replay(settings, datetime.now(UTC) - timedelta(hours=1)) == 90

    again = await in_kafka(settings, events)
    assert by_key(again) == {key: numbers * 2 for key, numbers in by_key(events).items()}


async def test_what_is_older_stays_where_it_is_and_batches_have_no_seam(settings: DatabaseSettings) -> None:
    events = events_at(settings, [BEGAN + timedelta(seconds=number) for number in range(2 * READ_BATCH + 7)])
    await write(settings, events)

    assert await replay(settings, BEGAN + timedelta(seconds=5)) == 2 * READ_BATCH + 2
    assert by_key(await in_kafka(settings, events)) == by_key(events[5:])
    assert await replay(settings, BEGAN + timedelta(days=1)) == 0


async def test_an_event_that_was_overtaken_by_a_later_one_is_not_forgotten(settings: DatabaseSettings) -> None:
    """Positions follow the commits, times the beginnings."""
    times = [BEGAN, BEGAN + timedelta(seconds=20), BEGAN + timedelta(seconds=10), BEGAN + timedelta(seconds=30)]
    events = events_at(settings, times)
    await write(settings, events)

    assert await replay(settings, BEGAN + timedelta(seconds=5)) == 3
    assert set(await in_kafka(settings, events)) == set(events[1:])


async def test_documents_that_are_missing_do_not_end_it(sandbox: Sandbox, settings: DatabaseSettings) -> None:
    events = events_at(settings, [BEGAN] * (READ_BATCH + 20))
    await write(settings, events)
    with sandbox.mongo() as mongo:
        gap = {"chain.position": {"$gt": 5, "$lte": READ_BATCH + 10}}
        mongo[settings.mongo_db][f"{settings.schema_name}_audit"].delete_many(gap)

    assert await replay(settings, BEGAN) == 15
    assert len(await in_kafka(settings, events)) == 15


async def test_an_audit_that_nobody_has_written_has_nothing(settings: DatabaseSettings) -> None:
    assert await replay(settings, BEGAN) == 0


async def test_what_is_out_is_said(settings: DatabaseSettings) -> None:
    with pytest.raises(ReplayError, match="MONGO_"):
        await replay(settings.model_copy(update={"mongo_port": 1}), BEGAN)
    await write(settings, events_at(settings, [BEGAN]))
    with pytest.raises(ReplayError, match=r"Kafka at 127\.0\.0\.1:1 does not take"):
        await replay(settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"}), BEGAN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T10:30:00+01:00", BEGAN),
        ("24h", BEGAN - timedelta(days=1)),
        ("7d", BEGAN - timedelta(days=7)),
        ("90m", BEGAN - timedelta(minutes=90)),
    ],
)
def test_since_is_a_day_an_instant_or_a_time_ago(text: str, expected: datetime) -> None:
    assert instant(text, BEGAN) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "0d", "-1d", "2026-13-01", "2026-11-24T09:30:00", "999999d"])
def test_what_is_no_time_is_said_in_a_sentence(text: str) -> None:
    with pytest.raises(ReplayError, match="SINCE"):
        instant(text, BEGAN)


async def test_the_command_says_how_many_of_each_topic(sandbox: Sandbox) -> None:
    async def run(*arguments: str) -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shared.replay", *arguments),
            cwd=ROOT,
            env=os.environ | sandbox.environment | {"ENV_FILE": ""},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        return process.returncode, output.decode(), errors.decode()

    topics = [f"{source}.events" for source in ("users", "wallets", "transactions", "payments", "notifications")]
    since = "2026-11-24T00:00:00.000000Z"
    lines = [f"{topic}: 0 events since {since} published again\n" for topic in topics]
    assert await run("all", "2026-11-24") == (0, "".join(lines), "")
    assert await run("wallets.events", "2026-11-24") == (0, lines[1], "")
    status, _, errors = await run("nobody.events", "2026-11-24")
    assert (status, errors) == (1, f"error: TOPIC must be one of {', '.join(topics)}, or all.\n")
