"""The broker, MongoDB and the mail server go away under load: money does not notice, all of it is told once.

What the broker of `make up` holds is gone when it ends, in whatever way. `make up` then publishes what the audit has,
beside what the relays publish, and there is no order between the two. While the broker has it all, there is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tests.faults.conftest import Place
from tests.faults.crowd import Crowd, crowd_at

BEFORE: Final = 30  # payments
MEANWHILE: Final = 120
AFTERWARDS: Final = 30
NEVER: Final = "9999"


@asynccontextmanager
async def load_at(place: Place) -> AsyncIterator[Crowd]:
    """A crowd that has begun when the block begins, and goes on for a while after it."""
    async with crowd_at(place.gateway) as crowd:
        await crowd.grown(BEFORE)
        yield crowd
        await crowd.grown(AFTERWARDS)


async def assert_nothing_lost(place: Place, crowd: Crowd, *, in_order: bool = True) -> None:
    """Money was never refused, every change was told, in order, and every mail has come, none twice."""
    await place.records.assert_money_is_right(crowd)
    await place.records.assert_quiet()
    await place.records.assert_told_once()
    await place.records.assert_published(ordered_since=crowd.began if in_order else NEVER)
    await place.records.assert_mailed(place.mail)


async def test_a_broker_that_is_out_for_a_while_and_keeps_what_it_has(place: Place) -> None:
    async with load_at(place) as crowd, place.broker.out():
        await crowd.grown(MEANWHILE)
        await place.records.more_than(MEANWHILE, "not published and audited")

    await assert_nothing_lost(place, crowd)


@pytest.mark.parametrize("ends", ["stop", "kill"])
async def test_a_broker_that_ends_and_starts_again(place: Place, ends: str) -> None:
    async with load_at(place) as crowd:
        await getattr(place.broker, ends)()
        await crowd.grown(MEANWHILE)
        await place.records.more_than(MEANWHILE, "not published and audited")
        await place.broker.start()

    await assert_nothing_lost(place, crowd, in_order=place.broker.keeps)


@pytest.mark.parametrize("ends", ["stop", "kill"])
async def test_a_mongodb_that_ends_and_starts_again(place: Place, ends: str) -> None:
    async with load_at(place) as crowd:
        await getattr(place.mongo, ends)()
        await crowd.grown(MEANWHILE)
        await place.records.more_than(MEANWHILE, "published and not audited")
        await place.mongo.start()

    await assert_nothing_lost(place, crowd)


async def test_a_mail_server_that_is_away_for_a_while(place: Place) -> None:
    async with load_at(place) as crowd:
        await place.mail.stop()
        await crowd.grown(MEANWHILE)
        await place.records.more_unsent_than(MEANWHILE)
        await place.mail.start()

    await assert_nothing_lost(place, crowd)


async def test_a_mail_server_that_is_killed_between_taking_a_mail_and_saying_so(place: Place) -> None:
    before = place.mail.unanswered()
    async with load_at(place) as crowd:
        await place.mail.kill_within_a_mail()
        await crowd.grown(MEANWHILE)
        await place.mail.start()

    await assert_nothing_lost(place, crowd)
    assert len(place.mail.unanswered()) == len(before) + 1


async def test_all_of_them_at_once_while_the_relays_lose_their_leadership(place: Place) -> None:
    async with load_at(place) as crowd:
        await place.mail.kill_within_a_mail()
        await place.mongo.kill()
        async with place.broker.out(), place.records.leaders_ended():
            await crowd.grown(MEANWHILE)
            await place.records.more_than(MEANWHILE, "not published and not audited")
        await place.mongo.start()
        await place.mail.start()

    await assert_nothing_lost(place, crowd)
