"""HTTP of user-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from email_validator import EmailNotValidError, validate_email
from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from shared.auth import Principal, UserTokens
from shared.authentication import Authenticates
from shared.http.app import strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import SINGLE_LINE, UtcTime
from user_service.domain import Registration, User
from user_service.service import Users


def _canonical_email(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False, strict=True).normalized.lower()
    except EmailNotValidError:
        raise PydanticCustomError("email_invalid", "Must be an e-mail address.") from None


Email = Annotated[
    str,
    Field(max_length=254, json_schema_extra={"format": "email"}, examples=["user@example.com"]),
    AfterValidator(_canonical_email),
]
Password = Annotated[
    str, Field(min_length=8, max_length=1024, json_schema_extra={"format": "password"}, examples=["SecurePass123"])
]
# The shape only: a number of the documentation range is nobody's, and still a phone number.
Phone = Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$", examples=["+1234567890"])]


class RegisterIn(BaseModel):
    """A registration; everybody may be a user or a merchant, nobody an admin."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    password: Password
    first_name: Annotated[str, Field(min_length=1, max_length=100, examples=["John"]), SINGLE_LINE]
    last_name: Annotated[str, Field(min_length=1, max_length=100, examples=["Doe"]), SINGLE_LINE]
    phone: Phone
    role: Literal["user", "merchant"] = "user"


class LoginIn(BaseModel):
    """Credentials."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    password: Annotated[
        str,
        Field(min_length=1, max_length=1024, json_schema_extra={"format": "password"}, examples=["SecurePass123"]),
    ]


class UserOut(BaseModel):
    """A person, as they see themselves."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str
    first_name: str
    last_name: str
    phone: str
    role: Literal["user", "merchant", "admin"]
    status: Literal["active", "disabled", "closed"]
    created_at: UtcTime


class LoginOut(BaseModel):
    """An access token (OAuth 2.0 names, RFC 6749 section 5.1); `expires_in` is in seconds."""

    access_token: str
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the scheme's name
    expires_in: int
    user: UserOut


def users_router(users: Users, tokens: UserTokens, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/users`."""
    router = strict_router("users")
    current_user: Any = user_of(authenticator)

    @router.post("/users/register", status_code=201, responses=problems(400, 409, 413, 415))
    async def register(body: RegisterIn) -> UserOut:
        """Register with an e-mail address that nobody has used."""
        return _out(await users.register(Registration(**body.model_dump())))

    @router.post("/users/login", responses=problems(400, 401, 413, 415))
    async def log_in(body: LoginIn) -> LoginOut:
        """Exchange e-mail and password for an access token."""
        user, token = await users.log_in(body.email, body.password)
        return LoginOut(access_token=token, expires_in=tokens.expire_seconds, user=_out(user))

    @router.get("/users/me", responses=problems(401))
    async def me(caller: Annotated[Principal, current_user]) -> UserOut:
        """The profile of the caller."""
        return _out(await users.profile(caller.user_id))

    return router


def _out(user: User) -> UserOut:
    return UserOut.model_validate(user)
