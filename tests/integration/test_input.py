"""Whatever is sent to whichever operation: a clear refusal, never a 500, and nothing moves.

The operations come from the gateway's OpenAPI document, so a new one is covered the day it exists.
"""

import asyncio
import json
from typing import Any

import httpx
import pytest

from shared.testing.tokens import Person

HOSTILE_BODIES = {
    "empty": b"",
    "truncated": b'{"amount": 1',
    "array": b"[]",
    "null": b"null",
    "number": b"1e400",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 30_000 + b"]" * 30_000,
    "deep object": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "duplicate keys": b'{"currency": "USD", "currency": "EUR"}',
    "NaN": b'{"amount": NaN}',
    "NUL": b'{"email": "a\\u0000@example.com", "description": "\\u0000"}',
    "lone surrogate": b'{"email": "\\ud800@example.com", "first_name": "\\udfff"}',
    "lone surrogate key": b'{"\\ud800": 1}',
    "huge integer": b'{"amount": ' + b"9" * 50_000 + b"}",
    "operators": b'{"email": {"$gt": ""}, "password": {"$ne": null}, "user_id": {"$where": "1"}}',
    "control characters": b'{"first_name": "a\\r\\nSet-Cookie: x=1", "description": "\\u001b[31m"}',
    "2^63": b'{"amount": 9223372036854775808, "limit": 9223372036854775808}',
    "wrong types": b'{"email": 1, "password": [], "user_id": true, "currency": {}, "transaction_type": 1}',
}
HOSTILE_VALUES = ["%00", "..%2f..", "%ff", "$gt", "1' or '1'='1", "9" * 400, "%0d%0aSet-Cookie:%20a=b", "null", "-1"]


async def operations(client: httpx.AsyncClient) -> list[tuple[str, str, dict[str, Any]]]:
    document = (await client.get("/openapi.json")).json()
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in {"get", "post", "put", "patch", "delete"} and not path.startswith("/health")
    ]


def assert_clear(response: httpx.Response, what: str) -> None:
    assert 400 <= response.status_code < 500, f"{what}: {response.status_code} {response.text}"
    assert response.headers["content-type"] == "application/problem+json", what
    problem = response.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "code", "request_id"}, what
    assert problem["status"] == response.status_code
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text


async def money(platform: Any) -> list[Any]:
    connection = await platform.sandbox.connect()
    try:
        return [
            await connection.fetch("select * from wallets.entries order by account_id, version"),
            await connection.fetch("select id, balance_minor, held_minor from wallets.accounts order by id"),
            await connection.fetchval("select count(*) from users.users"),
            await connection.fetchval("select count(*) from transactions.transactions"),
            await connection.fetchval("select count(*) from payments.payments"),
        ]
    finally:
        await connection.close()


async def test_the_document_names_the_sample_operations(client: httpx.AsyncClient) -> None:
    found = {(method, path) for method, path, _ in await operations(client)}

    assert found >= {
        ("POST", "/users/register"),
        ("POST", "/users/login"),
        ("POST", "/wallets/create"),
        ("POST", "/transactions/create"),
        ("GET", "/wallets/{wallet_id}"),
        ("GET", "/transactions/{transaction_id}"),
    }
    assert not [path for _, path in found if "internal" in path or "metrics" in path]


@pytest.mark.parametrize("name", HOSTILE_BODIES)
async def test_a_hostile_body_is_refused_by_every_operation_that_takes_one(
    client: httpx.AsyncClient, platform: Any, name: str
) -> None:
    before = await money(platform)
    alice = Person()
    tried = 0
    for method, path, operation in await operations(client):
        if "requestBody" in operation:
            response = await client.request(
                method,
                path,
                content=HOSTILE_BODIES[name],
                headers=alice.headers | {"Content-Type": "application/json"},
            )
            assert_clear(response, f"{method} {path}")
            tried += 1
    assert tried >= 4
    assert await money(platform) == before


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_a_compressed_body_is_refused_unread(client: httpx.AsyncClient, encoding: str) -> None:
    for method, path, operation in await operations(client):
        if "requestBody" in operation:
            headers = Person().headers | {"Content-Type": "application/json", "Content-Encoding": encoding}
            response = await client.request(method, path, content=b"\x1f\x8b" + b"\0" * 100, headers=headers)
            assert (response.status_code, response.json()["code"]) == (415, "content_encoding_unsupported")


@pytest.mark.parametrize("framing", ["Content-Length: 52428800", "Transfer-Encoding: chunked"])
async def test_fifty_megabytes_are_refused_after_64_kilobytes(platform: Any, framing: str) -> None:
    """The answer comes although the rest of the body never does, and the connection ends with it."""
    host, _, port = platform.gateway.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /users/register HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    chunk = b"10001\r\n" + b" " * 65_537 if "chunked" in framing else b""
    writer.write(head.encode() + chunk)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_too_large"


@pytest.mark.parametrize("value", HOSTILE_VALUES)
async def test_a_hostile_id_or_parameter_is_refused(client: httpx.AsyncClient, platform: Any, value: str) -> None:
    before = await money(platform)
    alice = Person()
    for method, path, operation in await operations(client):
        parameters = operation.get("parameters", [])
        in_path = [parameter["name"] for parameter in parameters if parameter["in"] == "path"]
        body = json.dumps({}).encode() if "requestBody" in operation else None
        headers = alice.headers | ({"Content-Type": "application/json"} if body else {})
        if in_path:
            url = path
            for name in in_path:
                url = url.replace(f"{{{name}}}", value)
            assert_clear(await client.request(method, url, content=body, headers=headers), url)
        for parameter in parameters:
            if parameter["in"] == "query" and not in_path:
                url = f"{path}?{parameter['name']}={value}"
                assert_clear(await client.request(method, url, content=body, headers=headers), url)
    assert await money(platform) == before


async def test_no_operation_but_the_public_ones_answers_without_a_token(client: httpx.AsyncClient) -> None:
    public = {("POST", "/users/register"), ("POST", "/users/login"), ("POST", "/users/refresh")}
    for method, path, operation in await operations(client):
        url = path.replace("{", "").replace("}", "")
        body = b"{}" if "requestBody" in operation else None
        response = await client.request(
            method, url, content=body, headers={"Content-Type": "application/json"} if body else {}
        )
        if (method, path) in public:
            assert response.status_code == 422
        else:
            assert response.status_code == 401, f"{method} {path}"
            assert response.headers["WWW-Authenticate"] == "Bearer"
