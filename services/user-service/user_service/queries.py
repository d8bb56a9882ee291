"""SQL of user-service, as functions taking a session."""

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.ids import new_id
from user_service.domain import Registration
from user_service.models import UserRow


async def insert_user(session: AsyncSession, registration: Registration, password_hash: str) -> UserRow | None:
    """The new row, or None when the address is taken."""
    statement = (
        insert(UserRow)
        .values(
            id=new_id(),
            email=registration.email,
            password_hash=password_hash,
            first_name=registration.first_name,
            last_name=registration.last_name,
            phone=registration.phone,
            role=registration.role,
        )
        .on_conflict_do_nothing(index_elements=[UserRow.email])
        .returning(UserRow)
    )
    return (await session.scalars(statement)).one_or_none()


async def by_email(session: AsyncSession, email: str) -> UserRow | None:
    """The person with this canonical address."""
    return (await session.scalars(sa.select(UserRow).where(UserRow.email == email))).one_or_none()


async def by_id(session: AsyncSession, user_id: UUID) -> UserRow | None:
    """The person with this id."""
    return await session.get(UserRow, user_id)
