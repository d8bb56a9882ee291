"""Use cases of notification-service: deciding who is told what, and what people see and choose of it."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from notification_service import models, queries
from notification_service.domain import (
    CONTACT_TYPES,
    Channel,
    Contact,
    Kind,
    Notice,
    Preference,
    State,
    decide,
    default_preference,
    notices,
)
from notification_service.models import NotificationRow
from shared import outbox
from shared.auth import Principal
from shared.database import Database
from shared.errors import NotFoundError
from shared.events import ChosenChannels, Envelope, NotificationPreferencesChanged, OutgoingEvent, data_of
from shared.ids import new_id
from shared.inbox import new_ones

FORGET_BATCH: Final = 1000

_WHAT: Final = "notification"


class Notifications:
    """Tells people about events, once for each event and channel.

    `channels` are those that something can be sent by; `arrivals` are set when there may be something to send.
    `told` is called when there may be an event of the service's own to carry out.
    """

    def __init__(self, database: Database, channels: Collection[Channel], told: Callable[[], None]) -> None:
        self._database = database
        self._told = told
        self.arrivals: Final = {channel: asyncio.Event() for channel in channels}

    async def handle(self, events: Sequence[Envelope]) -> None:
        """Learn contacts, and write down what people are to be told; raises ValidationError if one makes no sense.

        What an event leads to and the word that it was handled are one transaction: an event that comes again leads
        to nothing more.
        """
        read = [(event, _data(event)) for event in events]
        contacts = _newest_contacts(read)
        told = {event.id: (event, found) for event, data in read if (found := notices(event.type, data))}
        people = {notice.user_id for _, found in told.values() for notice in found}
        async with self._database.transaction() as session:
            await queries.wake_waiting(session, await queries.store_contacts(session, contacts))
            new = await new_ones(session, models.inbox, told)
            chosen = await queries.preferences(session, people) if new else {}
            rows = [
                row
                for event_id, (event, found) in told.items()
                if event_id in new
                for notice in found
                for row in self._decided(event, notice, chosen.get((notice.user_id, notice.kind)))
            ]
            await queries.store(session, rows)
        for arrival in self.arrivals.values():
            arrival.set()

    async def page(
        self, caller: Principal, limit: int, *, after: UUID | None = None, before: UUID | None = None
    ) -> tuple[list[NotificationRow], bool]:
        """At most `limit` of the caller's notifications, newest first, and whether there are more in this direction.

        The list goes on after the notification `after`, or ends before `before`; raises NotFoundError.
        """
        seen = after or before
        async with self._database.transaction() as session:
            cursor = await queries.get(session, caller.user_id, seen) if seen else None
            if seen and cursor is None:
                raise NotFoundError(_WHAT)
            found = await queries.page(session, caller.user_id, limit + 1, cursor, newer=before is not None)
        return (found[-limit:] if before else found[:limit]), len(found) > limit

    async def read(self, caller: Principal, notification_id: UUID) -> NotificationRow:
        """Remember that the caller has read one of their notifications; raises NotFoundError."""
        async with self._database.transaction() as session:
            row = await queries.mark_read(session, caller.user_id, notification_id)
        if row is None:
            raise NotFoundError(_WHAT)
        return row

    async def preferences(self, caller: Principal) -> dict[Kind, Preference]:
        """What counts for the caller, of every kind."""
        async with self._database.transaction() as session:
            chosen = await queries.preferences(session, [caller.user_id])
        return {kind: chosen.get((caller.user_id, kind), default_preference(kind)) for kind in Kind}

    async def choose(self, caller: Principal, chosen: Mapping[Kind, Preference]) -> dict[Kind, Preference]:
        """Replace what the caller has said; kinds that are not named get their default. What counts afterwards."""
        user_id, after = caller.user_id, {kind: chosen.get(kind, default_preference(kind)) for kind in Kind}
        async with self._database.transaction() as session:
            await queries.lock_chooser(session, user_id)
            said = await queries.preferences(session, [user_id])
            before = {kind: said.get((user_id, kind), default_preference(kind)) for kind in Kind}
            await queries.replace_preferences(session, user_id, chosen)
            if changed := [kind for kind in Kind if before[kind] != after[kind]]:
                data = NotificationPreferencesChanged(
                    user_id=user_id,
                    preferences=[_channels(kind, after[kind]) for kind in changed],
                    before=[_channels(kind, before[kind]) for kind in changed],
                )
                sequence = await queries.next_event_sequence(session, user_id)
                event = OutgoingEvent.of(data, subject=user_id, sequence=sequence, actor=str(user_id))
                await outbox.append(session, models.outbox, [event])
        self._told()
        return after

    async def forget_old(self, days: int) -> int:
        """Delete some of what was ended and is older than so many days; how many."""
        async with self._database.transaction() as session:
            return await queries.delete_old(session, days, FORGET_BATCH)

    def _decided(self, event: Envelope, notice: Notice, chosen: Preference | None) -> list[dict[str, Any]]:
        """The rows of a notice, one a channel."""
        rows = []
        for channel, state, reason in decide(notice.kind, chosen):
            if channel not in self.arrivals and state is State.PENDING:
                state, reason = State.SKIPPED, "channel_off"
            row = {
                "id": new_id(),
                "event_id": event.id,
                "user_id": notice.user_id,
                "channel": channel,
                "kind": notice.kind,
                "template": notice.template,
                "facts": notice.facts,
                "occurred_at": event.time,
                "state": state,
                "reason": reason,
                "next_attempt_at": min(event.time, datetime.now(UTC)) if state is State.PENDING else None,
            }
            rows.append(row)
        return rows


def _channels(kind: Kind, preference: Preference) -> ChosenChannels:
    return ChosenChannels(kind=kind, email=preference.email, sms=preference.sms)


def _data(event: Envelope) -> dict[str, Any]:
    data = data_of(event)
    return data.model_dump(mode="json") if data else {}


def _newest_contacts(read: Sequence[tuple[Envelope, dict[str, Any]]]) -> list[Contact]:
    """The newest contact of each person that these events tell of, in whatever order they came."""
    newest: dict[UUID, Contact] = {}
    for event, data in read:
        if event.type in CONTACT_TYPES:
            fields = {name: data[name] for name in Contact._fields if name in data}
            contact = Contact(**(fields | {"user_id": UUID(data["user_id"])}), sequence=event.sequence)
            if contact.user_id not in newest or newest[contact.user_id].sequence < contact.sequence:
                newest[contact.user_id] = contact
    return list(newest.values())
