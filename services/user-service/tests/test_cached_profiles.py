"""Profiles as they are read: warm from Redis, never behind what was acknowledged, and without Redis as well."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from shared.auth import UserTokens
from shared.database import Database
from shared.ids import new_id
from shared.metrics import CacheMetrics
from shared.redis import connect
from shared.settings import README_JWT_SECRET
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process, serving
from shared.testing.valkey import OwnValkey, own_valkey
from shared.testing.waiting import eventually
from user_service.__main__ import run
from user_service.app import create_app
from user_service.models import UserRow
from user_service.profiles import Profiles
from user_service.settings import UserSettings
from user_service.testing import Session, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]

SHOWN = {"id", "email", "first_name", "last_name", "phone", "role", "status", "created_at"}


def settings_of(sandbox: Sandbox, **changes: Any) -> UserSettings:
    return sandbox.settings(UserSettings, bcrypt_rounds=4, kafka_bootstrap_servers="127.0.0.1:1", **changes)


@pytest.fixture(scope="module")
async def second(sandbox: Sandbox, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """Another process of the service over the same engines."""
    async with in_process(create_app(settings_of(sandbox))) as second:
        yield second


@pytest.fixture
async def redis(sandbox: Sandbox) -> AsyncIterator[Redis]:
    async with connect(settings_of(sandbox)) as redis:
        yield redis


@pytest.fixture
async def admin(nobody: None, client: httpx.AsyncClient, rows: Rows) -> Session:
    root = await somebody(client, "root")
    await rows("update users set role = 'admin' where email = 'root@example.com'")
    return await root.sign_in()


async def counted(client: httpx.AsyncClient, name: str) -> float:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples]
    [found] = [s.value for s in samples if s.name == f"cache_{name}_total" and s.labels == {"kind": "profile"}]
    return found


async def read(client: httpx.AsyncClient, session: Session, path: str = "/users/me") -> httpx.Response:
    """The answer of this process."""
    return await client.get(path, headers=session.headers)


def key_of(sandbox: Sandbox, user_id: str) -> str:
    return f"{sandbox.environment['REDIS_KEY_PREFIX']}profiles:profile:{user_id}"


async def raw(redis: Redis, key: str) -> bytes:
    """The value, empty where there is none."""
    found = await redis.get(key) or b""
    assert isinstance(found, bytes)
    return found


async def latest(redis: Redis, sandbox: Sandbox, user_id: str, version: int) -> bytes:
    """What Redis has of a person, as soon as it has this version."""

    async def parts() -> list[bytes]:
        return (await raw(redis, key_of(sandbox, user_id))).split(b":", 2)

    async def is_there() -> bool:
        return (await parts())[1:2] == [b"%d" % version]

    await eventually(is_there)
    return (await parts())[2]


# ------------------------------------------------------------------------------------------------ warm


async def test_a_profile_is_warm_in_every_process_from_the_sign_in_on(
    client: httpx.AsyncClient, second: httpx.AsyncClient, redis: Redis, sandbox: Sandbox
) -> None:
    session = await (await somebody(client)).sign_in()
    await latest(redis, sandbox, session.user_id, 2)
    for process in (client, second):
        hits, misses = await counted(process, "hits"), await counted(process, "misses")

        assert (await read(process, session)).json()["first_name"] == "Alice"

        assert (await counted(process, "hits"), await counted(process, "misses")) == (hits + 1, misses)
    assert 0 < await redis.ttl(key_of(sandbox, session.user_id)) <= 1800


async def test_a_warm_profile_is_the_cold_one_to_the_byte(
    client: httpx.AsyncClient, admin: Session, redis: Redis, sandbox: Sandbox
) -> None:
    session = await (await somebody(client, first_name="Zoë", last_name="O’Neill 山", role="merchant")).sign_in()
    paths = {"/users/me": session, f"/users/{session.user_id}": admin}
    await latest(redis, sandbox, session.user_id, 2)
    for path, reader in paths.items():
        warm = await read(client, reader, path)
        await redis.delete(key_of(sandbox, session.user_id))
        misses = await counted(client, "misses")

        cold = await read(client, reader, path)

        assert await counted(client, "misses") == misses + 1
        assert (warm.status_code, warm.content) == (cold.status_code, cold.content)
        assert warm.json().keys() == SHOWN
        await latest(redis, sandbox, session.user_id, 2)


async def test_redis_holds_what_is_shown_and_nothing_else(
    client: httpx.AsyncClient, rows: Rows, redis: Redis, sandbox: Sandbox
) -> None:
    session = await (await somebody(client)).sign_in()

    data = await latest(redis, sandbox, session.user_id, 2)

    version, user = msgspec.msgpack.decode(data)
    assert (version, user.keys()) == (2, SHOWN)
    [row] = await rows("select password_hash from users")
    pattern = f"{sandbox.environment['REDIS_KEY_PREFIX']}*"
    for key in [key async for key in redis.scan_iter(match=pattern, _type="string")]:
        assert row["password_hash"].encode() not in await raw(redis, key)


# ------------------------------------------------------------------------------------------------ never behind


async def test_what_was_changed_is_read_at_once_in_every_process(
    client: httpx.AsyncClient, second: httpx.AsyncClient, admin: Session
) -> None:
    session = await (await somebody(client)).sign_in()
    for number in range(20):
        writer = (client, second)[number % 2]
        changes = {"first_name": f"Alice {number}", "phone": f"+123456789{number}"}
        response = await writer.patch("/users/me", json=changes, headers=session.headers)
        assert response.status_code == 200
        for process in (client, second):
            assert (await read(process, admin, f"/users/{session.user_id}")).content == response.content
            assert (await read(process, session)).content == response.content


async def test_who_is_shut_out_is_seen_so_at_once_in_every_process(
    client: httpx.AsyncClient, second: httpx.AsyncClient, admin: Session
) -> None:
    alice = await somebody(client)
    session, path = await alice.sign_in(), f"/users/{alice.id}"
    for process, verb, status in ((second, "disable", "disabled"), (client, "enable", "active")):
        response = await process.post(f"{path}/{verb}", headers=admin.headers)
        assert response.json()["status"] == status
        for reader in (client, second):
            assert (await read(reader, admin, path)).json()["status"] == status
            assert (await read(reader, session)).status_code == 401
    assert (await read(second, await alice.sign_in())).json()["status"] == "active"


async def test_what_redis_was_never_told_is_not_believed(
    client: httpx.AsyncClient, redis: Redis, sandbox: Sandbox
) -> None:
    session = await (await somebody(client)).sign_in()
    key = key_of(sandbox, session.user_id)
    await latest(redis, sandbox, session.user_id, 2)
    old = await raw(redis, key)
    assert (await session.call("PATCH", "/users/me", first_name="Alicia")).status_code == 200
    await redis.set(key, old)  # as if the process had died between its commit and the cache

    assert (await session.call("GET", "/users/me")).json()["first_name"] == "Alicia"

    await latest(redis, sandbox, session.user_id, 3)
    hits, misses = await counted(client, "hits"), await counted(client, "misses")
    assert (await session.call("GET", "/users/me")).json()["first_name"] == "Alicia"
    assert (await counted(client, "hits"), await counted(client, "misses")) == (hits + 1, misses)


async def test_an_older_row_never_replaces_a_newer_one(sandbox: Sandbox, client: httpx.AsyncClient) -> None:
    settings = settings_of(sandbox)
    database = Database(settings)
    await database.open()
    early, late = [Profiles(database, settings, CacheMetrics(CollectorRegistry())) for _ in range(2)]
    user_id = new_id()

    def row(version: int, name: str, status: str = "active") -> UserRow:
        fields = {"email": "a@example.com", "last_name": "Doe", "phone": "", "role": "user", "status": status}
        moment = datetime(2026, 11, 1, tzinfo=UTC)
        return UserRow(id=user_id, first_name=name, event_sequence=version, created_at=moment, **fields)

    async def tell(process: Profiles, told: UserRow) -> list[str | None]:
        process.put(told)
        await process.settle()
        users = [await each.get(user_id) for each in (early, late)]
        return [None if user is None else user.first_name for user in users]

    try:
        assert await tell(early, row(7, "New")) == ["New", "New"]
        assert await tell(late, row(6, "Old")) == ["New", "New"]
        assert await tell(late, row(8, "Newest")) == ["Newest", "Newest"]
        assert await tell(early, row(9, "Gone", "closed")) == [None, None]
        assert await tell(late, row(8, "Newest")) == [None, None]
    finally:
        for each in (early, late):
            await each.close()
        await database.close()


async def test_who_is_made_an_admin_by_the_command_is_shown_as_one(
    client: httpx.AsyncClient, admin: Session, sandbox: Sandbox
) -> None:
    alice = await somebody(client)
    assert (await read(client, admin, f"/users/{alice.id}")).json()["role"] == "user"

    said = await run(settings_of(sandbox), {"EMAIL": alice.email, "PROMOTE": "1"})

    assert alice.id in said
    assert (await read(client, admin, f"/users/{alice.id}")).json()["role"] == "admin"


# ------------------------------------------------------------------------------------------------ decides nothing


async def test_what_redis_says_of_a_role_or_status_decides_nothing(
    client: httpx.AsyncClient, redis: Redis, sandbox: Sandbox
) -> None:
    alice = await somebody(client)
    session, key = await alice.sign_in(), key_of(sandbox, alice.id)
    await latest(redis, sandbox, alice.id, 2)
    forged = (await raw(redis, key)).replace(b"\xa4user", b"\xa5admin").replace(b"active", b"closed")
    await redis.set(key, forged)

    assert (await session.call("GET", "/users")).status_code == 403
    assert (await session.call("GET", f"/users/{alice.id}")).status_code == 403
    assert (await session.call("PATCH", "/users/me", phone="+1234567899")).json()["role"] == "user"
    await redis.set(key, forged)
    answer = (await alice.try_to_sign_in()).json()
    assert (answer["user"]["role"], answer["user"]["status"]) == ("user", "active")
    claims = UserTokens(README_JWT_SECRET).verify(answer["access_token"])
    assert claims.role == "user"


# ------------------------------------------------------------------------------------------------ closed


async def test_of_a_closed_account_nothing_stays_in_redis(
    client: httpx.AsyncClient, second: httpx.AsyncClient, admin: Session, redis: Redis, sandbox: Sandbox
) -> None:
    alice = await somebody(client)
    session, path = await alice.sign_in(), f"/users/{alice.id}"
    await latest(redis, sandbox, alice.id, 2)
    wallets = FastAPI()

    @wallets.post("/internal/people/{user_id}/close")
    async def close(user_id: UUID) -> dict[str, int]:
        return {"closed": 1}

    async with (
        serving(wallets) as url,
        in_process(create_app(settings_of(sandbox, wallet_service_url=url))) as closing,
    ):
        response = await closing.request(
            "DELETE", "/users/me", json={"password": alice.password}, headers=session.headers
        )
    assert response.status_code == 204

    for _ in range(2):
        assert (await raw(redis, key_of(sandbox, alice.id))).rpartition(b":")[2] == b""
        for process in (client, second):
            assert (await read(process, session)).status_code == 401
            shown = (await read(process, admin, path)).json()
            assert (shown["status"], shown["email"]) == ("closed", alice.email)


# ------------------------------------------------------------------------------------------------ without Redis


@pytest.fixture
async def valkey() -> AsyncIterator[OwnValkey]:
    async with own_valkey() as valkey:
        yield valkey


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_profiles_come_from_the_database(
    sandbox: Sandbox, client: httpx.AsyncClient, valkey: OwnValkey, how: str
) -> None:
    settings = settings_of(sandbox, redis_host="127.0.0.1", redis_port=valkey.port, redis_timeout_ms=50)
    session = await (await somebody(client)).sign_in()
    async with in_process(create_app(settings)) as breakable:
        assert (await read(breakable, session)).status_code == 200
        await (valkey.kill() if how == "killed" else asyncio.to_thread(valkey.freeze))
        loop = asyncio.get_running_loop()

        began = loop.time()
        for number in range(30):
            name = {"first_name": f"Alice {number}"}
            response = await breakable.patch("/users/me", json=name, headers=session.headers)
            assert response.status_code == 200
            assert (await read(breakable, session)).content == response.content
        took = loop.time() - began

        assert took < 2.5  # a wait of 50 ms for each of these calls would come to 3 s
        valkey.thaw() if how == "frozen" else await valkey.start()
        hits = await counted(breakable, "hits")

        async def warm_again() -> bool:
            assert (await read(breakable, session)).json()["first_name"] == "Alice 29"
            return await counted(breakable, "hits") > hits

        await eventually(warm_again)


async def test_garbage_in_redis_changes_no_answer(client: httpx.AsyncClient, redis: Redis, sandbox: Sandbox) -> None:
    session = await (await somebody(client)).sign_in()
    key = key_of(sandbox, session.user_id)
    for garbage in (b"", b"\xff" * 100, b":9:\x97garbage", b":9999999999999999:{}"):
        await redis.set(key, garbage)
        assert (await session.call("GET", "/users/me")).json()["first_name"] == "Alice"
