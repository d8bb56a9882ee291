"""A member of a consumer group in a process of its own, which can be killed: `member.py TOPIC`.

It stores what it hears in `notes`, once by the inbox. Told to die at the commit of its offsets, it does.
"""

import asyncio
import os
import sys
from collections.abc import Sequence

import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer

from shared.consumer import Consumer
from shared.database import Database
from shared.events import Envelope, UserRegistered
from shared.inbox import inbox_table, new_ones
from shared.settings import DatabaseSettings

DIED = 9


class ProbeSettings(DatabaseSettings):
    """Of the service whose tables these are."""

    service = os.environ["MEMBER_SERVICE"]
    schema_name = os.environ["MEMBER_SCHEMA"]


class GroupSettings(ProbeSettings):
    """Of the consumer group."""

    service = os.environ["MEMBER_GROUP"]


async def die(*_: object) -> None:
    os._exit(DIED)


async def main(topic: str) -> None:
    """Consume until killed."""
    settings = ProbeSettings(_env_file=None)
    database = Database(settings)
    inbox = inbox_table(sa.MetaData(schema=settings.schema_name))

    async def handle(events: Sequence[Envelope]) -> None:
        async with database.transaction() as session:
            new = await new_ones(session, inbox, [event.id for event in events])
            notes = [{"id": int(str(e.data["first_name"])), "text": str(os.getpid())} for e in events if e.id in new]
            if notes:
                await session.execute(sa.text("insert into notes values (:id, :text)"), notes)
            await asyncio.sleep(0.05)

    if os.environ.get("MEMBER_DIES"):
        AIOKafkaConsumer.commit = die
    await Consumer(GroupSettings(_env_file=None), [topic], handle, [UserRegistered.type]).run()


asyncio.run(main(sys.argv[1]))
