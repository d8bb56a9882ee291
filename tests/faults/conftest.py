"""One platform, as `make up` starts it, for all faults; its mails go to a server that can be taken away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.faults.mail_server import HOST
from tests.faults.outages import Engine, MailServer
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
    broker: Engine
    mongo: Engine
    mail: MailServer
    records: Records


@pytest.fixture(scope="session")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    mail = MailServer.in_folder(tmp_path_factory.mktemp("mail"))
    with ExitStack() as stack:
        own = premises(SETTINGS | {"SMTP_HOST": HOST, "SMTP_PORT": str(mail.port)})
        found = await asyncio.to_thread(stack.enter_context, own)
        await mail.start()
        try:
            yield Place(
                f"http://{HOST}:{found.gateway_port}",
                Engine(found, "kafka"),
                Engine(found, "mongodb"),
                mail,
                Records(found.variables),
            )
        finally:
            await mail.stop()
            await asyncio.to_thread(stack.close)
