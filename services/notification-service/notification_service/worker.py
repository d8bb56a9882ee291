"""Work beside the requests: sending what is due."""

import asyncio
import contextlib
import logging
import time
from typing import Final

from notification_service.dispatch import Dispatcher, Round
from notification_service.domain import Channel
from notification_service.service import FORGET_BATCH, Notifications
from shared.background import stop_if_cancelled
from shared.http.context import enter_context

POLL_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 60.0
LONGEST_PAUSE_SECONDS: Final = 30.0
LAST_ROUND_SECONDS: Final = 12.0  # what has begun is ended when the service stops; an attempt takes 10 s at most

_log = logging.getLogger(__name__)


async def deliver(dispatcher: Dispatcher, channel: Channel, arrival: asyncio.Event, per_second: int) -> None:
    """Deliver what is due by this channel until cancelled, at most so many a second.

    While nothing gets through, one round is tried now and then, and the log says so once.
    """
    trouble: str | None = None
    pause = POLL_SECONDS
    while True:
        enter_context()
        arrival.clear()
        began = time.monotonic()
        done = await _round(dispatcher, channel)
        if done.trouble != trouble and (done.taken or done.trouble):
            if done.trouble:
                _log.warning("%s cannot be sent: %s", channel, done.trouble)
            else:
                _log.info("%s can be sent again", channel)
            trouble, pause = done.trouble, POLL_SECONDS
        if trouble:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        elif done.taken:
            await asyncio.sleep(began + done.taken / per_second - time.monotonic())
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await arrival.wait()


async def forget(notifications: Notifications, keep_days: int) -> None:
    """Delete what is older than so many days, until cancelled."""
    while True:
        enter_context()
        try:
            deleted = await notifications.forget_old(keep_days)
        except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
            _log.warning("old notifications not deleted: %s: %s", type(error).__name__, error)
            deleted = 0
        if deleted < FORGET_BATCH:
            await asyncio.sleep(FORGET_SECONDS)


async def _round(dispatcher: Dispatcher, channel: Channel) -> Round:
    """One round, to its end even when cancelled: what was accepted has to be written down."""
    task = asyncio.ensure_future(dispatcher.deliver_due(channel))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=LAST_ROUND_SECONDS)
        task.cancel()
        raise
    except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
        stop_if_cancelled()
        return Round(0, type(error).__name__)
