"""People and the rules about them. Pure: no database, no clock, no network."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from shared.errors import AppError


@dataclass(frozen=True, slots=True)
class Registration:
    """A person's wish to register; `email` is in its canonical form."""

    email: str
    password: str
    first_name: str
    last_name: str
    phone: str
    role: str


@dataclass(frozen=True, slots=True)
class User:
    """A registered person."""

    id: UUID
    email: str
    first_name: str
    last_name: str
    phone: str
    role: str
    status: str
    created_at: datetime


class EmailTakenError(AppError):
    """409: somebody has registered with this address."""

    def __init__(self) -> None:
        super().__init__("email_taken", 409, "This e-mail address is already registered.")


class InvalidCredentialsError(AppError):
    """401: unknown address or wrong password; which of them is not said."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_credentials", 401, "E-mail or password is wrong.", headers={"WWW-Authenticate": "Bearer"}
        )
