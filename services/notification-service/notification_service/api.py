"""HTTP of notification-service: what people were told, and what they want to be told."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from notification_service.domain import SECURITY, Channel, Kind, Preference, State
from notification_service.models import NotificationRow
from notification_service.service import Notifications
from notification_service.words import subject_of
from shared.auth import Principal
from shared.authentication import Authenticates
from shared.errors import FieldInvalidError
from shared.http.app import strict_router, user_of
from shared.http.problems import problems
from shared.http.wire import PageLimit, UtcTime


class NotificationOut(BaseModel):
    """A message by one channel about one event, and what became of it.

    `reason` says why it failed or was skipped, or while it is pending why the last attempt was in vain.
    """

    id: UUID
    kind: Kind
    channel: Channel
    title: str = Field(examples=["You received 50.00 USD"])
    transaction_id: UUID | None
    state: State
    reason: str | None = Field(examples=["smtp_unavailable"])
    attempts: int
    occurred_at: UtcTime
    created_at: UtcTime
    sent_at: UtcTime | None
    read_at: UtcTime | None


class NotificationList(BaseModel):
    """Notifications, newest first."""

    data: list[NotificationOut]
    has_more: bool


class PageIn(BaseModel):
    """Which page to list."""

    model_config = ConfigDict(extra="forbid")

    limit: PageLimit = 20
    starting_after: UUID | None = None
    ending_before: UUID | None = None

    @field_validator("ending_before", mode="after")
    @classmethod
    def _one_direction(cls, ending_before: UUID | None, info: ValidationInfo) -> UUID | None:
        if ending_before is not None and info.data.get("starting_after") is not None:
            raise PydanticCustomError("two_cursors", "Cannot stand beside `starting_after`.")
        return ending_before


class PreferenceIn(BaseModel):
    """Which channels one kind takes."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    email: bool = Field(strict=True)
    sms: bool = Field(strict=True)


class PreferencesIn(BaseModel):
    """All that is not as by default; kinds that are not named get their defaults."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"preferences": [{"kind": "deposit", "email": True, "sms": True}]}]},
    )

    preferences: Annotated[list[PreferenceIn], Field(max_length=len(Kind))]


class PreferenceOut(BaseModel):
    """Which channels one kind takes, and which of them cannot be turned off."""

    kind: Kind
    email: bool
    sms: bool
    always: list[Literal["email"]]


class PreferencesOut(BaseModel):
    """What counts, of every kind."""

    data: list[PreferenceOut]


def notifications_router(notifications: Notifications, authenticator: Authenticates) -> APIRouter:
    """The public operations under `/notifications`."""
    router = strict_router("notifications")
    current_user: Any = user_of(authenticator)

    @router.get("/notifications", responses=problems(401, 404))
    async def list_notifications(
        caller: Annotated[Principal, current_user], query: Annotated[PageIn, Query()]
    ) -> NotificationList:
        """What the caller was told, newest first, by each channel."""
        found, has_more = await notifications.page(
            caller, query.limit, after=query.starting_after, before=query.ending_before
        )
        return NotificationList(data=[_notification_out(row) for row in found], has_more=has_more)

    @router.get("/notifications/preferences", responses=problems(401))
    async def get_preferences(caller: Annotated[Principal, current_user]) -> PreferencesOut:
        """What the caller is told about, and how."""
        return _preferences_out(await notifications.preferences(caller))

    @router.put("/notifications/preferences", responses=problems(400, 401, 413, 415))
    async def replace_preferences(body: PreferencesIn, caller: Annotated[Principal, current_user]) -> PreferencesOut:
        """Choose what to be told about, and how. E-mails about security cannot be turned off."""
        return _preferences_out(await notifications.choose(caller, _chosen(body)))

    @router.post("/notifications/{notification_id}/read", responses=problems(401, 404))
    async def read_notification(notification_id: UUID, caller: Annotated[Principal, current_user]) -> NotificationOut:
        """Mark a notification as read; the first time counts."""
        return _notification_out(await notifications.read(caller, notification_id))

    return router


def _chosen(body: PreferencesIn) -> dict[Kind, Preference]:
    chosen: dict[Kind, Preference] = {}
    for index, each in enumerate(body.preferences):
        if each.kind in chosen:
            raise FieldInvalidError(f"preferences.{index}.kind", "kind_repeated", "Must be named once.")
        if each.kind in SECURITY and not each.email:
            raise FieldInvalidError(
                f"preferences.{index}.email", "email_required", "E-mails about security cannot be turned off."
            )
        chosen[each.kind] = Preference(each.email, each.sms)
    return chosen


def _preferences_out(found: dict[Kind, Preference]) -> PreferencesOut:
    return PreferencesOut(
        data=[
            PreferenceOut(kind=kind, email=email, sms=sms, always=["email"] if kind in SECURITY else [])
            for kind, (email, sms) in found.items()
        ]
    )


def _notification_out(row: NotificationRow) -> NotificationOut:
    same = {name: getattr(row, name) for name in NotificationOut.model_fields if hasattr(row, name)}
    about = {"title": subject_of(row.template, row.facts), "transaction_id": row.facts.get("transaction_id")}
    return NotificationOut.model_validate(same | about)
