"""Wallets as they are read: warm from Redis, never behind what was acknowledged, and without Redis as well."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.ids import new_id
from shared.redis import connect
from shared.testing.problems import without_ids
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.valkey import OwnValkey, own_valkey
from shared.testing.waiting import eventually
from wallet_service.app import create_app
from wallet_service.settings import WalletSettings
from wallet_service.testing import LedgerClient, OpenWallet, Rows, posting

OUTSIDE = "external:stripe:USD"


@pytest.fixture(scope="module")
async def second(sandbox: Sandbox, client: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """Another process of the service over the same engines."""
    async with in_process(create_app(sandbox.settings(WalletSettings))) as second:
        yield second


async def counted(client: httpx.AsyncClient, name: str, kind: str = "wallet") -> float:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples]
    return sum(s.value for s in samples if s.name == f"cache_{name}_total" and s.labels == {"kind": kind})


async def amounts(client: httpx.AsyncClient, owner: Person, wallet_id: str) -> tuple[str, str]:
    """Balance and held, which all three ways of asking agree on."""
    balance = (await client.get(f"/wallets/{wallet_id}/balance", headers=owner.headers)).json()
    wallet = (await client.get(f"/wallets/{wallet_id}", headers=owner.headers)).json()
    listed = (await client.get("/wallets", headers=owner.headers)).json()["data"]
    [same] = [each for each in listed if each["id"] == wallet_id]
    found = {(each["balance"], each["held"]) for each in (balance, wallet, same)}
    assert len(found) == 1
    return found.pop()


# ------------------------------------------------------------------------------------------------ warm


async def test_a_wallet_that_was_read_is_read_from_redis(
    client: httpx.AsyncClient, second: httpx.AsyncClient, open_wallet: OpenWallet
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_234)
    await amounts(client, alice, wallet_id)
    misses = [await counted(process, "misses") for process in (client, second)]
    hits = await counted(second, "hits")

    for process in (client, second):
        assert await amounts(process, alice, wallet_id) == ("12.34", "0.00")

    assert [await counted(process, "misses") for process in (client, second)] == misses
    assert await counted(second, "hits") == hits + 3


async def test_a_warm_answer_is_the_cold_one_to_the_byte(
    client: httpx.AsyncClient, open_wallet: OpenWallet, sandbox: Sandbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, "KWD", 1_234_567)
    await open_wallet(alice, "JPY")
    paths = [f"/wallets/{wallet_id}", f"/wallets/{wallet_id}/balance", "/wallets"]
    warm = [await client.get(path, headers=alice.headers) for path in paths]
    await flush(sandbox)

    cold = [await client.get(path, headers=alice.headers) for path in paths]
    by_the_long_way = [await client.get(path + "?x=1", headers=alice.headers) for path in paths]

    for responses in zip(warm, cold, by_the_long_way, strict=True):
        assert {response.status_code for response in responses} == {200}
        assert {response.headers["content-type"] for response in responses} == {"application/json"}
        assert len({response.content for response in responses}) == 1


async def flush(sandbox: Sandbox) -> None:
    async with connect(sandbox.settings(WalletSettings)) as redis:
        keys = [key async for key in redis.scan_iter(match=f"{sandbox.environment['REDIS_KEY_PREFIX']}*")]
        if keys:
            await redis.delete(*keys)


@pytest.mark.parametrize("suffix", ["", "/balance"])
async def test_a_warm_wallet_of_somebody_else_looks_like_none(
    client: httpx.AsyncClient, open_wallet: OpenWallet, suffix: str
) -> None:
    alice, stranger = Person(), Person()
    wallet_id = await open_wallet(alice)
    await client.get(f"/wallets/{wallet_id}", headers=alice.headers)

    foreign = await client.get(f"/wallets/{wallet_id}{suffix}", headers=stranger.headers)
    missing = await client.get(f"/wallets/{new_id()}{suffix}", headers=stranger.headers)
    admins = await client.get(f"/wallets/{wallet_id}{suffix}", headers=Person("admin").headers)

    assert (foreign.status_code, missing.status_code, admins.status_code) == (404, 404, 200)
    for response in (foreign, missing):
        assert response.headers["content-type"] == "application/problem+json"
    assert without_ids(foreign) == without_ids(missing)
    assert (await client.get(f"/wallets/{wallet_id}{suffix}")).status_code == 401


@pytest.mark.parametrize("wallet_id", ["me", "%7B{id}%7D", "urn:uuid:{id}", "{id}0", "{plain}", "{odd}"])
async def test_an_id_that_is_written_in_another_way_is_judged_as_before(
    client: httpx.AsyncClient, open_wallet: OpenWallet, wallet_id: str
) -> None:
    alice = Person()
    known = await open_wallet(alice)
    plain = known.replace("-", "")
    odd = f"{plain[:1]}-{plain[1:2]}-{plain[2:3]}-{plain[3:4]}-{plain[4:]}"

    path = "/wallets/" + wallet_id.format(id=known, plain=plain, odd=odd)
    quick, long = [await client.get(path + query, headers=alice.headers) for query in ("", "?x=1")]

    assert quick.status_code == long.status_code
    assert quick.status_code in {200, 422}


# ------------------------------------------------------------------------------------------------ never behind


async def test_what_is_acknowledged_is_read_at_once_by_every_process(
    client: httpx.AsyncClient, second: httpx.AsyncClient, open_wallet: OpenWallet
) -> None:
    alice, bob = Person(), Person()
    mine, theirs = await open_wallet(alice, minor=1_000), await open_wallet(bob)
    held = posting(alice, mine, OUTSIDE, 100)
    for process in (client, second):
        await amounts(process, alice, mine)

    ledgers = itertools.cycle([LedgerClient(client), LedgerClient(second)])
    for cents in range(1, 21):
        await next(ledgers).send(posting(alice, mine, theirs, 10))
        for process in (client, second):
            assert await amounts(process, alice, mine) == (f"{10 - cents / 10:.2f}", "0.00")
            assert await amounts(process, bob, theirs) == (f"{cents / 10:.2f}", "0.00")
    for action, after in (("hold", ("8.00", "1.00")), ("release", ("8.00", "0.00"))):
        await next(ledgers).send(held | {"action": action})
        for process in (client, second):
            assert await amounts(process, alice, mine) == after


async def test_a_status_and_a_new_wallet_are_read_at_once_by_every_process(
    client: httpx.AsyncClient, second: httpx.AsyncClient, open_wallet: OpenWallet
) -> None:
    alice, admin = Person(), Person("admin")
    wallet_id = await open_wallet(alice)

    for process, verb, status in (
        (client, "freeze", "frozen"),
        (second, "unfreeze", "active"),
        (client, "close", "closed"),
    ):
        await process.post(f"/wallets/{wallet_id}/{verb}", headers=admin.headers)
        for reader in (client, second):
            wallet = (await reader.get(f"/wallets/{wallet_id}", headers=alice.headers)).json()
            assert wallet["status"] == status

    for process, currency in zip((client, second) * 3, ("EUR", "JPY", "KWD", "GBP", "CHF", "SEK"), strict=True):
        body = {"user_id": str(alice.id), "currency": currency}
        made = (await process.post("/wallets/create", json=body, headers=alice.headers)).json()
        for reader in (client, second):
            listed = (await reader.get("/wallets", headers=alice.headers)).json()["data"]
            assert listed[0] == made


async def test_wallets_that_are_opened_at_the_same_moment_are_all_listed(
    client: httpx.AsyncClient, second: httpx.AsyncClient, open_wallet: OpenWallet
) -> None:
    alice = Person()
    currencies = ["USD", "EUR", "JPY", "KWD", "GBP", "CHF", "SEK", "NOK", "DKK", "PLN"]

    await asyncio.gather(
        *(
            process.post(
                "/wallets/create", json={"user_id": str(alice.id), "currency": currency}, headers=alice.headers
            )
            for process, currency in zip((client, second) * 5, currencies, strict=True)
        )
    )

    for reader in (client, second):
        listed = (await reader.get("/wallets", headers=alice.headers)).json()["data"]
        assert {wallet["currency"] for wallet in listed} == set(currencies)


async def test_a_posting_that_is_repeated_puts_right_what_redis_was_not_told(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, sandbox: Sandbox
) -> None:
    alice, bob = Person(), Person()
    mine, theirs = await open_wallet(alice, minor=1_000), await open_wallet(bob)
    async with connect(sandbox.settings(WalletSettings)) as redis:
        name = f"{sandbox.environment['REDIS_KEY_PREFIX']}wallets:wallet:{mine}"
        before = await redis.get(name)
        assert before is not None
        transfer = posting(alice, mine, theirs, 400)
        await ledger.send(transfer)
        await redis.set(name, before)  # as if the process had died between its commit and the cache
        assert await amounts(client, alice, mine) == ("10.00", "0.00")

        await ledger.send(transfer)

    assert await amounts(client, alice, mine) == ("6.00", "0.00")


# ------------------------------------------------------------------------------------------------ revisions


async def test_every_change_of_a_wallet_has_a_revision_of_its_own(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    held = posting(alice, wallet_id, OUTSIDE, 100)

    async def revision() -> int:
        [(found,)] = await rows("select revision from accounts where id = $1::uuid", wallet_id)
        return int(found)

    async def set_status(verb: str) -> None:
        await client.post(f"/wallets/{wallet_id}/{verb}", headers=Person("admin").headers)

    async def around_the_code(sql: str) -> None:
        await rows(f"update accounts set {sql} where id = $1::uuid", wallet_id)

    def dispute(minor: int) -> dict[str, Any]:
        return posting(alice, wallet_id, OUTSIDE, minor, action="dispute")

    steps: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: ledger.fund(alice, wallet_id, 1_000),
        lambda: ledger.send(held | {"action": "hold"}),
        lambda: ledger.send(held | {"action": "release"}),
        lambda: ledger.send(dispute(10)),
        lambda: set_status("unfreeze"),
        lambda: around_the_code("balance_minor = balance_minor + 1"),
        lambda: around_the_code("balance_minor = balance_minor - 1"),
        lambda: around_the_code("status = 'frozen'"),
        lambda: set_status("unfreeze"),
    ]
    for step in steps:
        before = await revision()
        await step()
        assert await revision() == before + 1
    before = await revision()
    await around_the_code("event_sequence = event_sequence")
    await set_status("unfreeze")
    assert await revision() == before


# ------------------------------------------------------------------------------------------------ without Redis


@pytest.fixture
async def valkey() -> AsyncIterator[OwnValkey]:
    async with own_valkey() as valkey:
        yield valkey


@pytest.fixture
async def breakable(sandbox: Sandbox, valkey: OwnValkey) -> AsyncIterator[httpx.AsyncClient]:
    """A process of the service whose Redis may be killed and frozen."""
    settings = sandbox.settings(WalletSettings, redis_host="127.0.0.1", redis_port=valkey.port, redis_timeout_ms=50)
    async with in_process(create_app(settings)) as client:
        yield client


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_redis_money_moves_and_balances_are_right(
    breakable: httpx.AsyncClient, valkey: OwnValkey, open_wallet: OpenWallet, how: str
) -> None:
    alice, bob, ledger = Person(), Person(), LedgerClient(breakable)
    mine, theirs = await open_wallet(alice, minor=1_000), await open_wallet(bob)
    await amounts(breakable, alice, mine)
    await (valkey.kill() if how == "killed" else asyncio.to_thread(valkey.freeze))
    loop = asyncio.get_running_loop()

    began = loop.time()
    for cents in range(1, 31):
        [outcome] = await ledger.send(posting(alice, mine, theirs, 10))
        assert outcome["status"] == "applied"
        assert await amounts(breakable, alice, mine) == (f"{10 - cents / 10:.2f}", "0.00")
    took = loop.time() - began

    assert took < 5.0  # a wait of 50 ms for each of these calls would come to 6 s
    health = (await breakable.get("/health")).json()
    assert (health["status"], health["dependencies"]["redis"]) == ("degraded", "down")
    valkey.thaw() if how == "frozen" else await valkey.start()
    hits = await counted(breakable, "hits")

    async def warm_again() -> bool:
        assert await amounts(breakable, alice, mine) == ("7.00", "0.00")
        return await counted(breakable, "hits") > hits

    await eventually(warm_again)


async def test_a_redis_that_was_filled_with_garbage_changes_no_answer(
    breakable: httpx.AsyncClient, valkey: OwnValkey, open_wallet: OpenWallet, sandbox: Sandbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=777)
    await amounts(breakable, alice, wallet_id)
    settings = sandbox.settings(WalletSettings, redis_host="127.0.0.1", redis_port=valkey.port, redis_timeout_ms=50)
    async with connect(settings) as redis:
        keys = [key async for key in redis.scan_iter()]
        assert len(keys) == 2  # the wallet, and the list
        for garbage in (b"", b"\xff" * 100, b":9:\x97garbage", b":9999999999999999:{}"):
            for key in keys:
                await redis.set(key, garbage)
            assert await amounts(breakable, alice, wallet_id) == ("7.77", "0.00")
        for key in keys:
            await redis.delete(key)
            await redis.rpush(key, "x")
        assert await amounts(breakable, alice, wallet_id) == ("7.77", "0.00")
        await redis.flushall()
        assert await amounts(breakable, alice, wallet_id) == ("7.77", "0.00")
