"""Use cases of notification-service."""

import logging
from collections.abc import Sequence

from notification_service import models
from notification_service.domain import Notice, notices
from shared.database import Database
from shared.events import Envelope, data_of
from shared.inbox import new_ones

_log = logging.getLogger(__name__)


class Notifications:
    """Tells people about events, once for each event."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def handle(self, events: Sequence[Envelope]) -> None:
        """Say in the log what would be sent for these events; raises ValidationError if one makes no sense."""
        told = {event.id: _notices(event) for event in events}
        concerning = {event_id for event_id, notices in told.items() if notices}
        async with self._database.transaction() as session:
            new = await new_ones(session, models.inbox, concerning)
            for event_id in (id_ for id_ in told if id_ in new):
                for notice in told[event_id]:
                    _log.info(
                        "would send",
                        extra={
                            "template": notice.template,
                            "user_id": str(notice.user_id),
                            "text": notice.text,
                            "event_id": str(event_id),
                        },
                    )


def _notices(event: Envelope) -> list[Notice]:
    data = data_of(event)
    return notices(event.type, data.model_dump(mode="json")) if data else []
