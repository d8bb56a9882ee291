"""Work beside the requests: ending what a crash or an outage left open, forgetting old idempotency keys."""

import asyncio
import logging
from collections.abc import Collection
from typing import Final

from shared.http.context import enter_context
from transaction_service.domain import Type
from transaction_service.journal import Journal
from transaction_service.service import Transactions

POLL_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


async def sweep(transactions: Transactions, types: Collection[Type]) -> None:
    """Take up due transactions of these types until cancelled."""
    while True:
        enter_context()
        try:
            resumed = await transactions.resume_due(types)
        except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
            _log.warning("sweeper interrupted: %s: %s", type(error).__name__, error)
            resumed = 0
        if not resumed:
            await asyncio.sleep(POLL_SECONDS)


async def forget(journal: Journal) -> None:
    """Delete idempotency keys that are past their time, until cancelled."""
    while True:
        await asyncio.sleep(FORGET_SECONDS)
        try:
            await journal.forget_old_keys()
        except Exception as error:  # noqa: BLE001 - an outage of any kind is waited out
            _log.warning("old keys not deleted: %s: %s", type(error).__name__, error)
