"""What is told of people: stored with the change itself, counted without gaps."""

from sqlalchemy.ext.asyncio import AsyncSession

from shared import outbox
from shared.events import EventData, OutgoingEvent, UserContact
from user_service import models
from user_service.models import UserRow


def contact(kind: type[UserContact], row: UserRow) -> UserContact:
    """An event of this kind, with all that is needed to reach the person."""
    return kind(
        user_id=row.id,
        email=row.email,
        phone=row.phone,
        first_name=row.first_name,
        last_name=row.last_name,
        role=row.role,
        status=row.status,
    )


async def tell(session: AsyncSession, row: UserRow, actor: str, *told: EventData) -> None:
    """Store events of a person whose row this session has locked or made; `actor` is who did it."""
    outgoing = []
    for data in told:
        row.event_sequence += 1
        outgoing.append(OutgoingEvent.of(data, subject=row.id, sequence=row.event_sequence, actor=actor))
    await outbox.append(session, models.outbox, outgoing)
