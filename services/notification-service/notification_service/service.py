"""Use cases of notification-service."""

import logging

from notification_service import models
from notification_service.domain import notices
from shared.database import Database
from shared.events import Envelope, data_of
from shared.inbox import first_time

_log = logging.getLogger(__name__)


class Notifications:
    """Tells people about events, once for each event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def handle(self, event: Envelope) -> None:
        """Say in the log what would be sent for this event; raises ValidationError for one that makes no sense."""
        data = data_of(event)
        told = notices(event.type, data.model_dump(mode="json")) if data else []
        if not told:
            return
        async with self._database.transaction() as session:
            if not await first_time(session, models.inbox, event.id):
                return
            for notice in told:
                _log.info(
                    "would send",
                    extra={
                        "template": notice.template,
                        "user_id": str(notice.user_id),
                        "text": notice.text,
                        "event_id": str(event.id),
                    },
                )
