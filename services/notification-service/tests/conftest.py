"""notification-service on a real PostgreSQL, broker and mail server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from notification_service.app import FOLDER, deliveries_of, workers_of
from notification_service.domain import Channel
from notification_service.service import Notifications
from notification_service.settings import NotificationSettings
from notification_service.testing import HOST, MailServer, Post, Process, free_port
from shared.background import running
from shared.database import Database, prepare_schema
from shared.testing.sandbox import Sandbox

RETRY_SECONDS = 0.1


@pytest.fixture(scope="module")
async def post_office(sandbox: Sandbox) -> AsyncIterator[Post]:
    settings = sandbox.settings(NotificationSettings)
    await prepare_schema(settings, FOLDER)
    database = Database(settings)
    yield Post(sandbox, Notifications(database, list(Channel), told=lambda: None))
    await database.close()


@pytest.fixture
async def post(post_office: Post) -> Post:
    """Nobody has been told anything yet."""
    await post_office.sql("delete from notifications.notifications")
    return post_office


@pytest.fixture
def mail_server() -> MailServer:
    return MailServer(free_port())


@pytest.fixture
def process(sandbox: Sandbox, post: Post, mail_server: MailServer) -> Process:
    """What delivers in one process of the service, by default to the mail server; settings come on top."""

    @asynccontextmanager
    async def run(**changes: object) -> AsyncIterator[None]:
        mail = {
            "smtp_host": HOST,
            "smtp_port": mail_server.port,
            "notification_retry_seconds": RETRY_SECONDS,
            "notification_retry_max_seconds": 0.5,
            "notification_per_second": 1000,
        }
        settings = sandbox.settings(NotificationSettings, **(mail | changes))
        deliveries = deliveries_of(settings)
        database = Database(settings)
        arrivals = {channel: asyncio.Event() for channel in deliveries}
        workers = workers_of(settings, database, deliveries, arrivals, CollectorRegistry())
        try:
            async with running(*workers):
                yield
        finally:
            for delivery in deliveries.values():
                await delivery.close()
            await database.close()

    return run
