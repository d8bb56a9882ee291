"""Composition root of notification-service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from notification_service.domain import TOLD
from notification_service.service import Notifications
from notification_service.settings import NotificationSettings
from shared.background import running
from shared.consumer import Consumer
from shared.database import Database, prepare_schema
from shared.events import TOPICS
from shared.http.app import create_api, health_router
from shared.logs import configure_logging
from shared.settings import load

FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: NotificationSettings | None = None) -> FastAPI:
    """notification-service, ready to be served."""
    settings = settings or load(NotificationSettings)
    configure_logging(settings.service, settings.log_level)
    database = Database(settings)
    consumer = Consumer(settings, TOPICS, Notifications(database).handle, TOLD)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await prepare_schema(settings, FOLDER)
            async with running(consumer.run):
                yield
        finally:
            await database.close()

    return create_api(
        title="Notification service",
        description="Tells people what concerns them.",
        version="0.1.0",
        registry=CollectorRegistry(),
        health=health_router(
            {"postgres": database.check, "kafka": consumer.check}, essential=frozenset({"postgres"})
        ),
        lifespan=lifespan,
    )
