"""HTTP of user-service."""

from typing import Annotated, Any, Literal
from uuid import UUID

from email_validator import EmailNotValidError, validate_email
from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from shared.auth import ServiceTokens
from shared.http.app import service_of, strict_router, user_of
from shared.http.context import current_context
from shared.http.problems import problems
from shared.http.wire import SINGLE_LINE, PageLimit, UtcTime
from user_service.domain import Origin, Registration, Session, User
from user_service.passwords import MAX_LENGTH, MIN_LENGTH
from user_service.queries import UserFilters
from user_service.service.accounts import Accounts
from user_service.service.administration import Administration
from user_service.service.people import Caller
from user_service.service.sessions import Sessions


def canonical_email(value: str) -> str:
    """The one form of an address; raises a pydantic error for what is none."""
    try:
        return validate_email(value, check_deliverability=False, strict=True).normalized.lower()
    except EmailNotValidError:
        raise PydanticCustomError("email_invalid", "Must be an e-mail address.") from None


def _optional(schema: dict[str, Any]) -> None:
    """Leave the default of a field that is not sent out of the document: nobody can send it."""
    schema.pop("default", None)


Email = Annotated[
    str,
    Field(max_length=254, json_schema_extra={"format": "email"}, examples=["user@example.com"]),
    AfterValidator(canonical_email),
]
NewPassword = Annotated[
    str,
    Field(
        min_length=MIN_LENGTH,
        max_length=MAX_LENGTH,
        json_schema_extra={"format": "password"},
        examples=["SecurePass123"],
        description="No rules of composition; common passwords and the own address are refused.",
    ),
]
GivenPassword = Annotated[
    str,
    Field(min_length=1, max_length=MAX_LENGTH, json_schema_extra={"format": "password"}, examples=["SecurePass123"]),
]
FirstName = Annotated[str, Field(min_length=1, max_length=100, examples=["John"]), SINGLE_LINE]
LastName = Annotated[str, Field(min_length=1, max_length=100, examples=["Doe"]), SINGLE_LINE]
# The shape only: a number of the documentation range is nobody's, and still a phone number.
Phone = Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$", examples=["+1234567890"])]
_REFRESH_EXAMPLE = "AZXkq1n3cYuJb1h0TjY2nAAAAAAAAAABk7mV0l9m3n0i8Qe1W5y2AZXkq1n3cYuJb1h0TjY2nAAA"
RefreshToken = Annotated[str, Field(min_length=1, max_length=200, examples=[_REFRESH_EXAMPLE])]
Role = Literal["user", "merchant", "admin"]
Status = Literal["active", "disabled", "closed"]


class RegisterIn(BaseModel):
    """A registration; everybody may be a user or a merchant, nobody an admin."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    password: NewPassword
    first_name: FirstName
    last_name: LastName
    phone: Phone
    role: Literal["user", "merchant"] = "user"


class LoginIn(BaseModel):
    """Credentials."""

    model_config = ConfigDict(extra="forbid")

    email: Email
    password: GivenPassword


class RefreshIn(BaseModel):
    """The latest refresh token of a session."""

    model_config = ConfigDict(extra="forbid")

    refresh_token: RefreshToken


class ProfileIn(BaseModel):
    """What is to change; a field that is not sent stays."""

    model_config = ConfigDict(extra="forbid")

    first_name: Annotated[FirstName, Field(json_schema_extra=_optional)] = ""
    last_name: Annotated[LastName, Field(json_schema_extra=_optional)] = ""
    phone: Annotated[Phone, Field(json_schema_extra=_optional)] = ""


class PasswordIn(BaseModel):
    """A change of password."""

    model_config = ConfigDict(extra="forbid")

    current_password: GivenPassword
    new_password: Annotated[NewPassword, Field(examples=["BetterPass456"])]


class CloseIn(BaseModel):
    """The password once more, as nothing brings the account back."""

    model_config = ConfigDict(extra="forbid")

    password: GivenPassword


class UserOut(BaseModel):
    """A person, as they see themselves."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    email: str = Field(examples=["user@example.com"])
    first_name: str = Field(examples=["John"])
    last_name: str = Field(examples=["Doe"])
    phone: str = Field(description="Empty where none is known.", examples=["+1234567890"])
    role: Role
    status: Status
    created_at: UtcTime


class TokensOut(BaseModel):
    """Tokens (OAuth 2.0 names, RFC 6749 section 5.1); `expires_in` is that of the access token, in seconds."""

    access_token: str = Field(examples=["eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJwYXltZW50LXN5c3RlbSJ9.c2ln"])
    refresh_token: str = Field(
        description="For `POST /users/refresh`, once; the answer brings the next.", examples=[_REFRESH_EXAMPLE]
    )
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the scheme's name
    expires_in: int = Field(examples=[900])


class LoginOut(TokensOut):
    """Tokens, and whose they are."""

    user: UserOut


class SessionOut(BaseModel):
    """One sign-in. Its address and user agent are those it began with."""

    id: UUID
    created_at: UtcTime
    last_used_at: UtcTime = Field(description="When its tokens were last refreshed.")
    expires_at: UtcTime = Field(description="When it ends, unless its tokens are refreshed before.")
    ip: str = Field(examples=["203.0.113.7"])
    user_agent: str = Field(examples=["curl/8.11.0"])
    current: bool = Field(description="Whether it is the one that asks.")


class SessionList(BaseModel):
    """Sessions, the latest used first; there are never more than fifty."""

    data: list[SessionOut]
    has_more: Literal[False] = False


class FilterIn(BaseModel):
    """Which people to list."""

    model_config = ConfigDict(extra="forbid")

    email: Email | None = None
    role: Role | None = None
    status: Status | None = None
    limit: PageLimit = 20
    starting_after: UUID | None = Field(default=None, description="The last user of the page before.")
    ending_before: UUID | None = Field(default=None, description="The first user of the page after.")


class UserList(BaseModel):
    """People, newest first."""

    data: list[UserOut]
    has_more: bool


def users_router(
    accounts: Accounts, sessions: Sessions, administration: Administration, *, expires_in: int
) -> APIRouter:
    """The public operations under `/users`."""
    router = strict_router("users")
    _add_sign_in(router, accounts, sessions, expires_in)
    _add_sessions(router, sessions)
    _add_profile(router, accounts, sessions)
    _add_administration(router, administration, sessions)
    return router


def _add_sign_in(router: APIRouter, accounts: Accounts, sessions: Sessions, expires_in: int) -> None:
    @router.post("/users/register", status_code=201, responses=problems(400, 409, 413, 415))
    async def register(body: RegisterIn) -> UserOut:
        """Register with an e-mail address that nobody has used."""
        return _out(await accounts.register(Registration(**body.model_dump())))

    @router.post("/users/login", responses=problems(400, 401, 413, 415, 429))
    async def log_in(body: LoginIn, request: Request) -> LoginOut:
        """Exchange e-mail and password for an access token and a refresh token."""
        user, tokens = await sessions.log_in(body.email, body.password, _origin(request))
        return LoginOut(
            access_token=tokens.access, refresh_token=tokens.refresh, expires_in=expires_in, user=_out(user)
        )

    @router.post("/users/refresh", responses=problems(400, 401, 413, 415))
    async def refresh(body: RefreshIn, request: Request) -> TokensOut:
        """Exchange a refresh token for the next tokens.

        The token before the current one brings the same successor for 10 s, for clients that did not get the answer.
        After that somebody else may have it: the session ends.
        """
        tokens = await sessions.refresh(body.refresh_token, _origin(request))
        return TokensOut(access_token=tokens.access, refresh_token=tokens.refresh, expires_in=expires_in)


def _add_sessions(router: APIRouter, sessions: Sessions) -> None:
    current_user: Any = user_of(sessions)

    @router.post("/users/logout", status_code=204, responses=problems(401))
    async def log_out(caller: Annotated[Caller, current_user]) -> None:
        """End the session of the access token; within a second it is worth nothing anywhere."""
        await sessions.log_out(caller)

    @router.get("/users/sessions", responses=problems(401))
    async def list_sessions(caller: Annotated[Caller, current_user]) -> SessionList:
        """Where the caller is signed in."""
        return SessionList(data=[_session_out(found, caller) for found in await sessions.list(caller)])

    @router.delete("/users/sessions/{session_id}", status_code=204, responses=problems(401, 404))
    async def end_session(session_id: UUID, caller: Annotated[Caller, current_user]) -> None:
        """End one of the caller's sessions."""
        await sessions.revoke(caller, session_id)


def _add_profile(router: APIRouter, accounts: Accounts, sessions: Sessions) -> None:
    current_user: Any = user_of(sessions)

    @router.get("/users/me", responses=problems(401))
    async def me(caller: Annotated[Caller, current_user]) -> UserOut:
        """The profile of the caller."""
        return _out(await accounts.profile(caller))

    @router.patch("/users/me", responses=problems(400, 401, 413, 415))
    async def update_me(body: ProfileIn, caller: Annotated[Caller, current_user]) -> UserOut:
        """Change the caller's name or phone number."""
        return _out(await accounts.update(caller, body.model_dump(exclude_unset=True)))

    @router.post("/users/me/password", status_code=204, responses=problems(400, 401, 403, 413, 415, 429))
    async def change_password(body: PasswordIn, request: Request, caller: Annotated[Caller, current_user]) -> None:
        """Set a new password; all sessions but the caller's end."""
        await accounts.change_password(caller, body.current_password, body.new_password, _origin(request))

    @router.delete("/users/me", status_code=204, responses=problems(400, 401, 403, 409, 413, 415, 429))
    async def close_me(body: CloseIn, request: Request, caller: Annotated[Caller, current_user]) -> None:
        """Close the caller's wallets, which have to be empty, and the account, for good."""
        await accounts.close(caller, body.password, _origin(request))


def _add_administration(router: APIRouter, administration: Administration, sessions: Sessions) -> None:
    current_user: Any = user_of(sessions)

    @router.get("/users", responses=problems(401, 403))
    async def list_users(caller: Annotated[Caller, current_user], query: Annotated[FilterIn, Query()]) -> UserList:
        """Everybody who has registered, newest first; for admins."""
        filters = UserFilters(query.email, query.role, query.status)
        found, has_more = await administration.page(
            caller, filters, query.limit, query.starting_after, query.ending_before
        )
        return UserList(data=[_out(user) for user in found], has_more=has_more)

    @router.get("/users/{user_id}", responses=problems(401, 403, 404))
    async def get_user(user_id: UUID, caller: Annotated[Caller, current_user]) -> UserOut:
        """Anybody's profile; for admins."""
        return _out(await administration.get(caller, user_id))

    @router.post("/users/{user_id}/disable", responses=problems(401, 403, 404, 409))
    async def disable_user(user_id: UUID, caller: Annotated[Caller, current_user]) -> UserOut:
        """Shut somebody out: no login, and all sessions end; for admins."""
        return _out(await administration.disable(caller, user_id))

    @router.post("/users/{user_id}/enable", responses=problems(401, 403, 404, 409))
    async def enable_user(user_id: UUID, caller: Annotated[Caller, current_user]) -> UserOut:
        """Let somebody log in again; for admins."""
        return _out(await administration.enable(caller, user_id))


class SessionStateOut(BaseModel):
    """Whether a session is known to have ended before its time."""

    ended: bool


def internal_router(sessions: Sessions, tokens: ServiceTokens) -> APIRouter:
    """Operations for other services; not part of the public document."""
    router = APIRouter(prefix="/internal", include_in_schema=False, dependencies=[service_of(tokens)])

    @router.get("/sessions/{session_id}")
    async def session_state(session_id: UUID) -> SessionStateOut:
        """For services that cannot hear of ended sessions at the moment."""
        return SessionStateOut(ended=await sessions.has_ended(session_id))

    return router


def _out(user: User) -> UserOut:
    return UserOut.model_validate(user)


def _session_out(session: Session, caller: Caller) -> SessionOut:
    return SessionOut(
        id=session.id,
        created_at=session.created_at,
        last_used_at=session.last_used_at,
        expires_at=session.expires_at,
        ip=session.address,
        user_agent=session.user_agent,
        current=session.id == caller.session_id,
    )


def _origin(request: Request) -> Origin:
    return Origin.of(current_context().trace.ip or "", request.headers.get("user-agent", ""))
