"""An ended session is out in every process within a second, through every outage that Redis can have."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
from prometheus_client import CollectorRegistry

from infrastructure.embedded import Stack
from shared.auth import UserTokens
from shared.authentication import Authenticator, authenticator_of, following
from shared.database import migrate
from shared.errors import UnauthorizedError
from shared.redis import connect
from shared.sessions import Names
from shared.settings import README_JWT_SECRET, Settings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import serving
from shared.testing.waiting import eventually
from user_service.app import FOLDER, create_app
from user_service.settings import UserSettings
from user_service.testing import PASSWORD, Session, somebody

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]

WITHIN_SECONDS = 1.0
KEPT_SECONDS = 5.0  # for so long what user-service says of a session is believed while Redis is out


class ProbeSettings(Settings):
    service = "probe"


class Valkey:
    """A Valkey of the test's own, to be frozen and killed."""

    def __init__(self, folder: Path) -> None:
        self._stack = Stack(folder, ports="free", detached=False, durable=False, environ={})
        self.port = 0

    def start(self) -> None:
        """Start it, or again on the same port, with nothing in it."""
        self.port = int(self._stack.start(["redis"])["REDIS_PORT"])

    def signal(self, number: signal.Signals) -> None:
        process = self._stack.process("redis")
        assert process is not None
        os.kill(process.pid, number)

    def stop(self) -> None:
        self._stack.stop()


@pytest.fixture(scope="module")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    yield valkey
    valkey.stop()


@pytest.fixture
def valkey(own_valkey: Valkey) -> Iterator[Valkey]:
    yield own_valkey
    own_valkey.signal(signal.SIGCONT)


@pytest.fixture(scope="module")
async def client(sandbox: Sandbox) -> None:
    """The schema alone: another user-service beside the test's own would tell of ends in another Redis."""
    await migrate(sandbox.settings(UserSettings), FOLDER)


@pytest.fixture
async def users(sandbox: Sandbox, valkey: Valkey, client: None) -> AsyncIterator[httpx.AsyncClient]:
    """user-service on a socket, with the Valkey of the test's own."""
    async with user_service(sandbox, valkey) as users:
        yield users


@asynccontextmanager
async def user_service(sandbox: Sandbox, valkey: Valkey) -> AsyncIterator[httpx.AsyncClient]:
    settings = sandbox.settings(
        UserSettings, bcrypt_rounds=4, redis_port=valkey.port, kafka_bootstrap_servers="127.0.0.1:1", mongo_port=1
    )
    async with serving(create_app(settings)) as url, httpx.AsyncClient(base_url=url, timeout=10) as users:
        yield users


@asynccontextmanager
async def processes(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient | None, count: int = 2
) -> AsyncIterator[list[Authenticator]]:
    """What so many processes of other services know their callers by."""
    url = str(users.base_url).rstrip("/") if users else "http://127.0.0.1:1"
    settings = sandbox.settings(ProbeSettings, redis_port=valkey.port, redis_timeout_ms=50, user_service_url=url)
    async with AsyncExitStack() as stack:
        made = [authenticator_of(settings, CollectorRegistry()) for _ in range(count)]
        for authenticator in made:
            await stack.enter_async_context(following(authenticator))
        yield made


def header(session: Session) -> str:
    return f"Bearer {session.access}"


def id_of(session: Session) -> UUID:
    return UserTokens(README_JWT_SECRET).verify(session.access).session_id


async def recognised(authenticators: list[Authenticator], session: Session) -> None:
    """Every process recognises the session without asking anybody."""

    async def all_do() -> bool:
        for authenticator in authenticators:
            await authenticator.authenticate(header(session))
        return all(authenticator.recognise(header(session)) for authenticator in authenticators)

    await eventually(all_do)


async def is_out(authenticator: Authenticator, session: Session) -> bool:
    if authenticator.recognise(header(session)) is not None:
        return False
    try:
        await authenticator.authenticate(header(session))
    except UnauthorizedError:
        return True
    return False


async def out_everywhere(authenticators: list[Authenticator], *sessions: Session, limit_seconds: float) -> float:
    """Every process refuses the sessions; how many seconds that took."""
    began = time.monotonic()

    async def all_refuse() -> bool:
        found = [await is_out(each, session) for each in authenticators for session in sessions]
        return all(found)

    await eventually(all_refuse, limit_seconds)
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def _clean(nobody: None) -> None:
    """Each test begins without people."""


@pytest.mark.parametrize("how", ["logout", "revoke", "password", "reuse", "disable"])
async def test_an_end_counts_in_every_process_within_a_second(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient, rows: Rows, how: str
) -> None:
    alice = await somebody(users)
    session, other = await alice.sign_in(), await alice.sign_in()
    root = await somebody(users, "root")
    await rows("update users set role = 'admin' where email = 'root@example.com'")
    admin = await root.sign_in()
    async with processes(sandbox, valkey, None) as authenticators:
        for each in (session, other, admin):
            await recognised(authenticators, each)

        if how == "logout":
            response = await session.call("POST", "/users/logout")
        elif how == "revoke":
            response = await other.call("DELETE", f"/users/sessions/{id_of(session)}")
        elif how == "password":
            body = {"current_password": PASSWORD, "new_password": "BetterPass456"}
            response = await other.call("POST", "/users/me/password", **body)
        elif how == "reuse":
            await (await session.refreshed()).refreshed()
            response = await session.try_refresh()
        else:
            response = await admin.call("POST", f"/users/{alice.id}/disable")
        assert response.status_code == {"disable": 200, "reuse": 401}.get(how, 204), response.text

        ended = [session, other] if how == "disable" else [session]
        await out_everywhere(authenticators, *ended, limit_seconds=WITHIN_SECONDS)
        for process in authenticators:
            assert process.recognise(header(admin)) is not None
            if how != "disable":
                assert process.recognise(header(other)) is not None


async def test_a_process_of_its_own_hears_of_it_too(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient
) -> None:
    session = await (await somebody(users)).sign_in()
    environment = sandbox.environment | {
        "REDIS_PORT": str(valkey.port),
        "REDIS_TIMEOUT_MS": "50",
        "TOKEN": header(session),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WATCH,
        env=os.environ | environment | {"ENV_FILE": ""},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(30):
        assert await process.stdout.readline() == b"in\n"

        await session.call("POST", "/users/logout")

        async with asyncio.timeout(WITHIN_SECONDS):
            assert await process.stdout.readline() == b"out\n"
        assert await process.wait() == 0


_WATCH = """
import asyncio, os
from prometheus_client import CollectorRegistry
from shared.authentication import authenticator_of, following
from shared.database import migrate
from shared.errors import UnauthorizedError
from shared.settings import Settings, load

class ProbeSettings(Settings):
    service = "probe"

async def main():
    authenticator, token = authenticator_of(load(ProbeSettings), CollectorRegistry()), os.environ["TOKEN"]
    async with following(authenticator):
        await authenticator.authenticate(token)
        while authenticator.recognise(token) is None:
            await asyncio.sleep(0.01)
        print("in", flush=True)
        while authenticator.recognise(token) is not None:
            await asyncio.sleep(0.01)
        try:
            await authenticator.authenticate(token)
        except UnauthorizedError:
            print("out", flush=True)

asyncio.run(main())
"""


async def test_an_end_that_nobody_was_woken_for_is_found_and_told(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient, rows: Rows
) -> None:
    """The process that ended the session crashed after its commit: any other tells of it."""
    session = await (await somebody(users)).sign_in()
    async with processes(sandbox, valkey, None) as authenticators:
        await recognised(authenticators, session)

        await rows("update sessions set ended_at = now(), end_reason = 'revoked'")

        await out_everywhere(authenticators, session, limit_seconds=WITHIN_SECONDS)
        [row] = await eventually(lambda: rows("select id from sessions where announced"))
        assert row["id"] == id_of(session)


async def test_an_end_that_a_crash_kept_from_being_told_is_told_by_the_next_start(
    sandbox: Sandbox, valkey: Valkey, client: None, rows: Rows
) -> None:
    async with processes(sandbox, valkey, None) as authenticators:
        async with user_service(sandbox, valkey) as users:
            session = await (await somebody(users)).sign_in()
            await recognised(authenticators, session)
            valkey.signal(signal.SIGSTOP)
            await session.call("POST", "/users/logout")
        valkey.signal(signal.SIGCONT)
        assert [row["announced"] for row in await rows("select announced from sessions")] == [False]

        async with user_service(sandbox, valkey):
            await out_everywhere(authenticators, session, limit_seconds=3 * WITHIN_SECONDS)


async def test_a_redis_that_has_lost_everything_is_filled_again(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient
) -> None:
    alice = await somebody(users)
    ended = [await alice.sign_in() for _ in range(3)]
    live = await alice.sign_in()
    for session in ended:
        await session.call("POST", "/users/logout")
    async with processes(sandbox, valkey, None, count=1) as before:
        await recognised(before, live)
        async with connect(sandbox.settings(Settings, redis_port=valkey.port)) as redis:
            await redis.flushall()

        async with processes(sandbox, valkey, None, count=2) as after:
            await recognised(after, live)
            for session in ended:
                assert [await is_out(each, session) for each in (*before, *after)] == [True] * 3


async def test_a_redis_that_has_lost_a_write_with_its_connections_is_filled_again(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient
) -> None:
    """As when a replica takes over that did not get the last writes."""
    session = await (await somebody(users)).sign_in()
    await session.call("POST", "/users/logout")
    settings = sandbox.settings(Settings, redis_port=valkey.port)
    async with connect(settings) as redis:

        async def score() -> float | None:
            found: float | None = await redis.zscore(Names.of(settings).ended, str(id_of(session)))
            return found

        await eventually(score)
        await redis.zrem(Names.of(settings).ended, str(id_of(session)))
        assert await score() is None

        await redis.client_kill_filter(_type="normal", skipme=True)

        await eventually(score, 2 * WITHIN_SECONDS)


async def test_an_end_that_cannot_matter_any_more_leaves_redis(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient, rows: Rows
) -> None:
    alice = await somebody(users)
    old, session = await alice.sign_in(), await alice.sign_in()
    await rows("update sessions set access_until = now() + interval '0.5 seconds' where id = $1", id_of(old))
    await old.call("POST", "/users/logout")
    settings = sandbox.settings(Settings, redis_port=valkey.port)

    async with connect(settings) as redis:

        async def has(ended: Session) -> bool:
            return await redis.zscore(Names.of(settings).ended, str(id_of(ended))) is not None

        async def has_old() -> bool:
            return await has(old)

        await eventually(has_old)
        await eventually(lambda: rows("select 1 from sessions where access_until < now()"))
        await session.call("POST", "/users/logout")

        async def has_session() -> bool:
            return await has(session)

        await eventually(has_session)
        assert not await has_old()


async def test_with_redis_killed_user_service_is_asked_and_all_is_well_once_it_is_back(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient
) -> None:
    alice = await somebody(users)
    live, ended = await alice.sign_in(), await alice.sign_in()
    async with processes(sandbox, valkey, users) as authenticators:
        for session in (live, ended):
            await recognised(authenticators, session)

        valkey.signal(signal.SIGKILL)
        await ended.call("POST", "/users/logout")
        try:
            await out_everywhere(authenticators, ended, limit_seconds=KEPT_SECONDS + 2 * WITHIN_SECONDS)
            for each in authenticators:
                assert each.recognise(header(live)) is None
                assert (await each.authenticate(header(live))).session_id == id_of(live)
            again = await alice.sign_in()  # limits on guessing do not keep anybody out
            assert await again.is_alive()
        finally:
            valkey.start()

        await recognised(authenticators, live)
        await out_everywhere(authenticators, ended, limit_seconds=WITHIN_SECONDS)
        async with processes(sandbox, valkey, None, count=1) as newcomers:
            await recognised(newcomers, live)
            assert await is_out(newcomers[0], ended)


async def test_with_redis_frozen_nobody_waits_and_an_end_still_counts(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient
) -> None:
    alice = await somebody(users)
    live, ended = await alice.sign_in(), await alice.sign_in()
    async with processes(sandbox, valkey, users) as authenticators:
        for session in (live, ended):
            await recognised(authenticators, session)

        valkey.signal(signal.SIGSTOP)
        began = time.monotonic()
        await ended.call("POST", "/users/logout")
        assert time.monotonic() - began < 1.0

        async def stale() -> bool:
            return all(each.recognise(header(live)) is None for each in authenticators)

        await eventually(stale, 2 * WITHIN_SECONDS)
        began = time.monotonic()
        for _ in range(20):
            for each in authenticators:
                await each.authenticate(header(live))
        assert time.monotonic() - began < 1.0
        await out_everywhere(authenticators, ended, limit_seconds=KEPT_SECONDS + WITHIN_SECONDS)
        again = await alice.sign_in()
        assert (await again.refreshed()).access

        valkey.signal(signal.SIGCONT)
        await recognised(authenticators, live)
        await out_everywhere(authenticators, ended, limit_seconds=WITHIN_SECONDS)


async def test_with_redis_and_user_service_out_whoever_is_not_known_to_be_out_is_in(
    sandbox: Sandbox, valkey: Valkey, client: None
) -> None:
    async with AsyncExitStack() as stack:
        users = await stack.enter_async_context(user_service(sandbox, valkey))
        alice = await somebody(users)
        live, ended = await alice.sign_in(), await alice.sign_in()
        authenticators = await stack.enter_async_context(processes(sandbox, valkey, users))
        await recognised(authenticators, live)
        await ended.call("POST", "/users/logout")
        await out_everywhere(authenticators, ended, limit_seconds=WITHIN_SECONDS)
        unknown = await alice.sign_in()

        valkey.signal(signal.SIGSTOP)
        async with processes(sandbox, valkey, None) as alone:
            for each in (*authenticators, *alone):
                assert (await each.authenticate(header(live))).session_id == id_of(live)
                assert (await each.authenticate(header(unknown))).session_id == id_of(unknown)
            for each in authenticators:
                assert await is_out(each, ended)
        valkey.signal(signal.SIGCONT)


async def test_an_announcer_without_its_database_sends_no_heartbeat(
    sandbox: Sandbox, valkey: Valkey, users: httpx.AsyncClient, rows: Rows
) -> None:
    session = await (await somebody(users)).sign_in()
    async with processes(sandbox, valkey, users, count=1) as [authenticator]:
        await recognised([authenticator], session)
        await rows("revoke select on sessions from user_service")
        try:

            async def stale() -> bool:
                return authenticator.recognise(header(session)) is None

            await eventually(stale, 2 * WITHIN_SECONDS)
            health = (await users.get("/health")).json()
            assert health["dependencies"]["redis"] == "down"
        finally:
            await rows("grant select on sessions to user_service")
        await recognised([authenticator], session)
