"""Work beside the requests: started and stopped with the service."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Worker = Callable[[], Awaitable[None]]

_log = logging.getLogger(__name__)


@asynccontextmanager
async def running(*workers: Worker) -> AsyncIterator[None]:
    """Run each worker as a task for the length of the block, then cancel it and wait for its end."""
    tasks = [asyncio.create_task(_run(worker)) for worker in workers]
    for task in tasks:
        task.add_done_callback(_report_end)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _run(worker: Worker) -> None:
    await worker()


def stop_if_cancelled() -> None:
    """Raise the CancelledError that a library has lost, for workers that go on after any error.

    `asyncio.wait_for` of Python 3.11, which redis-py sends with, loses one that comes as its work is done.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _report_end(task: asyncio.Task[None]) -> None:
    """A worker runs until it is cancelled; one that ends by itself is a bug that somebody has to hear of.

    Also one that ends as if it had been cancelled, by an error of that kind that a library has let out.
    """
    if not task.cancelled():
        _log.critical("a background worker has ended", exc_info=task.exception())
    elif not task.cancelling():
        _log.critical("a background worker has ended: nobody has cancelled it")
