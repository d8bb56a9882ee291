"""Follow-up: asks providers again about what waits for them."""

import asyncio
import logging
from typing import Final

from payment_gateway.service import Payments
from shared.http.context import enter_context

POLL_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


async def follow_up(payments: Payments, provider: str) -> None:
    """Take up due payments at this provider until cancelled."""
    while True:
        enter_context()
        try:
            followed = await payments.follow_up_due(provider)
        except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
            _log.warning("follow-up interrupted: %s: %s", type(error).__name__, error)
            followed = 0
        if not followed:
            await asyncio.sleep(POLL_SECONDS)
