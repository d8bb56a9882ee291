"""Refresh tokens: each is used once, its successor is the same for all who ask in time, a copy ends the session."""

import asyncio
import base64
import hmac
import re
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import FastAPI

from shared.settings import README_JWT_SECRET
from shared.signing_keys import new_pair
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from user_service.app import create_app
from user_service.domain import InvalidRefreshTokenError
from user_service.refresh_tokens import RefreshTokens
from user_service.settings import UserSettings
from user_service.testing import Session, event_of, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]


def assert_refused(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
    assert response.headers["www-authenticate"] == "Bearer"
    assert "token" not in response.json()


async def later(rows: Rows, seconds: float) -> None:
    """The last rotation is moved into the past."""
    await rows("update sessions set rotated_at = rotated_at - make_interval(secs => $1)", seconds)


async def test_a_refresh_token_brings_the_next_tokens_of_the_same_session(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    first = await (await somebody(client)).sign_in()

    response = await first.try_refresh()

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    assert answer.keys() == {"access_token", "refresh_token", "token_type", "expires_in"}
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 900)
    assert answer["refresh_token"] != first.refresh
    second = Session(client, first.user_id, answer["access_token"], answer["refresh_token"])
    assert await second.is_alive()
    assert await first.is_alive()  # its access token is no older than fifteen minutes
    assert [row["generation"] for row in await rows("select generation from sessions")] == [2]


async def test_a_token_is_opaque_text_of_one_length(client: httpx.AsyncClient) -> None:
    session = await (await somebody(client)).sign_in()

    for _ in range(3):
        assert re.fullmatch(r"[A-Za-z0-9_-]{75}", session.refresh)
        session = await session.refreshed()


async def test_a_session_lives_thirty_days_from_its_last_refresh(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()
    await rows(
        "update sessions set expires_at = now() + interval '1 hour', last_used_at = now() - interval '29 days'"
    )

    await session.refreshed()

    [row] = await rows("select expires_at, last_used_at, created_at, rotated_at from sessions")
    assert abs(row["expires_at"] - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=1)
    assert row["last_used_at"] == row["rotated_at"] > row["created_at"]


async def test_a_session_that_nobody_refreshed_is_over(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()
    await rows("update sessions set expires_at = now() - interval '1 second'")

    assert_refused(await session.try_refresh())

    assert [row["generation"] for row in await rows("select generation from sessions")] == [1]


async def test_of_fifty_refreshes_at_once_all_get_the_same_successor(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()

    answers = await asyncio.gather(*(session.try_refresh() for _ in range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    [row] = await rows("select generation, ended_at from sessions")
    assert (row["generation"], row["ended_at"]) == (2, None)


@pytest.mark.parametrize("seconds", [0, 5, 9])
async def test_within_ten_seconds_the_token_before_brings_its_successor_again(
    client: httpx.AsyncClient, rows: Rows, seconds: int
) -> None:
    first = await (await somebody(client)).sign_in()
    second = await first.refreshed()
    await later(rows, seconds)

    again = await first.refreshed()

    assert again.refresh == second.refresh
    assert (await again.refreshed()).refresh == (await second.refreshed()).refresh


async def test_after_ten_seconds_the_token_before_is_a_copy_and_the_session_ends(
    client: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(client)
    first, elsewhere = await alice.sign_in(), await alice.sign_in()
    second = await first.refreshed()
    await later(rows, 11)
    await rows("truncate outbox")

    assert_refused(await first.try_refresh())

    for session in (first, second):
        assert not await session.is_alive()
    assert_refused(await second.try_refresh())
    assert await elsewhere.is_alive()
    told = [event_of(row) for row in await rows("select payload from outbox order by position")]
    assert [(event["type"], event["sequence"]) for event in told] == [
        ("users.session_reused.v1", 4),
        ("users.sessions_ended.v1", 5),
    ]
    [row] = await rows("select id, end_reason from sessions where ended_at is not null")
    assert row["end_reason"] == "reused"
    assert told[0]["data"]["session_id"] == str(row["id"])
    assert told[1]["data"] == {"user_id": alice.id, "session_ids": [str(row["id"])], "reason": "reused"}


async def test_a_token_two_rotations_old_is_a_copy_at_once(client: httpx.AsyncClient) -> None:
    first = await (await somebody(client)).sign_in()
    second = await first.refreshed()
    third = await second.refreshed()

    assert_refused(await first.try_refresh())

    assert not await third.is_alive()
    assert_refused(await third.try_refresh())


async def test_a_copy_is_told_of_once(client: httpx.AsyncClient, rows: Rows) -> None:
    first = await (await somebody(client)).sign_in()
    await (await first.refreshed()).refreshed()

    answers = await asyncio.gather(*(first.try_refresh() for _ in range(10)))

    assert {answer.status_code for answer in answers} == {401}
    told = await rows("select payload from outbox where payload like '%session_reused%'")
    assert len(told) == 1


def test_a_token_has_one_spelling() -> None:
    tokens = RefreshTokens(README_JWT_SECRET.encode())
    token = base64.urlsafe_b64encode(b"\xff" * 56).rstrip(b"=").decode()
    assert tokens.read(token).generation == 2**64 - 1

    for last in "9+/-_":  # the same four bits, and others in the two that nobody reads
        with pytest.raises(InvalidRefreshTokenError):
            tokens.read(token[:-1] + last)
    with pytest.raises(InvalidRefreshTokenError):
        tokens.read(token.replace("_", "/"))


async def test_garbage_ends_nothing(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()
    before = await rows("select * from sessions")
    flipped = session.refresh[:-8] + ("A" if session.refresh[-8] != "A" else "B") + session.refresh[-7:]
    decoded = base64.urlsafe_b64decode(session.refresh + "=")
    other_generation = decoded[:16] + (0).to_bytes(8) + decoded[24:]

    for garbage in (
        "x",
        "A" * 75,
        "A" * 200,
        flipped,
        session.refresh.lower(),
        session.refresh[:-1] + "=",
        session.refresh[:-1] + "+",
        "é" * 75,
        session.access[:200],
        base64.urlsafe_b64encode(other_generation).rstrip(b"=").decode(),
    ):
        assert_refused(await client.post("/users/refresh", json={"refresh_token": garbage}))

    assert await rows("select * from sessions") == before
    assert await session.is_alive()
    assert (await session.try_refresh()).status_code == 200


@pytest.mark.parametrize(
    "body", [{}, {"refresh_token": ""}, {"refresh_token": None}, {"refresh_token": 7}, {"refresh_token": "A" * 201}]
)
async def test_a_refresh_of_another_shape_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    response = await client.post("/users/refresh", json=body)

    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


async def test_whoever_reads_the_database_cannot_make_a_token(client: httpx.AsyncClient, rows: Rows) -> None:
    await (await somebody(client)).sign_in()
    [row] = await rows("select * from sessions")
    claims = row["id"].bytes + row["generation"].to_bytes(8)

    for key in (b"", row["nonce"], b"\x00" * 32, secrets.token_bytes(32), README_JWT_SECRET.encode()):
        mac = hmac.digest(key, claims + row["nonce"], "sha256")
        forged = base64.urlsafe_b64encode(claims + mac).rstrip(b"=").decode()
        assert_refused(await client.post("/users/refresh", json={"refresh_token": forged}))

    real = RefreshTokens(README_JWT_SECRET.encode()).issue(row["id"], row["generation"], row["nonce"])
    assert (await client.post("/users/refresh", json={"refresh_token": real})).status_code == 200


async def test_no_token_is_in_the_database_or_an_event(client: httpx.AsyncClient, rows: Rows) -> None:
    session = await (await somebody(client)).sign_in()
    next_one = await session.refreshed()

    for table in ("sessions", "users", "outbox"):
        text = str([dict(row) for row in await rows(f"select * from {table}")])
        for secret in (session.access, session.refresh, next_one.refresh):
            assert secret not in text
            assert base64.urlsafe_b64decode(secret[-42:] + "==")[8:].hex() not in text


@pytest.mark.parametrize("status", ["disabled", "closed"])
async def test_whoever_is_shut_out_gets_no_next_tokens(client: httpx.AsyncClient, rows: Rows, status: str) -> None:
    session = await (await somebody(client)).sign_in()
    await rows("update users set status = $1", status)

    assert_refused(await session.try_refresh())

    assert [row["generation"] for row in await rows("select generation from sessions")] == [1]


async def test_a_refresh_token_is_no_access_token_and_the_other_way(client: httpx.AsyncClient) -> None:
    session = await (await somebody(client)).sign_in()

    as_access = await client.get("/users/me", headers={"Authorization": f"Bearer {session.refresh}"})
    as_refresh = await client.post("/users/refresh", json={"refresh_token": session.access[:200]})

    assert as_access.status_code == 401
    assert_refused(as_refresh)


async def test_with_a_key_pair_tokens_are_made_under_the_private_key(sandbox: Sandbox, app: FastAPI) -> None:
    private, public = new_pair()
    pair = {"jwt_private_key": private.replace("\n", "\\n"), "jwt_public_key": public}
    settings = sandbox.settings(UserSettings, bcrypt_rounds=4, kafka_bootstrap_servers="127.0.0.1:1", **pair)
    async with in_process(create_app(settings)) as client:
        session = await (await somebody(client, "kim")).sign_in()
        assert (await session.refreshed()).refresh != session.refresh
        assert await session.is_alive()
        async with in_process(create_app(settings)) as another_process:
            response = await another_process.get("/users/me", headers=session.headers)
            assert response.status_code == 200
    async with in_process(app) as under_the_secret:
        response = await under_the_secret.post("/users/refresh", json={"refresh_token": session.refresh})
        assert_refused(response)
        assert (await under_the_secret.get("/users/me", headers=session.headers)).status_code == 401
