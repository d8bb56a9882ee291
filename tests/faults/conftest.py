"""One platform, as `make up` starts it, for all faults; its mails go to a server that can be taken away."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.settings import ROOT
from tests.faults.mail_server import HOST
from tests.faults.outages import Engine, KafkaByScript, MailServer
from tests.faults.records import Records
from tests.load.premises import premises

SETTINGS = {
    "RATE_LIMIT_PER_MINUTE": "0",
    "RATE_LIMIT_LOGIN_PER_MINUTE": "0",
    "BCRYPT_ROUNDS": "4",
    "NOTIFICATION_PER_SECOND": "1000",
    "NOTIFICATION_RETRY_SECONDS": "0.2",
    "NOTIFICATION_RETRY_MAX_SECONDS": "1",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A platform that works, and what can be taken from it."""

    gateway: str
    broker: Engine | KafkaByScript
    mongo: Engine
    mail: MailServer
    records: Records


@asynccontextmanager
async def own_kafka(data: Path) -> AsyncIterator[KafkaByScript | None]:
    """The Kafka that FAULTS_KAFKA_SCRIPT starts; None, for the broker of `make up`, where that names no script."""
    script = os.environ.get("FAULTS_KAFKA_SCRIPT")
    if not script:
        yield None
        return
    kafka = KafkaByScript(ROOT / script, data)
    try:
        await kafka.start()
        yield kafka
    finally:
        await kafka.purge()


@pytest.fixture(scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    mail = MailServer.in_folder(tmp_path_factory.mktemp("mail"))
    settings = SETTINGS | {"SMTP_HOST": HOST, "SMTP_PORT": str(mail.port)}
    async with AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(own_kafka(tmp_path_factory.mktemp("kafka")))
        at_work = ExitStack()
        stack.push_async_callback(asyncio.to_thread, at_work.close)
        own = premises(settings, kafka.variables if kafka else None)
        found = await asyncio.to_thread(at_work.enter_context, own)
        stack.push_async_callback(mail.stop)
        await mail.start()
        yield Place(
            f"http://{HOST}:{found.gateway_port}",
            kafka or Engine(found, "kafka"),
            Engine(found, "mongodb"),
            mail,
            Records(found),
        )
