"""Composition root of notification-service."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from notification_service.api import notifications_router
from notification_service.delivery import Delivery
from notification_service.dispatch import Dispatcher, Retries
from notification_service.domain import HANDLED, Channel
from notification_service.folder import MailFolder
from notification_service.letters import Letters
from notification_service.metrics import DeliveryMetrics
from notification_service.service import Notifications
from notification_service.settings import NotificationSettings
from notification_service.sms import ConsoleSms, TwilioSms
from notification_service.smtp import Smtp
from notification_service.worker import deliver, forget
from shared.auth import ServiceTokens
from shared.authentication import authenticator_of, following
from shared.background import Worker
from shared.consumer import Consumer
from shared.database import Database
from shared.events import TOPICS
from shared.http.app import create_api, health_router
from shared.http.history import audit_router
from shared.logs import configure_logging
from shared.outbox import Relay, publishing
from shared.settings import load

LINGER_SECONDS: Final = 0.3
FOLDER: Final = Path(__file__).resolve().parent.parent


def create_app(settings: NotificationSettings | None = None) -> FastAPI:
    """notification-service, ready to be served."""
    settings = settings or load(NotificationSettings)
    configure_logging(settings.service, settings.log_level)
    registry = CollectorRegistry()
    database = Database(settings)
    authenticator = authenticator_of(settings, registry)
    deliveries = deliveries_of(settings)
    relay = Relay(database, settings, registry)
    notifications = Notifications(database, deliveries, told=relay.wake)
    service_tokens = ServiceTokens(settings.service_secret_key.get_secret_value(), settings.service)
    # Also to its own topic, of which it handles nothing: a consumer sees to it that its topics are there.
    consumer = Consumer(settings, TOPICS, notifications.handle, HANDLED, registry, LINGER_SECONDS)
    forgetting = partial(forget, notifications, settings.notification_keep_days)
    workers = workers_of(settings, database, deliveries, notifications.arrivals, registry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            async with (
                publishing(settings, FOLDER, database, relay, consumer.run, *workers, forgetting),
                following(authenticator),
            ):
                yield
        finally:
            for delivery in deliveries.values():
                await delivery.close()

    app = create_api(
        title="Notification service",
        description="Tells people what concerns them.",
        version="0.1.0",
        registry=registry,
        health=health_router(
            {"postgres": database.check} | relay.checks | {"kafka": consumer.check},
            essential=frozenset({"postgres"}),
        ),
        lifespan=lifespan,
        tokens=service_tokens,
    )
    app.include_router(audit_router("notifications", relay.audit, authenticator))
    app.include_router(notifications_router(notifications, authenticator))
    return app


def deliveries_of(settings: NotificationSettings) -> Mapping[Channel, Delivery]:
    """How each channel is delivered; a channel that is off is not there."""
    letters = Letters(settings.mail_from, settings.mail_from_name, settings.mail_preferences_link)
    deliveries: dict[Channel, Delivery] = {Channel.EMAIL: MailFolder(settings.mail_folder, letters)}
    if settings.smtp_host:
        deliveries[Channel.EMAIL] = Smtp(
            letters,
            host=settings.smtp_host,
            port=settings.smtp_port,
            security=settings.smtp_security,
            username=settings.smtp_username,
            password=settings.smtp_password.get_secret_value(),
            local_name=settings.mail_from.rpartition("@")[2],
        )
    if settings.sms_provider == "console":
        deliveries[Channel.SMS] = ConsoleSms()
    elif settings.sms_provider == "twilio":
        deliveries[Channel.SMS] = TwilioSms(
            base_url=settings.twilio_api_url,
            account_sid=settings.twilio_account_sid,
            auth_token=settings.twilio_auth_token.get_secret_value(),
            sender=settings.twilio_from,
        )
    return deliveries


def workers_of(
    settings: NotificationSettings,
    database: Database,
    deliveries: Mapping[Channel, Delivery],
    arrivals: Mapping[Channel, asyncio.Event],
    registry: CollectorRegistry,
) -> list[Worker]:
    """What delivers, one worker a channel."""
    retries = Retries(
        settings.notification_retry_seconds,
        settings.notification_retry_max_seconds,
        settings.notification_give_up_hours * 3600,
    )
    dispatcher = Dispatcher(database, deliveries, retries, DeliveryMetrics(registry))
    return [
        partial(deliver, dispatcher, channel, arrivals[channel], settings.notification_per_second)
        for channel in deliveries
    ]
