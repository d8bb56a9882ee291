"""Input: amounts, texts, filters, bodies and heads that somebody has thought about for long.

Where an operation takes an amount, a body or a parameter is read from the gateway's OpenAPI document.
"""

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest

from api_gateway.app import create_app as create_gateway
from api_gateway.settings import GatewaySettings
from shared.ids import new_id
from shared.serve import BoundedProtocol
from shared.testing.problems import text_without_ids
from shared.testing.servers import serving
from tests.platform import Platform
from tests.security.people import Actor, Books, newcomer, registration
from tests.security.wire import head, status_of, talk

# As they stand in a body of JSON: what `api.md` refuses, and then some.
BAD_AMOUNTS: Final = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "true", "false", "null", '"1_000"', '"１００"', '" 5 "',
    '"5 "', '"+5"', '"1e3"', "0", "0.00", '"0"', '"0.00"', "-0", "-1", '"-1"', "0.001", '"0.001"', "1.005",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "18446744073709551616",
    '"9999999999999999"', "1e-400", '""', '"."', '"1."', '".5"', '"1,00"', '"1.000,00"', '"0x10"', '"$5"',
    '"5 USD"', '"NaN"', '"Infinity"', '"٣"', '"१"', '"1\\u0000"', '"\\ud800"', "[]", "[1]", "{}", '{"$gt": 0}',
    '{"value": 1}', "1" * 400, "0." + "1" * 400, '"' + "9" * 5000 + '"',
)  # fmt: skip
OPERATORS: Final = (
    "' or '1'='1",
    "'; drop table wallets.accounts; --",
    "' union select password_hash from users.users --",
    '{"$gt": ""}',
    '{"$where": "sleep(5000)"}',
    "[$ne]",
    "*",
    "../../etc/passwd",
    "${jndi:ldap://127.0.0.1/a}",
    "\x00",
    "\r\nX-Injected: 1",
    "\x1b[31mred",
    "9" * 400,
    "9223372036854775808",
    "1e9",
)
FORGED_LINES: Final = (
    '\r\n{"level":"ERROR","message":"forged"}',
    "\n2026-11-25 forged",
    "\x1b[2J\x1b[31mforged",
    "\x9b31mforged",
    "\u2028forged",
    "forged\x08\x08\x08",
)

Operation = tuple[str, str, dict[str, Any]]


async def operations(client: httpx.AsyncClient) -> tuple[list[Operation], dict[str, Any]]:
    """Every operation that belongs to a service, and the schemas that they name."""
    document = (await client.get("/openapi.json")).json()
    found = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if path != "/health"
    ]
    return found, document["components"]["schemas"]


def body_models(operation: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """The models that an operation's body may have."""
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return []
    alternatives = schema.get("oneOf") or schema.get("anyOf") or [schema]
    return [schemas[alternative["$ref"].rpartition("/")[2]] for alternative in alternatives]


def filled(path: str) -> str:
    return re.sub(r"{\w+}", str(new_id()), path)


def good_value(name: str, schema: dict[str, Any], wallets: dict[str, str]) -> Any:
    """Something that fits a field, so that only the amount beside it is at fault."""
    if "const" in schema:
        return schema["const"]
    if name in wallets:
        return wallets[name]
    return {"currency": "USD", "payment_method": "credit_card"}.get(name, (schema.get("examples") or [None])[0])


def assert_refused(response: httpx.Response, what: str) -> None:
    assert 400 <= response.status_code < 500, f"{what}: {response.status_code} {response.text}"
    assert response.headers["content-type"] == "application/problem+json", what
    assert "Traceback" not in response.text
    assert "x-injected" not in response.headers


# ---------------------------------------------------------------------------------------------------------- amounts


async def test_no_operation_takes_a_bad_amount(client: httpx.AsyncClient, alice: Actor, books: Books) -> None:
    """In each field that is called an amount, of each model, of each operation: it is named, and its value never."""
    wallet_id, other = await alice.wallet(), await (await newcomer(client)).wallet()
    deposit = await alice.deposit(wallet_id)
    wallets = {"from_wallet_id": wallet_id, "to_wallet_id": other, "user_id": alice.id}
    found, schemas = await operations(client)
    before = await books.state(alice)
    tried = set()
    for method, path, operation in found:
        for model in body_models(operation, schemas):
            fields = model["properties"]
            for name in [name for name in fields if "amount" in name]:
                own = {**wallets, "to_wallet_id": other if "from_wallet_id" in fields else wallet_id}
                body = {field: good_value(field, fields[field], own) for field in model.get("required", [])}
                text = json.dumps(body | {name: "AMOUNT"})
                for amount in BAD_AMOUNTS:
                    if amount == "null" and name not in model.get("required", []):
                        continue  # all that is left
                    response = await client.request(
                        method,
                        path.replace("{transaction_id}", deposit),
                        content=text.replace('"AMOUNT"', amount),
                        headers=alice.headers | {"Content-Type": "application/json"},
                    )
                    what = f"{method} {path} {model['title']}.{name} = {amount[:30]}"
                    assert_refused(response, what)
                    if response.status_code == 422:
                        assert [error["field"] for error in response.json()["errors"]] == [name], what
                    assert len(amount) < 5 or amount.strip('"') not in text_without_ids(response), what
                tried.add((path, model["title"]))

    assert len(tried) >= 5
    assert await books.state(alice) == before


@pytest.mark.parametrize("name", ["min_amount", "max_amount"])
async def test_no_filter_takes_a_bad_amount(alice: Actor, name: str) -> None:
    for amount in BAD_AMOUNTS:
        value = (
            amount.strip('"').encode().decode("unicode_escape", "replace") if "\\u" in amount else amount.strip('"')
        )
        query = httpx.QueryParams({"currency": "USD", name: value.encode("utf-8", "replace").decode()})
        if value in {"1", "5 "}:
            continue
        response = await alice.call("GET", f"/transactions?{query}")
        assert_refused(response, amount)


@pytest.mark.parametrize(
    ("currency", "amount", "status"),
    [
        ("JPY", "100", 201),
        ("JPY", "100.5", 422),
        ("JPY", "100.0", 422),
        ("KWD", "1.005", 201),
        ("KWD", "1.0005", 422),
        ("XAU", "1", 422),
        ("XXX", "1", 422),
        ("usd", "1.00", 422),
    ],
)
async def test_an_amount_has_the_decimals_of_its_currency(
    alice: Actor, books: Books, currency: str, amount: str, status: int
) -> None:
    exists = await alice.call("POST", "/wallets/create", {"user_id": alice.id, "currency": currency})
    wallet_id = exists.json().get("id", str(new_id()))
    before = await books.state()

    response = await alice.try_to("deposit", amount, currency, to_wallet_id=wallet_id, payment_method="credit_card")

    assert response.status_code == status
    assert (await books.state() == before) == (status == 422)


# ------------------------------------------------------------------------------------------- parameters and filters


async def test_no_parameter_takes_an_operator(client: httpx.AsyncClient, admin: Actor, books: Books) -> None:
    """In every path and query parameter of every operation, also of those that only an admin gets to."""
    found, _ = await operations(client)
    before = await books.state()
    tried = 0
    for method, path, operation in found:
        for parameter in operation.get("parameters", []):
            body: dict[str, Any] | None = {} if "requestBody" in operation else None
            for operator in OPERATORS:
                value = httpx.QueryParams({"v": operator})
                encoded = str(value)[2:]
                if parameter["in"] == "path":
                    target = path.replace(f"{{{parameter['name']}}}", encoded.replace("+", "%20"))
                elif parameter["in"] == "query":
                    target = f"{filled(path)}?{parameter['name']}={encoded}"
                else:
                    continue
                response = await client.request(method, filled(target), json=body, headers=admin.headers)
                assert_refused(response, f"{method} {target}")
                tried += 1

    assert tried > 300
    assert await books.state() == before


@pytest.mark.parametrize("query", ["email[$ne]=x", "email[]=x", "filter={}", "$where=1", "sort=id"])
async def test_a_list_takes_no_parameter_that_it_does_not_have(admin: Actor, query: str) -> None:
    for path in ("/users", "/transactions"):
        response = await admin.call("GET", f"{path}?{query}")
        assert response.status_code in {400, 422}


@pytest.mark.parametrize(
    "limit", ["1000000000", "101", "0", "-1", "1e2", "9223372036854775808", "10.5", "", "٣", "null"]
)
async def test_a_page_has_a_hundred_entries_at_most(alice: Actor, admin: Actor, limit: str) -> None:
    wallet_id = await alice.wallet()
    for path in ("/transactions", f"/wallets/{wallet_id}/entries", "/users"):
        response = await admin.call("GET", f"{path}?limit={limit}")
        assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "limit")


# ----------------------------------------------------------------------------------------------------------- bodies


def every_body_of(found: list[Operation]) -> list[tuple[str, str]]:
    return [(method, filled(path)) for method, path, operation in found if "requestBody" in operation]


BODIES: Final = {
    "nothing": b"",
    "truncated": b'{"amount": 1',
    "list": b"[]",
    "null": b"null",
    "number": b"1e400",
    "NaN": b'{"amount": NaN}',
    "wrong types": b'{"email":1,"password":[],"user_id":true,"currency":{},"transaction_type":1,"amount":[]}',
    "control characters": b'{"first_name":"a\\r\\nSet-Cookie: x=1","description":"\\u001b[31m"}',
    "NUL": b'{"email":"a\\u0000@example.com","description":"\\u0000","user_id":"\\u0000","refresh_token":"\\u0000"}',
    "lone surrogate": b'{"email":"\\ud800@example.com","currency":"\\udfff","refresh_token":"\\ud800"}',
    "surrogate name": b'{"\\ud800":1}',
    "2^63": b'{"amount":9223372036854775808,"limit":9223372036854775808,"currency":9223372036854775808}',
    "deep lists": b"[" * 30_000 + b"]" * 30_000,
    "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "same names": b'{"currency":"USD","currency":"EUR"}',
    "escaped same names": b'{"email":"a","\\u0065mail":"b"}',
    "many names": b"{" + b",".join(b'"k%d":1' % number for number in range(5_000)) + b"}",
    "colliding names": b"{" + b",".join(b'"%s":1' % (b"a" * number) for number in range(1, 300)) + b"}",
    "long number": b'{"amount":' + b"9" * 60_000 + b"}",
    "long exponent": b'{"amount":1e' + b"9" * 60_000 + b"}",
    "not UTF-8": b'{"email":"\xff\xfe"}',
    "operators": b'{"email":{"$gt":""},"password":{"$ne":null},"currency":{"$regex":".*"},"user_id":["1"]}',
    "prototype": b'{"__proto__":{"role":"admin"},"__class__":"x","__init__":1}',
}


@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_was_thought_about_is_refused(
    client: httpx.AsyncClient, alice: Actor, books: Books, body: str
) -> None:
    found, _ = await operations(client)
    before = await books.state()
    for method, path in every_body_of(found):
        headers = alice.headers | {"Content-Type": "application/json"}
        assert_refused(await client.request(method, path, content=BODIES[body], headers=headers), f"{method} {path}")

    assert await books.state() == before


@pytest.mark.parametrize("body", [b"5.00", b"1e400", b"5", b'"5.00"', b"true", b"null", b"[]", b"[5.00]", b""])
async def test_what_is_no_object_gives_no_money_back(alice: Actor, books: Books, body: bytes) -> None:
    """Whoever means five dollars and sends just that does not give back everything, which is what `{}` asks for."""
    wallet_id = await alice.wallet()
    deposit = await alice.deposit(wallet_id)
    before = await books.state()

    response = await alice.client.post(
        f"/transactions/{deposit}/refund", content=body, headers=alice.headers | {"Content-Type": "application/json"}
    )

    assert response.status_code in {400, 422}
    assert await books.state() == before


async def test_a_compressed_body_is_refused_unread(
    client: httpx.AsyncClient, alice: Actor, platform: Platform
) -> None:
    found, _ = await operations(client)
    for url in (platform.gateway, platform.direct("transaction-service")):
        for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"):
            for method, path in (
                every_body_of(found) if url == platform.gateway else [("POST", "/transactions/create")]
            ):
                headers = alice.headers | {"Content-Type": "application/json", "Content-Encoding": encoding}
                response = await client.request(
                    method, url + path, content=b"\x1f\x8b" + b"\0" * 100, headers=headers
                )
                assert (response.status_code, response.json()["code"]) == (415, "content_encoding_unsupported")


@pytest.mark.parametrize("framing", ["Content-Length: 52428800", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("service", ["", "user-service", "wallet-service", "transaction-service"])
async def test_fifty_megabytes_are_refused_after_64_kilobytes(
    platform: Platform, alice: Actor, framing: str, service: str
) -> None:
    """The answer comes although the rest of the body never does."""
    path = {"user-service": "/users/register", "wallet-service": "/wallets/create"}.get(
        service, "/transactions/create"
    )
    chunk = b"10001\r\n" + b" " * 65_537 if "chunked" in framing else b""
    lines = (f"Authorization: {alice.headers['Authorization']}", "Content-Type: application/json", framing)

    answer = await talk(platform.direct(service) or platform.gateway, head("POST", path, *lines) + chunk)

    assert status_of(answer) == 413
    assert b'"body_too_large"' in answer


async def test_a_head_beyond_all_measure_is_refused(platform: Platform) -> None:
    heads = {
        "one header": head("GET", "/wallets", f"X: {'a' * 100_000}"),
        "many headers": head("GET", "/wallets", *(f"X-{number}: a" for number in range(10_000))),
        "path": head("GET", "/wallets/" + "a" * 100_000),
        "query": head("GET", "/wallets?" + "a" * 100_000),
        "without end": head("GET", "/wallets")[:-2] + b"X: a\r\n" * 10_000,
    }
    for url in (platform.gateway, platform.direct("wallet-service")):
        for name, data in heads.items():
            assert status_of(await talk(url, data)) == 431, name


class ImpatientProtocol(BoundedProtocol):
    """As in production, with less patience."""

    head_timeout_seconds = 0.3


@pytest.fixture(scope="module")
async def impatient(platform: Platform) -> AsyncIterator[str]:
    """A gateway that waits for a head, and for a body, a thirtieth of the time."""
    app = create_gateway(platform.sandbox.settings(GatewaySettings, **platform.services, rate_limit_per_minute=0))
    async with serving(app, http=ImpatientProtocol) as url:
        yield url


async def drip(url: str, first: bytes, drop: bytes) -> bytes:
    """Send `first`, and then a little now and then, until the answer has come."""
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    writer.write(first)
    reading = asyncio.create_task(reader.read(4096))
    try:
        async with asyncio.timeout(20):
            while not (await asyncio.wait([reading], timeout=0.05))[0]:
                writer.write(drop)
            return await reading
    finally:
        reading.cancel()
        writer.close()


@pytest.mark.parametrize(
    "first", [b"", b"GET /wallets", head("GET", "/wallets")[:-2]], ids=["nothing", "line", "header"]
)
async def test_a_head_that_drips_is_a_408(impatient: str, first: bytes) -> None:
    answer = await drip(impatient, first, b"X: a\r\n" if first.endswith(b"\n") else b"a" * bool(first))

    assert answer.startswith(b"HTTP/1.1 408 ")


@dataclass(frozen=True)
class Dripping:
    """Bodies that come for ever while other tests go on: who sends them, the answers, and the seconds they took."""

    actor: Actor
    answers: asyncio.Future[Any]


@pytest.fixture(scope="module", autouse=True)
async def dripping(client: httpx.AsyncClient, platform: Platform) -> AsyncIterator[Dripping]:
    """At the gateway and at a service, begun with the first test."""
    actor = await newcomer(client)
    lines = ("Content-Type: application/json", "Content-Length: 5000")
    own = f"Authorization: {actor.headers['Authorization']}"

    async def timed(url: str, path: str) -> tuple[bytes, float]:
        started_at = time.monotonic()
        answer = await drip(url, head("POST", path, own, *lines), b" ")
        return answer, time.monotonic() - started_at

    answers = asyncio.gather(
        timed(platform.gateway, "/transactions/create"),
        timed(platform.direct("wallet-service"), "/wallets/create"),
        timed(platform.gateway, "/users/register"),
    )
    yield Dripping(actor, answers)
    answers.cancel()


# ------------------------------------------------------------------------------------------------------------- logs


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What all services write to their logs, from DEBUG on."""
    root = logging.getLogger()
    [handler] = [each for each in root.handlers if type(each) is logging.StreamHandler]
    level, before = root.level, handler.setStream(stream := io.StringIO())
    for noisy in ("pymongo", "asyncio", "aiokafka", "hpack", "httpcore", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root.setLevel(logging.DEBUG)
    yield stream
    root.setLevel(level)
    handler.setStream(before)


async def test_no_text_from_outside_makes_a_line_of_the_log(
    client: httpx.AsyncClient, alice: Actor, platform: Platform, log: io.StringIO
) -> None:
    """Wherever it comes in, and whoever logs it: one JSON object a line, and nothing that a terminal obeys."""
    wallet_id = await alice.wallet()
    for text in FORGED_LINES:
        await client.post("/users/register", json=registration(first_name=text, email=f"a{text}@example.com"))
        await client.post("/users/login", json={"email": f"a{text}@example.com", "password": text})
        await alice.call("PATCH", "/users/me", {"first_name": text, "last_name": text})
        await alice.try_to("deposit", "1.00", to_wallet_id=wallet_id, payment_method="credit_card", description=text)
        await alice.try_to("transfer", text, text, from_wallet_id=text, to_wallet_id=wallet_id, metadata={text: text})
        quoted = str(httpx.QueryParams({"q": text}))[2:]
        await alice.call("GET", f"/transactions?{quoted}={quoted}")
        await alice.call("GET", f"/wallets/{quoted}")
        raw = text.encode()
        for url in (platform.gateway, platform.direct("user-service")):
            await talk(
                url, b"GET /users/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: " + raw + b"\r\n\r\n"
            )
            await talk(url, b"GET /" + raw + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await talk(url, head("GET", "/users/me").replace(b"\r\n\r\n", b"\r\nX-Request-Id: " + raw + b"\r\n\r\n"))
    await client.post(
        "/users/login", json={"email": alice.email, "password": "\r\nforged"}, headers={"X-Request-Id": "a" * 8}
    )
    logging.getLogger("tests").warning("to be seen: %s", FORGED_LINES[0])

    lines = log.getvalue().splitlines()
    assert any("to be seen" in line for line in lines)
    for line in lines:
        assert json.loads(line).keys() >= {"level", "logger", "message", "service", "time"}
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", log.getvalue())


async def test_no_password_and_no_token_is_in_any_log(
    client: httpx.AsyncClient, platform: Platform, log: io.StringIO
) -> None:
    secret = f"VerySecret{new_id().hex}"
    alice = await newcomer(client, password=secret)
    await client.post("/users/login", json={"email": alice.email, "password": secret + "x"})
    await client.post("/users/login", json={"email": secret, "password": secret, "extra": secret})
    await alice.call("POST", "/users/me/password", {"current_password": secret, "new_password": secret + "y"})
    await client.post("/users/refresh", json={"refresh_token": alice.refresh})
    await client.post("/users/refresh", json={"refresh_token": alice.refresh + secret})
    await client.get("/wallets", headers={"Authorization": f"Bearer {secret}.x.y"})
    await client.get(f"/wallets?access_token={secret}")
    for url in (platform.gateway, platform.direct("wallet-service")):
        await talk(url, head("GET", "/wallets", f"Authorization: Bearer {secret}", f"Authorization: Bearer {secret}"))
        await talk(url, head("GET", "/wallets", f"Authorization: {secret}\x01"))

    assert secret not in log.getvalue()
    assert alice.access.rpartition(".")[2] not in log.getvalue()
    assert alice.refresh not in log.getvalue()


async def test_a_body_that_drips_is_a_408_after_ten_seconds(dripping: Dripping) -> None:
    for answer, seconds in await dripping.answers:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 9 < seconds < 15
    for path in ("/wallets", "/transactions"):
        assert (await dripping.actor.call("GET", path)).json()["data"] == []
