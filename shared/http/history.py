"""`GET /<segment>/audit`: what a service has written into its audit, for admins."""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from shared.audit import AuditFilters, AuditLog
from shared.auth import Principal
from shared.authentication import Authenticates
from shared.errors import FieldInvalidError, ForbiddenError, UnavailableError
from shared.http.app import strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import InstantIn, PageLimit, utc_text

ADMIN = "admin"
_ACTOR: Final = r"^([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z][a-z-]{0,63})$"  # an id, or a service's name


class AuditQuery(BaseModel):
    """Which events to list."""

    model_config = ConfigDict(extra="forbid")

    actor: Annotated[str, Field(pattern=_ACTOR)] | None = Field(
        default=None, description="Who did it: a user's id, or a service's name."
    )
    subject: UUID | None = Field(
        default=None, description="What it was done to: a user, wallet, transaction, payment."
    )
    type: Annotated[str, Field(pattern=r"^[a-z_]+\.[a-z_]+\.v[0-9]{1,3}$")] | None = Field(
        default=None, description="The event's type, such as `users.updated.v1`."
    )
    since: InstantIn | None = Field(default=None, alias="from", description="Not before this instant.")
    until: InstantIn | None = Field(default=None, alias="to", description="Before this instant.")
    limit: PageLimit = 20
    starting_after: UUID | None = Field(default=None, description="The last event of the page before.")
    ending_before: UUID | None = Field(default=None, description="The first event of the page after.")


class AuditedOut(BaseModel):
    """One event. `position` and `hash` are its place in the audit's chain.

    A member that is not what an event has is null: somebody has altered the document; `make audit-verify` says so.
    """

    id: str = Field(examples=["01a20b6d-3c46-7465-977d-2d1af3211a95"])
    type: str | None = Field(examples=["users.updated.v1"])
    subject: str | None = Field(examples=["01a20b6d-35cb-7487-84bd-663c38aafbfd"])
    sequence: int | None = Field(description="Counts the subject's events from 1.", examples=[2])
    time: str | None = Field(examples=["2026-11-24T02:40:37.958028Z"], json_schema_extra={"format": "date-time"})
    actor: str | None = Field(examples=["01a20b6d-35cb-7487-84bd-663c38aafbfd"])
    request_id: str | None = Field(examples=["01a20b6d-3b14-7477-80fb-2d89b48a64c0"])
    ip: str | None = Field(
        description="Where the request came from; null in a service's own work, and in what was written before "
        "addresses were.",
        examples=["203.0.113.7"],
    )
    traceparent: str | None = Field(examples=["00-d17a895714954b29f06e2d95da515549-43d117323eda8c81-01"])
    data: dict[str, Any] | None = Field(description="What the type says.", examples=[{"first_name": "Jane"}])
    position: int | None = Field(examples=[1041])
    hash: str | None = Field(
        description="SHA-256, hexadecimal.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )


class AuditList(BaseModel):
    """Events, the latest first."""

    data: list[AuditedOut]
    has_more: bool


def audit_router(segment: str, audit: AuditLog, authenticator: Authenticates) -> APIRouter:
    """`GET /<segment>/audit`. Comes before a route whose id could be called `audit`."""
    router = strict_router(segment)
    current_user: Any = user_of(authenticator)

    @router.get(f"/{segment}/audit", responses=problems(401, 403, 503))
    async def list_audit(
        caller: Annotated[Principal, current_user], query: Annotated[AuditQuery, Query()]
    ) -> AuditList:
        """What was done, by whom and when, the latest first; for admins."""
        if caller.role != ADMIN:
            raise ForbiddenError
        after, before = query.starting_after, query.ending_before
        if after and before:
            raise FieldInvalidError("ending_before", "cursor_conflict", "Send one of the two cursors.")
        try:
            found, has_more = await audit.page(_filters(query), query.limit, _text(after), _text(before))
        except LookupError:
            name = "starting_after" if after else "ending_before"
            raise FieldInvalidError(name, "event_not_found", "There is no such event.") from None
        except ConnectionError as error:
            raise UnavailableError("The audit cannot be read at the moment; try again.") from error
        return AuditList(data=[_out(document) for document in found], has_more=has_more)

    return router


def _filters(query: AuditQuery) -> AuditFilters:
    return AuditFilters(
        actor=query.actor,
        subject=_text(query.subject),
        type=query.type,
        since=utc_text(query.since) if query.since else None,
        until=utc_text(query.until) if query.until else None,
    )


def _text(value: UUID | None) -> str | None:
    return str(value) if value else None


def _out(document: dict[str, Any]) -> AuditedOut:
    def member(name: str, kind: type, of: dict[str, Any] = document) -> Any:
        value = of.get(name)
        return value if isinstance(value, kind) else None

    place = member("chain", dict) or {}
    return AuditedOut(
        id=str(document["_id"]),
        **{name: member(name, str) for name in ("type", "subject", "time", "actor", "ip", "traceparent")},
        sequence=member("sequence", int),
        request_id=member("requestid", str),
        data=member("data", dict),
        position=member("position", int, place),
        hash=member("hash", str, place),
    )
