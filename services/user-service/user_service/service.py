"""Use cases of user-service."""

from uuid import UUID

from shared import outbox
from shared.auth import UserTokens
from shared.database import Database
from shared.errors import UnauthorizedError
from shared.events import OutgoingEvent, UserRegistered
from shared.ids import new_id
from shared.outbox import Relay
from user_service import models, queries
from user_service.domain import EmailTakenError, InvalidCredentialsError, Registration, User
from user_service.passwords import Passwords


class Users:
    """Registration, login and profiles."""

    def __init__(self, database: Database, passwords: Passwords, tokens: UserTokens, relay: Relay) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._relay = relay

    async def register(self, registration: Registration) -> User:
        """Make the user; raises EmailTakenError."""
        password_hash = await self._passwords.hash(registration.password)
        async with self._database.transaction() as session:
            row = await queries.insert_user(session, registration, password_hash)
            if row is None:
                raise EmailTakenError
            event = OutgoingEvent.of(
                UserRegistered(
                    user_id=row.id,
                    email=row.email,
                    phone=row.phone,
                    first_name=row.first_name,
                    last_name=row.last_name,
                    role=row.role,
                ),
                subject=row.id,
                sequence=row.event_sequence,
                actor=str(row.id),
            )
            await outbox.append(session, models.outbox, [event])
        self._relay.wake()
        return _user(row)

    async def log_in(self, email: str, password: str) -> tuple[User, str]:
        """The user and an access token; raises InvalidCredentialsError, after the same time for every reason."""
        async with self._database.transaction() as session:
            row = await queries.by_email(session, email)
        matches = await self._passwords.verify(password, row.password_hash if row else None)
        if row is None or not matches or row.status != "active":
            raise InvalidCredentialsError
        return _user(row), self._tokens.issue(row.id, row.role, new_id())

    async def profile(self, user_id: UUID) -> User:
        """The user; raises UnauthorizedError when there is none any more."""
        async with self._database.transaction() as session:
            row = await queries.by_id(session, user_id)
        if row is None or row.status != "active":
            raise UnauthorizedError
        return _user(row)


def _user(row: models.UserRow) -> User:
    return User(row.id, row.email, row.first_name, row.last_name, row.phone, row.role, row.status, row.created_at)
