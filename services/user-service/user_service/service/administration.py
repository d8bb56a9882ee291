"""What admins do with other people's accounts, and how admins come to be."""

from uuid import UUID

from shared.database import Database
from shared.errors import FieldInvalidError, ForbiddenError, NotFoundError
from shared.events import UserChange, UserDisabled, UserEnabled, UserRegistered, UserUpdated
from user_service import queries
from user_service.domain import EmailTakenError, OwnAccountError, Registration, User, UserClosedError
from user_service.events import changed, contact, tell
from user_service.passwords import Passwords, refuse_guessable
from user_service.profiles import Profiles, user_of_row
from user_service.queries import UserFilters
from user_service.service.people import Caller, Wakes, end_all

COMMAND = "create-admin"


class Administration:
    """Looking at people, shutting them out and letting them in again; for admins alone."""

    def __init__(self, database: Database, profiles: Profiles, wakes: Wakes) -> None:
        self._database = database
        self._profiles = profiles
        self._wakes = wakes

    async def get(self, caller: Caller, user_id: UUID) -> User:
        """Anybody's profile; raises NotFoundError."""
        _require_admin(caller)
        user = await self._profiles.get(user_id)
        if user is not None:
            return user
        async with self._database.transaction() as session:  # who has closed their account is not cached
            row = await queries.by_id(session, user_id)
        if row is None:
            raise NotFoundError("user")
        return user_of_row(row)

    async def page(
        self, caller: Caller, filters: UserFilters, limit: int, after: UUID | None, before: UUID | None
    ) -> tuple[list[User], bool]:
        """People, newest first, and whether there are more in the direction of the page; raises FieldInvalidError."""
        _require_admin(caller)
        async with self._database.transaction() as session:
            for name, user_id in (("starting_after", after), ("ending_before", before)):
                if user_id is not None and await queries.by_id(session, user_id) is None:
                    raise FieldInvalidError(name, "user_not_found", "There is no such user.")
            rows = await queries.user_page(session, filters, limit + 1, after, before)
        shown = rows[-limit:] if before is not None else rows[:limit]
        return [user_of_row(row) for row in shown], len(rows) > limit

    async def disable(self, caller: Caller, user_id: UUID) -> User:
        """Shut somebody out, at once; raises NotFoundError, UserClosedError, OwnAccountError."""
        _require_admin(caller)
        if caller.user_id == user_id:
            raise OwnAccountError
        return await self._set_status(caller, user_id, "disabled", UserDisabled)

    async def enable(self, caller: Caller, user_id: UUID) -> User:
        """Let somebody in again; raises NotFoundError, UserClosedError."""
        _require_admin(caller)
        return await self._set_status(caller, user_id, "active", UserEnabled)

    async def _set_status(self, caller: Caller, user_id: UUID, status: str, kind: type[UserChange]) -> User:
        async with self._database.transaction() as session:
            row = await queries.lock_user(session, user_id)
            if row is None:
                raise NotFoundError("user")
            if row.status == "closed":
                raise UserClosedError
            if row.status != status:
                before, row.status = {"status": row.status}, status
                told = await end_all(session, row, "disabled") if status == "disabled" else []
                await tell(session, row, str(caller.user_id), changed(kind, row, before), *told)
        self._wakes.ended()
        self._wakes.told()
        self._profiles.put(row)
        await self._profiles.settle()
        return user_of_row(row)


async def make_admin(database: Database, passwords: Passwords, registration: Registration) -> User:
    """Register an admin, as an operator; raises EmailTakenError, FieldInvalidError."""
    refuse_guessable(registration.password, registration.email, "password")
    password_hash = await passwords.hash(registration.password)
    async with database.transaction() as session:
        row = await queries.insert_user(session, registration, password_hash)
        if row is None:
            raise EmailTakenError
        await tell(session, row, COMMAND, contact(UserRegistered, row))
    return user_of_row(row)


async def promote(database: Database, profiles: Profiles, email: str) -> User | None:
    """Make an admin of an active person, who has to log in anew; None where there is no such person."""
    async with database.transaction() as session:
        found = await queries.by_email(session, email)
        row = await queries.lock_user(session, found.id) if found else None
        if row is None or row.status != "active":
            return None
        if row.role != "admin":
            before, row.role = {"role": row.role}, "admin"
            told = await end_all(session, row, "role_changed")
            await tell(session, row, COMMAND, changed(UserUpdated, row, before), *told)
    profiles.put(row)
    return user_of_row(row)


def _require_admin(caller: Caller) -> None:
    if caller.role != "admin":
        raise ForbiddenError
