"""`python -m shared.replay <topic> <since>`: publish to Kafka again what the audit has, in the order of its chain.

For a broker that has lost its topics, and for a consumer that is to see everything once more. Consumers know each
event by its id: what one has handled has no second effect.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from aiokafka.errors import KafkaError
from pydantic import TypeAdapter, ValidationError

from shared.audit import AuditReader
from shared.chain import CHAIN, event_of
from shared.events import TOPICS
from shared.http.wire import InstantIn, utc_text
from shared.kafka import EventProducer
from shared.settings import DatabaseSettings, SettingsError, load

EVERYTHING: Final = "all"  # in place of a topic
REPORT_EVERY: Final = 100_000
_AGO: Final = re.compile(r"([1-9][0-9]{0,5})([dhm])", re.ASCII)
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
_INSTANT: Final[TypeAdapter[datetime]] = TypeAdapter(InstantIn)


class ReplayError(Exception):
    """Not all was published; the text is one sentence that says why."""


def settings_of(topic: str) -> type[DatabaseSettings]:
    """The settings' class of whoever publishes to `topic`."""

    class ReplaySettings(DatabaseSettings):
        service = "replay"
        schema_name = topic.removesuffix(".events")

    return ReplaySettings


async def replay(settings: DatabaseSettings, since: datetime) -> int:
    """Publish each event of the service that is not older than `since`, up to the last there is now; how many.

    Holds no more than a batch in memory. Raises ReplayError; what was published before stays published.
    """
    audit, producer = AuditReader(settings), EventProducer(settings)
    try:
        return await _publish(audit, producer, settings.schema_name, utc_text(since))
    except ConnectionError as error:
        raise ReplayError(f"{error}: check the MONGO_* settings.") from error
    except (KafkaError, TimeoutError) as error:
        servers = settings.kafka_bootstrap_servers
        raise ReplayError(f"Kafka at {servers} does not take the events ({type(error).__name__}).") from error
    finally:
        await producer.close()
        audit.close()


async def _publish(audit: AuditReader, producer: EventProducer, schema: str, since: str) -> int:
    end, first = await audit.end(schema), await audit.first_since(schema, since)
    position, published = (first or end + 1) - 1, 0
    while position < end:
        batch = await audit.chained(schema, position)
        if not batch:  # a gap as long as a batch
            following = await audit.next_chained(schema, position)
            batch = [following] if following else []
        events = [_message(schema, each) for each in batch if each["time"] >= since]
        await producer.send(events)
        if published // REPORT_EVERY < (published + len(events)) // REPORT_EVERY:
            sys.stdout.write(f"{schema}.events: {published + len(events)} so far\n")
            sys.stdout.flush()
        published += len(events)
        position = batch[-1][CHAIN]["position"] if batch else end
    return published


def _message(schema: str, document: dict[str, Any]) -> tuple[str, bytes, bytes]:
    return f"{schema}.events", str(document["subject"]).encode(), event_of(document)


def instant(text: str, now: datetime) -> datetime:
    """What a person means by `2026-11-24`, `2026-11-24T09:30:00Z` or `24h`, `7d`, `90m` ago; raises ReplayError."""
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            raise ReplayError("SINCE is before the calendar begins.") from None
    try:
        return _INSTANT.validate_python(f"{text}T00:00:00Z" if len(text) == len("2026-11-24") else text)
    except ValidationError:
        raise ReplayError(
            "SINCE must be a day, an instant or a time ago, such as 2026-11-24, 2026-11-24T09:30:00Z or 24h."
        ) from None


async def _replay_all(topics: Sequence[str], since: datetime) -> None:
    for topic in topics:
        count = await replay(load(settings_of(topic)), since)
        sys.stdout.write(f"{topic}: {count} events since {utc_text(since)} published again\n")


def main(arguments: Sequence[str]) -> int:
    """0 when everything was published, 1 with one sentence when not."""
    topic, since = (*arguments, "", "")[:2]
    try:
        if topic not in {EVERYTHING, *TOPICS}:
            raise ReplayError(f"TOPIC must be one of {', '.join(TOPICS)}, or {EVERYTHING}.")
        chosen = TOPICS if topic == EVERYTHING else [topic]
        asyncio.run(_replay_all(chosen, instant(since, datetime.now(UTC))))
    except (ReplayError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
