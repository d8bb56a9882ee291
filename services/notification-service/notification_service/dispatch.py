"""Delivering what is due: taken by a lease, handed over once, and written down at once."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.ext.asyncio import AsyncSession

from notification_service import queries
from notification_service.delivery import Delivery, DeliveryError
from notification_service.domain import LEAST_ATTEMPTS, Channel, Contact, State, pause_seconds, reason_to_skip
from notification_service.letters import Message
from notification_service.metrics import DeliveryMetrics
from notification_service.queries import WAITS_FOR_CONTACT, Due
from shared.database import Database
from shared.errors import UnavailableError

BATCH: Final = 8
LEASE_SECONDS: Final = 60.0  # more than an attempt and the word of it can take
RECORD_SECONDS: Final = 30.0
RECORD_PAUSE_SECONDS: Final = 0.2
CONTACT_WAIT_SECONDS: Final = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Retries:
    """Pauses between attempts, from the first to the longest, and the age at which a notification is given up."""

    first_seconds: float
    longest_seconds: float
    give_up_seconds: float

    def pause(self, attempts: int) -> float:
        """Seconds to wait after so many attempts, by chance more or less."""
        return pause_seconds(attempts, self.first_seconds, self.longest_seconds, random.random())  # noqa: S311


@dataclass(frozen=True, slots=True)
class Round:
    """What was taken up at once; `trouble` says why any other would have failed as well."""

    taken: int
    trouble: str | None


class Dispatcher:
    """Delivers notifications; any number of processes may do so at once."""

    def __init__(
        self, database: Database, deliveries: Mapping[Channel, Delivery], retries: Retries, metrics: DeliveryMetrics
    ) -> None:
        self._database = database
        self._deliveries = deliveries
        self._retries = retries
        self._metrics = metrics

    async def deliver_due(self, channel: Channel) -> Round:
        """Take up to `BATCH` due notifications, all at a time."""
        async with self._database.transaction() as session:
            taken = await queries.take_due(session, channel, BATCH, LEASE_SECONDS)
            contacts = await queries.contacts(session, {due.user_id for due in taken}) if taken else {}
        self._metrics.late.labels(channel).set(max((due.late_seconds for due in taken), default=0.0))
        troubles = await asyncio.gather(*(self._attend(channel, due, contacts.get(due.user_id)) for due in taken))
        return Round(len(taken), next(filter(None, troubles), None))

    async def _attend(self, channel: Channel, due: Due, contact: Contact | None) -> str | None:
        """Deliver one notification, or say why not; the trouble that others would have had, too."""
        if contact is None:
            await self._put_off(channel, due, WAITS_FOR_CONTACT, CONTACT_WAIT_SECONDS)
            return None
        skipped = reason_to_skip(due.kind, channel, contact)
        if skipped is not None:
            await self._end(channel, due, State.SKIPPED, skipped)
            return None
        try:
            await self._deliveries[channel].send(_message(due, contact))
        except DeliveryError as error:
            if error.final:
                await self._end(channel, due, State.FAILED, error.reason)
            else:
                await self._put_off(channel, due, error.reason, self._retries.give_up_seconds)
            return _for_the_log(error) if error.at_large else None
        except Exception:  # noqa: BLE001 - a message that nobody can write or send must not keep the others
            _log.exception("notification not sent", extra={"notification_id": str(due.id), "channel": channel})
            await self._put_off(channel, due, "internal_error", self._retries.give_up_seconds)
            return None
        # From here to the commit, a crash sends the message again: nothing may come between.
        await _recorded(self._database, lambda session: queries.end_as_sent(session, due))
        self._count(channel, State.SENT)
        return None

    async def _put_off(self, channel: Channel, due: Due, reason: str, give_up_seconds: float) -> None:
        if due.age_seconds >= give_up_seconds and due.attempt >= LEAST_ATTEMPTS:
            await self._end(channel, due, State.FAILED, reason)
            return
        pause = self._retries.pause(due.attempt)
        await _recorded(self._database, lambda session: queries.put_off(session, due, reason, pause))
        self._count(channel, "put_off")

    async def _end(self, channel: Channel, due: Due, state: State, reason: str) -> None:
        await _recorded(self._database, lambda session: queries.end(session, due, state, reason))
        self._count(channel, state)
        if state is State.FAILED:
            _log.warning(
                "notification given up",
                extra={"notification_id": str(due.id), "channel": channel, "kind": due.kind, "reason": reason},
            )

    def _count(self, channel: Channel, outcome: str) -> None:
        self._metrics.attempts.labels(channel, outcome).inc()


async def _recorded(database: Database, write: Callable[[AsyncSession], Awaitable[bool]]) -> None:
    """Write something down, through an outage of the database that is shorter than the lease."""
    ends_at = time.monotonic() + RECORD_SECONDS
    while True:
        try:
            async with database.transaction() as session:
                await write(session)
        except (OSError, UnavailableError):
            if time.monotonic() >= ends_at:
                raise
            await asyncio.sleep(RECORD_PAUSE_SECONDS)
        else:
            return


def _for_the_log(error: DeliveryError) -> str:
    """What whoever runs the service has to know; nothing in it is about one person."""
    cause = error.__cause__
    return f"{error.reason}: {type(cause).__name__}: {cause}" if cause else error.reason


def _message(due: Due, contact: Contact) -> Message:
    return Message(
        id=due.id,
        event_id=due.event_id,
        kind=due.kind,
        template=due.template,
        facts=due.facts,
        occurred_at=due.occurred_at,
        created_at=due.created_at,
        contact=contact,
    )
