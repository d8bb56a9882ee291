"""Work beside the requests goes on until it is told to end."""

import asyncio

import pytest

from shared.background import Worker, running
from shared.testing.waiting import eventually


async def fail() -> None:
    raise RuntimeError("a bug")


async def end_as_if_cancelled() -> None:
    raise asyncio.CancelledError


async def go_on() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("worker", [fail, end_as_if_cancelled])
async def test_a_worker_that_ends_by_itself_is_heard_of(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    async with running(worker):

        async def told() -> bool:
            return "a background worker has ended" in caplog.text

        await eventually(told)


async def test_a_worker_that_is_told_to_end_does_so_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async with running(go_on):
        await asyncio.sleep(0)

    assert caplog.text == ""
