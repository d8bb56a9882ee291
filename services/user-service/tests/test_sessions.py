"""Sessions: listed, ended one by one or together, and never too many."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from shared.auth import UserTokens
from shared.ids import new_id
from shared.redis import connect
from shared.settings import README_JWT_SECRET
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually
from user_service.app import create_app
from user_service.settings import UserSettings
from user_service.testing import HOME, Session, Somebody, event_of, somebody
from user_service.worker import KEPT_DAYS

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]


async def listed(session: Session) -> list[dict[str, Any]]:
    response = await session.call("GET", "/users/sessions")
    assert response.status_code == 200, response.text
    assert response.json()["has_more"] is False
    found: list[dict[str, Any]] = response.json()["data"]
    return found


def id_of(session: Session) -> UUID:
    return UserTokens(README_JWT_SECRET).verify(session.access).session_id


async def test_the_list_says_where_somebody_is_signed_in(client: httpx.AsyncClient) -> None:
    alice = await somebody(client)
    await (await somebody(client, "bob")).sign_in()
    phone = await alice.sign_in("2001:db8::7", "phone/2.1")
    laptop = await alice.sign_in(HOME, "laptop/1.0\x7f" + "x" * 300)

    found = await listed(laptop)

    assert [(item["ip"], item["user_agent"], item["current"]) for item in found] == [
        (HOME, ("laptop/1.0" + "x" * 300)[:200], True),
        ("2001:db8::7", "phone/2.1", False),
    ]
    assert [item["id"] for item in found] == [str(id_of(laptop)), str(id_of(phone))]
    assert found[0].keys() == {"id", "created_at", "last_used_at", "expires_at", "ip", "user_agent", "current"}
    assert [item["current"] for item in await listed(phone)] == [False, True]


async def test_a_refresh_brings_a_session_to_the_top_of_the_list_at_once(client: httpx.AsyncClient) -> None:
    alice = await somebody(client)
    first, second = await alice.sign_in(), await alice.sign_in()
    assert [item["id"] for item in await listed(first)] == [str(id_of(second)), str(id_of(first))]

    await first.refreshed()

    assert [item["id"] for item in await listed(first)] == [str(id_of(first)), str(id_of(second))]


async def test_the_list_comes_from_redis_until_a_session_changes(
    client: httpx.AsyncClient, sandbox: Sandbox, rows: Rows
) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    before = await listed(session)
    async with connect(sandbox.settings(UserSettings)) as redis:
        [key] = await keys_of(redis, sandbox, alice.id)
        assert 0 < await redis.ttl(key) <= 1800
    await rows("update sessions set user_agent = 'changed beside the service'")
    assert await listed(session) == before

    await alice.sign_in()

    assert {item["user_agent"] for item in await listed(session)} == {"changed beside the service", "tests/1.0"}


async def keys_of(redis: Redis, sandbox: Sandbox, user_id: str) -> list[bytes]:
    pattern = f"{sandbox.environment['REDIS_KEY_PREFIX']}session-list:{user_id}:*"
    return [key async for key in redis.scan_iter(match=pattern)]


async def test_a_broken_or_foreign_value_in_redis_is_as_good_as_none(
    client: httpx.AsyncClient, sandbox: Sandbox
) -> None:
    alice = await somebody(client)
    session = await alice.sign_in()
    before = await listed(session)
    async with connect(sandbox.settings(UserSettings)) as redis:
        [key] = await keys_of(redis, sandbox, alice.id)
        for value in (b"{", b'[{"id": 1}]', b"\xff"):
            await redis.set(key, value)
            assert await listed(session) == before


async def test_what_expired_since_the_list_was_kept_is_not_shown(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    old, session = await alice.sign_in(), await alice.sign_in()
    await rows("update sessions set expires_at = now() + interval '0.3 seconds' where id = $1", id_of(old))
    assert len(await listed(session)) == 2

    async def only_one() -> bool:
        return len(await listed(session)) == 1

    await eventually(only_one)
    assert [item["id"] for item in await listed(session)] == [str(id_of(session))]


async def test_logging_out_ends_the_callers_session_and_no_other(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    session, other = await alice.sign_in(), await alice.sign_in()

    response = await session.call("POST", "/users/logout")

    assert (response.status_code, response.content) == (204, b"")
    assert not await session.is_alive()
    assert (await session.try_refresh()).status_code == 401
    assert await other.is_alive()
    assert (await session.call("POST", "/users/logout")).status_code == 401
    [row] = await rows("select id, end_reason from sessions where ended_at is not null")
    assert (row["id"], row["end_reason"]) == (id_of(session), "logged_out")
    [told] = [event_of(row) for row in await rows("select payload from outbox where payload like '%sessions_ended%'")]
    assert told == {
        "type": "users.sessions_ended.v1",
        "sequence": 4,
        "actor": alice.id,
        "data": {"user_id": alice.id, "session_ids": [str(id_of(session))], "reason": "logged_out"},
    }


async def test_somebody_can_end_a_session_elsewhere(client: httpx.AsyncClient) -> None:
    alice = await somebody(client)
    here, there = await alice.sign_in(), await alice.sign_in()

    response = await here.call("DELETE", f"/users/sessions/{id_of(there)}")

    assert (response.status_code, response.content) == (204, b"")
    assert not await there.is_alive()
    assert await here.is_alive()
    assert [item["id"] for item in await listed(here)] == [str(id_of(here))]


async def test_a_session_that_is_anothers_or_over_or_none_is_the_same_404(client: httpx.AsyncClient) -> None:
    alice, bob = await somebody(client), await somebody(client, "bob")
    mine, over, theirs = await alice.sign_in(), await alice.sign_in(), await bob.sign_in()
    await over.call("POST", "/users/logout")

    bodies = []
    for session_id in (id_of(theirs), id_of(over), new_id()):
        response = await mine.call("DELETE", f"/users/sessions/{session_id}")
        assert response.status_code == 404
        problem = response.json()
        assert problem.pop("request_id")
        assert problem.pop("instance").endswith(str(session_id))
        bodies.append(problem)

    assert bodies == [bodies[0]] * 3
    assert bodies[0]["code"] == "session_not_found"
    assert await theirs.is_alive()


async def test_nobody_has_more_than_fifty_sessions_and_the_one_unused_for_longest_ends(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)
    first, second = await alice.sign_in(), await alice.sign_in()
    first = await first.refreshed()
    for _ in range(48):
        await alice.sign_in()
    assert await second.is_alive()

    await asyncio.gather(*(alice.sign_in() for _ in range(3)))

    [count] = await rows("select count(*) as live from sessions where ended_at is null")
    assert count["live"] == 50
    assert not await second.is_alive()
    reasons = {row["end_reason"] for row in await rows("select end_reason from sessions where ended_at is not null")}
    assert reasons == {"too_many"}


async def test_a_sign_in_is_told_of_and_says_whether_the_device_is_new(client: httpx.AsyncClient, rows: Rows) -> None:
    alice = await somebody(client)
    places = [(HOME, "laptop"), (HOME, "laptop"), (HOME, "phone"), ("198.51.100.9", "laptop"), (HOME, "phone")]
    for address, agent in places:
        await alice.sign_in(address, agent)

    told = [event_of(row) for row in await rows("select payload from outbox order by position")][1:]

    assert [event["data"]["new_device"] for event in told] == [False, False, True, True, False]
    assert [event["sequence"] for event in told] == [2, 3, 4, 5, 6]
    [last] = await rows("select id from sessions order by created_at desc limit 1")
    assert told[-1] == {
        "type": "users.signed_in.v1",
        "sequence": 6,
        "actor": alice.id,
        "data": {
            "user_id": alice.id,
            "session_id": str(last["id"]),
            "ip": HOME,
            "user_agent": "phone",
            "new_device": False,
        },
    }


async def test_thirty_sign_ins_and_outs_at_once_leave_no_gap_in_the_events(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)

    async def in_and_out() -> None:
        session = await alice.sign_in()
        await session.refreshed()
        assert (await session.call("POST", "/users/logout")).status_code == 204

    await asyncio.gather(*(in_and_out() for _ in range(30)))

    told = [event_of(row)["sequence"] for row in await rows("select payload from outbox order by position")]
    assert told == list(range(1, 62))
    [row] = await rows("select event_sequence, sessions_version from users")
    assert (row["event_sequence"], row["sessions_version"]) == (61, 90)


async def test_without_redis_sessions_begin_are_listed_and_end(sandbox: Sandbox) -> None:
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4, redis_port=1, kafka_bootstrap_servers="127.0.0.1:1")
    async with in_process(create_app(settings)) as client:
        alice = await somebody(client, "ruth")
        session, other = await alice.sign_in(), await alice.sign_in()
        assert len(await listed(session)) == 2
        await other.call("POST", "/users/logout")
        assert [item["id"] for item in await listed(session)] == [str(id_of(session))]
        assert not await other.is_alive()
        health = (await client.get("/health")).json()
        assert (health["status"], health["dependencies"]["redis"]) == ("degraded", "down")


async def test_sessions_that_were_over_three_months_ago_are_forgotten(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)
    kept = [await alice.sign_in() for _ in range(3)]
    gone = [await alice.sign_in() for _ in range(2)]
    [live, ended, expired], [long_ended, long_expired] = map(id_of, kept), map(id_of, gone)
    long_ago, recently = (datetime.now(UTC) - timedelta(days=KEPT_DAYS + days) for days in (1, -1))
    move = "update sessions set access_until = $2, {} = $2 where id = $1"
    await rows(move.format("ended_at"), ended, recently)
    await rows(move.format("expires_at"), expired, recently)
    await rows(move.format("ended_at"), long_ended, long_ago)
    await rows(move.format("expires_at"), long_expired, long_ago)

    async with in_process(create_app(sandbox.settings(UserSettings, kafka_bootstrap_servers="127.0.0.1:1"))):

        async def forgotten() -> bool:
            return len(await rows("select id from sessions")) == 3

        await eventually(forgotten)

    assert {row["id"] for row in await rows("select id from sessions")} == {live, ended, expired}


async def test_an_end_matters_for_as_long_as_the_longest_access_token_lives(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    async def until() -> float:
        [row] = await rows("select extract(epoch from access_until - now())::float as seconds from sessions")
        return float(row["seconds"])

    alice = await somebody(client)
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4, access_token_expire_minutes=60, mongo_port=1)
    async with in_process(create_app(settings)) as longer:
        session = await Somebody(longer, alice.id, alice.email).sign_in()
    assert 3600 < await until() < 3660

    response = await client.post("/users/refresh", json={"refresh_token": session.refresh})

    assert response.json()["expires_in"] == 900
    assert 3590 < await until() < 3660  # by a process that issues shorter ones
