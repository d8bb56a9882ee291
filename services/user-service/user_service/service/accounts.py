"""What people do with their own account."""

from shared.database import Database
from shared.errors import FieldInvalidError, UnauthorizedError
from shared.events import UserClosed, UserPasswordChanged, UserRegistered, UserUpdated
from user_service import queries
from user_service.clients import WalletClient
from user_service.domain import EmailTakenError, Origin, Registration, User, WrongPasswordError
from user_service.events import changed, contact, tell
from user_service.models import UserRow
from user_service.passwords import refuse_guessable
from user_service.profiles import Profiles, user_of_row
from user_service.service.credentials import Credentials
from user_service.service.people import Caller, Wakes, end_all


class Accounts:
    """Registration, profiles, passwords and closing."""

    def __init__(
        self, database: Database, credentials: Credentials, wallets: WalletClient, profiles: Profiles, wakes: Wakes
    ) -> None:
        self._database = database
        self._credentials = credentials
        self._wallets = wallets
        self._profiles = profiles
        self._wakes = wakes

    async def register(self, registration: Registration) -> User:
        """Make the user; raises EmailTakenError, FieldInvalidError."""
        refuse_guessable(registration.password, registration.email, "password")
        password_hash = await self._credentials.hash(registration.password)
        async with self._database.transaction() as session:
            row = await queries.insert_user(session, registration, password_hash)
            if row is None:
                raise EmailTakenError
            await tell(session, row, str(row.id), contact(UserRegistered, row))
        self._wakes.told()
        self._profiles.put(row)
        return user_of_row(row)

    async def profile(self, caller: Caller) -> User:
        """The caller, as they were when they were recognised or later; raises UnauthorizedError when there is none
        any more."""
        user = await self._profiles.get(caller.user_id, caller.profile_version)
        if user is None or user.status != "active":
            raise UnauthorizedError
        return user

    async def update(self, caller: Caller, changes: dict[str, str]) -> User:
        """Change fields of the caller's profile; what is the same already is no change."""
        async with self._database.transaction() as session:
            row = _active(await queries.lock_user(session, caller.user_id))
            before = {name: str(getattr(row, name)) for name in changes if getattr(row, name) != changes[name]}
            for name in before:
                setattr(row, name, changes[name])
            if before:
                await tell(session, row, str(caller.user_id), changed(UserUpdated, row, before))
        self._wakes.told()
        self._profiles.put(row)
        await self._profiles.settle()
        return user_of_row(row)

    async def change_password(self, caller: Caller, current: str, new: str, origin: Origin) -> None:
        """Set a new password and end the caller's other sessions.

        Raises WrongPasswordError, TooManyAttemptsError, FieldInvalidError.
        """
        found = await self._prove(caller, current, origin)
        if new == current:
            raise FieldInvalidError("new_password", "password_unchanged", "Is the password that is to be changed.")
        refuse_guessable(new, found.email, "new_password")
        password_hash = await self._credentials.hash(new)
        async with self._database.transaction() as session:
            row = _active(await queries.lock_user(session, caller.user_id))
            if row.password_version != found.password_version:
                raise WrongPasswordError  # somebody has changed it meanwhile
            row.password_hash = password_hash
            row.password_version += 1
            told = await end_all(session, row, "password_changed", but=caller)
            await tell(session, row, str(caller.user_id), contact(UserPasswordChanged, row), *told)
        self._wakes.ended()
        self._wakes.told()
        self._profiles.put(row)

    async def close(self, caller: Caller, password: str, origin: Origin) -> None:
        """Close the caller's wallets and then their account, for good; may be repeated while it fails.

        Raises WrongPasswordError, TooManyAttemptsError, WalletNotEmptyError, UnavailableError.
        """
        found = await self._prove(caller, password, origin)
        await self._wallets.close_all_of(caller.user_id)
        async with self._database.transaction() as session:
            row = _active(await queries.lock_user(session, caller.user_id))
            if row.password_version != found.password_version:
                raise WrongPasswordError
            before, row.status = {"status": row.status}, "closed"
            told = await end_all(session, row, "closed")
            await tell(session, row, str(caller.user_id), changed(UserClosed, row, before), *told)
        self._wakes.ended()
        self._wakes.told()
        self._profiles.put(row)
        await self._profiles.settle()

    async def _prove(self, caller: Caller, password: str, origin: Origin) -> UserRow:
        """The caller, who has given their password once more; counted as a login is."""
        async with self._database.transaction() as session:
            row = _active(await queries.by_id(session, caller.user_id))
        if not await self._credentials.are_right(row.email, password, row.password_hash, origin, known=True):
            raise WrongPasswordError
        return row


def _active(row: UserRow | None) -> UserRow:
    if row is None or row.status != "active":
        raise UnauthorizedError
    return row
