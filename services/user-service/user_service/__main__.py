"""`python -m user_service`: make an admin, which the API never does. `make create-admin` runs it.

EMAIL names the admin. PASSWORD may give the password; without it a person at a terminal is asked, and otherwise one
is made up and printed. A registered address is refused, unless PROMOTE=1 says that its owner shall be an admin.
"""

import asyncio
import getpass
import os
import secrets
import sys
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter, ValidationError

from shared.database import Database, prepare_schema
from shared.errors import FieldInvalidError
from shared.metrics import CacheMetrics
from shared.settings import SettingsError, load
from user_service.api import Email, FirstName, LastName, NewPassword, Phone
from user_service.app import FOLDER
from user_service.domain import EmailTakenError, Registration
from user_service.passwords import Passwords
from user_service.profiles import Profiles
from user_service.service.administration import make_admin, promote
from user_service.settings import UserSettings

REFUSED: Final = 1
INTERRUPTED: Final = 130
MADE_UP_BYTES: Final = 18

_FIELDS: Final = {"EMAIL": Email, "FIRST_NAME": FirstName, "LAST_NAME": LastName, "PHONE": Phone}


class RefusedError(Exception):
    """Nothing was done; the text is a sentence that says why."""


def _field(environ: Mapping[str, str], name: str, default: str = "") -> str:
    given = environ.get(name)
    if not given:
        return default
    try:
        value: str = TypeAdapter(_FIELDS[name]).validate_python(given)
    except ValidationError as error:
        raise RefusedError(f"{name}: {error.errors(include_input=False)[0]['msg']}") from None
    return value


def _password(environ: Mapping[str, str]) -> tuple[str, bool]:
    """The password and whether it was made up."""
    given = environ.get("PASSWORD", "")
    if not given and sys.stdin.isatty():
        given = getpass.getpass("Password (empty: one is made up): ")
        if given and getpass.getpass("Once more: ") != given:
            raise RefusedError("The two passwords differ; nothing was done.")
    if not given:
        return secrets.token_urlsafe(MADE_UP_BYTES), True
    try:
        return TypeAdapter(NewPassword).validate_python(given), False
    except ValidationError as error:
        raise RefusedError(f"PASSWORD: {error.errors(include_input=False)[0]['msg']}") from None


async def run(settings: UserSettings, environ: Mapping[str, str]) -> str:
    """What was done, for people; raises RefusedError, SettingsError."""
    email = _field(environ, "EMAIL")
    if not email:
        raise RefusedError("Say whom to make an admin: make create-admin EMAIL=ada@example.com")
    await prepare_schema(settings, FOLDER)
    database = Database(settings)
    try:
        if environ.get("PROMOTE") == "1":
            return await _promote(database, settings, email)
        return await _make(database, settings, email, environ)
    except OSError as error:
        raise RefusedError(f"The database did not answer: {type(error).__name__}. Try again.") from error
    finally:
        await database.close()


async def _promote(database: Database, settings: UserSettings, email: str) -> str:
    profiles = Profiles(database, settings, CacheMetrics(CollectorRegistry()))
    try:
        user = await promote(database, profiles, email)
    finally:
        await profiles.close()
    if user is None:
        raise RefusedError(
            f"Nobody who may log in is registered as {email}; without PROMOTE=1 an admin is made anew."
        )
    return f"{email} is an admin ({user.id}), keeps the password, and has to log in anew."


async def _make(database: Database, settings: UserSettings, email: str, environ: Mapping[str, str]) -> str:
    first_name, last_name = _field(environ, "FIRST_NAME", "Platform"), _field(environ, "LAST_NAME", "Admin")
    phone = _field(environ, "PHONE")
    password, made_up = _password(environ)
    registration = Registration(email, password, first_name, last_name, phone, "admin")
    passwords = Passwords(settings.bcrypt_rounds)
    try:
        user = await make_admin(database, passwords, registration)
    except EmailTakenError:
        raise RefusedError(f"{email} is registered already: PROMOTE=1 makes an admin of its owner.") from None
    except FieldInvalidError as error:
        raise RefusedError(f"PASSWORD: {error.errors[0]['message']}") from None
    finally:
        passwords.close()
    said = f"{email} is an admin ({user.id})."
    return f"{said}\nPassword, shown this once: {password}" if made_up else said


def main() -> int:
    """0 when there is one admin more, 1 with one sentence when not."""
    try:
        sys.stdout.write(f"{asyncio.run(run(load(UserSettings), os.environ))}\n")
    except (RefusedError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
