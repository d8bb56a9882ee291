"""What is told of people: stored with the change itself, counted without gaps."""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.events import EventData, OutgoingEvent, UserChange, UserContact
from user_service import models
from user_service.models import UserRow


def contact(kind: type[UserContact], row: UserRow) -> UserContact:
    """An event of this kind, with all that is needed to reach the person."""
    return kind.model_validate(_contact(row))


def changed(kind: type[UserChange], row: UserRow, before: Mapping[str, str]) -> UserChange:
    """As `contact`; `before` has the fields that have changed, as they were."""
    return kind.model_validate(_contact(row) | {"before": before})


def _contact(row: UserRow) -> dict[str, object]:
    fields = {name: getattr(row, name) for name in UserContact.model_fields if name != "user_id"}
    return fields | {"user_id": row.id}


async def tell(session: AsyncSession, row: UserRow, actor: str, *told: EventData) -> None:
    """Store events of a person whose row this session has locked or made; `actor` is who did it."""
    outgoing = []
    for data in told:
        row.event_sequence += 1
        outgoing.append(OutgoingEvent.of(data, subject=row.id, sequence=row.event_sequence, actor=actor))
    await outbox.append(session, models.outbox, outgoing)
