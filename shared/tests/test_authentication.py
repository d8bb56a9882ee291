"""Callers are known by their header: verified once, remembered while it counts, refused once they are out."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated
from uuid import UUID

import pytest
from fastapi import FastAPI, Header
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from starlette.responses import JSONResponse, Response

from shared.auth import Principal, ServiceTokens, UserTokens
from shared.authentication import Authenticator, SessionChecks, following
from shared.errors import UnauthorizedError
from shared.http.client import ServiceClient
from shared.ids import new_id
from shared.metrics import SessionMetrics
from shared.redis import connect
from shared.sessions import HEARTBEAT, Ended, EndedSessions, Names, encode
from shared.settings import Settings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import serving
from shared.testing.waiting import eventually

SECRET = "a-secret-of-thirty-two-bytes-or-more"


class CountedTokens(UserTokens):
    """Counts what costs cryptography."""

    verified = 0

    def verify(self, token: str) -> Principal:
        self.verified += 1
        return super().verify(token)


@dataclass
class UserService:
    """What answers `/internal/sessions/{id}` in place of user-service, and how often it was asked."""

    url: str = ""
    ended: set[UUID] = field(default_factory=set)
    asked: list[UUID] = field(default_factory=list)
    status: int = 200


@dataclass
class Place:
    """An authenticator with all that it needs; `tell` plays user-service's part in Redis."""

    authenticator: Authenticator
    tokens: CountedTokens
    users: UserService
    redis: Redis
    names: Names
    registry: CollectorRegistry

    async def begin(self) -> None:
        """Say that the set of ended sessions is whole."""
        await self.redis.set(self.names.complete, 1)

    async def beat(self) -> None:
        await self.redis.publish(self.names.channel, HEARTBEAT)

    async def end(self, session_id: UUID) -> None:
        await self.redis.publish(self.names.channel, encode([Ended(session_id, time.time() + 60)]))

    async def fresh(self, authorization: str) -> None:
        """Wait until the feed is followed; its header has to be known."""

        async def recognised() -> Principal | None:
            await self.beat()
            return self.authenticator.recognise(authorization)

        await eventually(recognised)

    def counted(self, answer: str) -> float:
        return self.registry.get_sample_value("session_checks_total", {"answer": answer}) or 0.0


def bearer(session_id: UUID | None = None, seconds: int = 900) -> str:
    return f"Bearer {UserTokens(SECRET, seconds).issue(new_id(), 'user', session_id or new_id())}"


@pytest.fixture
async def users() -> AsyncIterator[UserService]:
    stand_in, app = UserService(), FastAPI()

    @app.get("/internal/sessions/{session_id}")
    async def look(session_id: UUID, authorization: Annotated[str, Header()]) -> Response:
        assert ServiceTokens(SECRET, "user-service").verify(authorization.removeprefix("Bearer ")) == "gateway"
        stand_in.asked.append(session_id)
        return JSONResponse({"ended": session_id in stand_in.ended}, stand_in.status)

    async with serving(app) as url:
        stand_in.url = url
        yield stand_in


@pytest.fixture
async def place(sandbox: Sandbox, users: UserService) -> AsyncIterator[Place]:
    settings = sandbox.settings(Settings, redis_key_prefix=f"test-{new_id()}:")
    async with a_place(settings, users) as place:
        yield place
        await place.redis.delete(*place.names)


@asynccontextmanager
async def a_place(settings: Settings, users: UserService, size: int = 16_384) -> AsyncIterator[Place]:
    tokens, registry = CountedTokens(SECRET), CollectorRegistry()
    checks = SessionChecks(ServiceClient("user-service", users.url, ServiceTokens(SECRET, "gateway")))
    authenticator = Authenticator(settings, tokens, checks, SessionMetrics(registry), size)
    async with connect(settings) as redis, following(authenticator):
        yield Place(authenticator, tokens, users, redis, Names.of(settings), registry)


async def test_a_header_that_was_verified_is_recognised_and_costs_no_more_cryptography(place: Place) -> None:
    authorization = bearer()
    assert place.authenticator.recognise(authorization) is None
    caller = await place.authenticator.authenticate(authorization)
    await place.begin()
    await place.fresh(authorization)

    for _ in range(100):
        assert place.authenticator.recognise(authorization) is caller
        assert await place.authenticator.authenticate(authorization) is caller

    assert place.tokens.verified == 1


async def test_a_header_that_was_never_verified_is_not_recognised(place: Place) -> None:
    known = bearer()
    await place.authenticator.authenticate(known)
    await place.begin()
    await place.fresh(known)

    for stranger in ("", "Bearer", known[:-1], known + " ", bearer()):
        assert place.authenticator.recognise(stranger) is None


async def test_each_header_speaks_for_its_own_person(place: Place) -> None:
    people = [new_id() for _ in range(3)]
    headers = [f"Bearer {UserTokens(SECRET).issue(person, 'user', new_id())}" for person in people]

    for _ in range(2):
        assert [(await place.authenticator.authenticate(header)).user_id for header in headers] == people


async def test_a_token_within_the_leeway_counts_and_is_not_remembered(place: Place) -> None:
    expired = bearer(seconds=-5)

    for _ in range(3):
        await place.authenticator.authenticate(expired)

    assert place.tokens.verified == 3
    assert place.authenticator.recognise(expired) is None


async def test_a_remembered_header_is_verified_again_once_it_has_expired(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorization = bearer(seconds=60)
    await place.authenticator.authenticate(authorization)
    await place.begin()
    await place.fresh(authorization)
    now = time.time()

    monkeypatch.setattr(time, "time", lambda: now + 58)
    assert place.authenticator.recognise(authorization) is not None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert place.authenticator.recognise(authorization) is None
    await place.authenticator.authenticate(authorization)
    assert place.tokens.verified == 2


async def test_a_forged_header_is_never_remembered(place: Place) -> None:
    forged = bearer()[:-2]

    for _ in range(3):
        with pytest.raises(UnauthorizedError):
            await place.authenticator.authenticate(forged)

    assert place.tokens.verified == 3
    assert place.users.asked == []


async def test_no_more_headers_than_the_limit_are_remembered_and_the_oldest_go_first(
    sandbox: Sandbox, users: UserService
) -> None:
    async with a_place(sandbox.settings(Settings), users, size=2) as place:
        first, second, third = (bearer() for _ in range(3))
        for authorization in (first, second, third, third, second):
            await place.authenticator.authenticate(authorization)
        assert place.tokens.verified == 3

        await place.authenticator.authenticate(first)

        assert place.tokens.verified == 4


async def test_an_end_that_is_told_takes_effect_at_once_for_all_tokens_of_the_session(place: Place) -> None:
    session_id = new_id()
    tokens, other = [bearer(session_id) for _ in range(3)], bearer()
    for authorization in (*tokens, other):
        await place.authenticator.authenticate(authorization)
    await place.begin()
    await place.fresh(other)

    await place.end(session_id)

    async def out() -> bool:
        await place.beat()
        return place.authenticator.recognise(tokens[0]) is None

    await eventually(out, limit_seconds=1.0)
    for authorization in (*tokens, bearer(session_id)):
        assert place.authenticator.recognise(authorization) is None
        with pytest.raises(UnauthorizedError):
            await place.authenticator.authenticate(authorization)
    assert place.authenticator.recognise(other) is not None


async def test_a_process_that_starts_reads_who_has_ended_before(place: Place, sandbox: Sandbox) -> None:
    session_ids = [new_id() for _ in range(1200)]
    await place.redis.zadd(place.names.ended, {str(session_id): time.time() + 60 for session_id in session_ids})
    known = bearer()
    await place.authenticator.authenticate(known)
    await place.begin()
    await place.fresh(known)
    asked = len(place.users.asked)

    for session_id in (session_ids[0], session_ids[-1]):
        with pytest.raises(UnauthorizedError):
            await place.authenticator.authenticate(bearer(session_id))
    assert len(place.users.asked) == asked


async def test_without_a_whole_set_a_heartbeat_makes_nothing_fresh(place: Place) -> None:
    authorization = bearer()
    await place.authenticator.authenticate(authorization)
    marked = bearer()
    await place.authenticator.authenticate(marked)
    for _ in range(20):
        await place.beat()
        await asyncio.sleep(0.01)
        assert place.authenticator.recognise(authorization) is None

    await place.begin()
    await place.fresh(marked)
    assert place.registry.get_sample_value("session_feed_fresh") == 1


async def test_without_heartbeats_nobody_is_recognised_and_user_service_is_asked_once_in_five_seconds(
    place: Place,
) -> None:
    authorization, session_id = bearer(live := new_id()), new_id()
    await place.authenticator.authenticate(authorization)
    await place.begin()
    await place.fresh(authorization)
    place.users.asked.clear()
    place.users.ended.add(session_id)

    async def stale() -> bool:
        return place.authenticator.recognise(authorization) is None

    await eventually(stale, limit_seconds=1.5)
    assert place.registry.get_sample_value("session_feed_fresh") == 0
    await asyncio.gather(*(place.authenticator.authenticate(bearer(live)) for _ in range(50)))
    for _ in range(3):
        with pytest.raises(UnauthorizedError):
            await place.authenticator.authenticate(bearer(session_id))
    assert sorted(place.users.asked) == sorted([session_id])  # `live` was asked about within these five seconds

    await place.fresh(authorization)  # and by itself all is well again


async def test_questions_about_one_session_at_once_are_one(place: Place) -> None:
    session_id = new_id()

    await asyncio.gather(*(place.authenticator.authenticate(bearer(session_id)) for _ in range(50)))

    assert place.users.asked == [session_id]
    assert place.counted("live") == 50


async def test_a_caller_who_leaves_takes_nobody_along(place: Place) -> None:
    session_id = new_id()
    asking = [asyncio.create_task(place.authenticator.authenticate(bearer(session_id))) for _ in range(3)]
    await asyncio.sleep(0)

    asking[0].cancel()
    answers = await asyncio.gather(*asking, return_exceptions=True)

    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer.session_id for answer in answers[1:] if isinstance(answer, Principal)] == [session_id] * 2


async def test_what_nobody_can_say_counts_is_counted_and_costs_no_more_questions_for_a_second(place: Place) -> None:
    place.users.status = 503
    known_as_ended = new_id()
    await place.begin()
    await place.redis.zadd(place.names.ended, {str(known_as_ended): time.time() + 60})

    async def refused() -> bool:
        await place.beat()
        try:
            await place.authenticator.authenticate(bearer(known_as_ended))
        except UnauthorizedError:
            return True
        return False

    await eventually(refused)

    async def stale() -> bool:
        return place.registry.get_sample_value("session_feed_fresh") == 0

    await eventually(stale)
    place.users.asked.clear()
    before = place.counted("unanswered")
    for _ in range(10):
        await place.authenticator.authenticate(bearer())
    assert place.counted("unanswered") - before == 10
    assert len(place.users.asked) == 1
    with pytest.raises(UnauthorizedError):
        await place.authenticator.authenticate(bearer(known_as_ended))


async def test_the_map_of_ended_sessions_is_bounded_and_says_so_when_it_is_not_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = time.time()
    ended = EndedSessions(size=3)
    ids = [new_id() for _ in range(5)]
    for number, session_id in enumerate(ids[:3]):
        ended.add(Ended(session_id, now + 10 + number))
    assert ended.complete

    ended.add(Ended(ids[3], now + 20))
    assert (len(ended), ended.complete, ids[3] in ended) == (3, False, False)

    monkeypatch.setattr(time, "time", lambda: now + 21)
    assert ended.complete
    ended.add(Ended(ids[4], now + 30))
    assert (len(ended), ids[4] in ended, ids[0] in ended) == (1, True, False)


def test_recognising_costs_less_than_two_microseconds() -> None:
    settings = Settings(_env_file=None)
    checks = SessionChecks(ServiceClient("user-service", "http://127.0.0.1:1", ServiceTokens(SECRET, "gateway")))
    authenticator = Authenticator(settings, UserTokens(SECRET), checks, SessionMetrics(CollectorRegistry()))
    raw = bearer().encode()
    principal = UserTokens(SECRET).verify(raw.decode().removeprefix("Bearer "))
    authenticator._remembered.keep(raw.decode(), principal)
    authenticator._feed.fresh_until = time.monotonic() + 60
    headers = [raw.decode() for _ in range(10_000)]  # each with a hash that is yet to be computed, as they come

    def round_of() -> float:
        began = time.perf_counter()
        for header in headers:
            assert authenticator.recognise(header) is not None
        return (time.perf_counter() - began) / len(headers)

    assert min(round_of() for _ in range(3)) < 2e-6
