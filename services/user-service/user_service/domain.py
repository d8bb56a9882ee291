"""People, their sessions and the rules about them. Pure: no database, no clock, no network."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from uuid import UUID

from shared.errors import AppError, ForbiddenError

GRACE: Final = timedelta(seconds=10)  # in which the token before the current one brings the same successor again
MAX_LIVE_SESSIONS: Final = 50
MAX_USER_AGENT_LENGTH: Final = 200
IPV6_NETWORK_BITS: Final = 64  # what one household or machine gets; counting single addresses would count nothing


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


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: an IP address (empty where it is not known) and what calls itself a user agent."""

    address: str
    user_agent: str

    @classmethod
    def of(cls, address: str, user_agent: str) -> "Origin":
        """The origin, its user agent as at most 200 printable characters."""
        printable = "".join(letter for letter in user_agent if letter.isprintable())
        return cls(address, printable[:MAX_USER_AGENT_LENGTH])

    @property
    def network(self) -> str:
        """What guesses are counted by: an IPv4 address, or the /64 of an IPv6 address."""
        if not self.address:
            return ""
        address = ip_address(self.address)
        if isinstance(address, IPv6Address):
            return str(ip_network((address, IPV6_NETWORK_BITS), strict=False))
        return str(address)


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in that lives until it ends, or nobody refreshes it for long enough."""

    id: UUID
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str
    user_agent: str


class Verdict(Enum):
    """What a genuine refresh token is good for."""

    ROTATE = "rotate"  # the current one: its successor
    REPEAT = "repeat"  # the one before, in its grace: the same successor again
    REUSE = "reuse"  # one that was replaced: it was copied, and the session ends
    STALE = "stale"  # nothing, and nothing happens


def judge(presented: int, current: int, rotated_at: datetime, now: datetime) -> Verdict:
    """Judge the refresh token of generation `presented` in a live session whose latest is `current`."""
    if presented == current:
        return Verdict.ROTATE
    if presented > current:  # the database was restored from before it was issued
        return Verdict.STALE
    if presented == current - 1 and now - rotated_at <= GRACE:
        return Verdict.REPEAT
    return Verdict.REUSE


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


class InvalidRefreshTokenError(AppError):
    """401: no refresh token of ours, or of a session that is over."""

    def __init__(self) -> None:
        super().__init__(
            "invalid_refresh_token",
            401,
            "The refresh token does not count any more; log in again.",
            headers={"WWW-Authenticate": "Bearer"},
        )


class WrongPasswordError(ForbiddenError):
    """403: the caller is known, but did not prove to be the owner again."""

    def __init__(self) -> None:
        super().__init__("The current password is wrong.")
        self.code = "wrong_password"


class TooManyAttemptsError(AppError):
    """429: too many wrong passwords."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "too_many_attempts",
            429,
            "There were too many attempts; try again later.",
            headers={"Retry-After": str(retry_after_seconds)},
        )


class WalletNotEmptyError(AppError):
    """409: an account is closed once its wallets are empty."""

    def __init__(self) -> None:
        super().__init__("wallet_not_empty", 409, "There is money in a wallet, or on hold; nothing was closed.")


class UserClosedError(AppError):
    """409: a closed account stays closed."""

    def __init__(self) -> None:
        super().__init__("user_closed", 409, "This account is closed for good.")


class OwnAccountError(AppError):
    """409: an admin who disables themself could not undo it."""

    def __init__(self) -> None:
        super().__init__("own_account", 409, "This is your own account; another admin may disable it.")
