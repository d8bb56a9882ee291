"""Ways past the gateway: odd paths, ambiguous requests, forged headers, and the services' own ports."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
import pytest

from shared.ids import new_id
from shared.testing.problems import without_ids
from shared.testing.tokens import service_headers
from tests.platform import Platform
from tests.security.people import PASSWORD, Actor, Books, newcomer
from tests.security.wire import head, status_of, talk

SERVICES: Final = ("user-service", "wallet-service", "transaction-service", "payment-gateway", "notification-service")
INTERNAL: Final = (
    "/internal/postings",
    "/internal/transactions",
    "/internal/orders",
    "/internal/sessions/01980000-0000-7000-8000-000000000001",
    "/internal/people/01980000-0000-7000-8000-000000000001/close",
    "/internal",
    "/metrics",
)
PRIVATE: Final = {
    "user-service": "/users/me",
    "wallet-service": "/wallets",
    "transaction-service": "/transactions",
    "payment-gateway": f"/payments/{new_id()}",
}


def code_in(answer: bytes) -> str | None:
    body = answer.partition(b"\r\n\r\n")[2]
    return json.loads(body)["code"] if body.startswith(b"{") else None


# ------------------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize(
    "target",
    [
        "/users/..%2finternal/sessions/1",
        "/users/..%2Finternal/sessions/1",
        "/users/%2e%2e/internal/sessions/1",
        "/users/%2E%2E%2Finternal",
        "/users/../internal/sessions/1",
        "/users/..;/internal/sessions/1",
        "/users;/internal",
        "/users/me;x=1",
        "/users/%252e%252e/internal",
        "/users/%252e%252e%252finternal",
        "/users/..%252finternal",
        "/users/..%c0%afinternal",
        "/users/..%5cinternal",
        "/users\\..\\internal",
        "/users/me%00",
        "/users/me%00.json",
        "/users/%00",
        "/users/me%20",
        "/users/me%0d%0aX-User-Id:%201",
        "/users/me%2f",
        "/users%2fme",
        "/%75sers/me",
        "/users//me",
        "//users/me",
        "//internal/postings",
        "/./internal/postings",
        "/users/./me",
        "/users/me/",
        "/USERS/me",
        "/users/me#/internal",
        "/users/me#",
        "/#/users/me",
        "/users/me?x#y",
        "/users/\xe9",
        "/users/me?x=%00",
        "http://gateway/internal/postings",
        "http://wallet-service/internal/postings",
        "http://gateway@evil/internal/postings",
    ],
)
async def test_an_odd_spelling_of_a_path_leads_nowhere(platform: Platform, mallory: Actor, target: str) -> None:
    answer = await talk(platform.gateway, head("GET", target, f"Authorization: {mallory.headers['Authorization']}"))

    assert status_of(answer) in {400, 404}
    assert code_in(answer) in {"route_not_found", "url_invalid", None}
    assert mallory.email.encode() not in answer


@pytest.mark.parametrize("path", INTERNAL)
async def test_what_is_internal_is_nowhere(client: httpx.AsyncClient, mallory: Actor, path: str) -> None:
    """Neither to a person nor to whoever has a service's token, by no method, under no prefix."""
    for headers in ({}, mallory.headers, service_headers("api-gateway", "wallet-service")):
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            response = await client.request(method, path, headers=headers)
            assert response.status_code == 404
        for prefix in ("/users", "/wallets", "/transactions", "/payments", "/notifications", "/health", "/docs"):
            assert (await client.post(prefix + path, headers=headers)).status_code in {401, 404, 405}


async def test_no_document_speaks_of_what_is_internal(client: httpx.AsyncClient, platform: Platform) -> None:
    for url in (platform.gateway, *map(platform.direct, SERVICES)):
        document = await client.get(f"{url}/openapi.json")
        assert document.status_code == 200
        assert not re.search(r"internal/|metrics|Parcel|Posting|OrderIn|X-Gateway-Token", document.text)
        assert "internal" not in (await client.get(f"{url}/docs")).text


@pytest.mark.parametrize(
    "path", ["/docs/assets/..%2f..%2fmain.py", "/docs/assets/../../main.py", "/docs/assets/%2e%2e"]
)
async def test_the_documentation_shows_no_other_files(platform: Platform, path: str) -> None:
    for url in (platform.gateway, *map(platform.direct, SERVICES)):
        assert status_of(await talk(url, head("GET", path))) in {400, 404}


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "OPTIONS", "HEAD", "PURGE", "get"])
async def test_no_other_method_reaches_a_service(platform: Platform, mallory: Actor, method: str) -> None:
    answer = await talk(
        platform.gateway, head(method, "/users/me", f"Authorization: {mallory.headers['Authorization']}")
    )

    assert status_of(answer) in {400, 404, 405}
    assert mallory.email.encode() not in answer


async def test_a_method_is_not_overridden(client: httpx.AsyncClient, alice: Actor) -> None:
    wallet_id = await alice.wallet()
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        response = await alice.call("GET", f"/wallets/{wallet_id}", **{name: "DELETE"})
        assert response.status_code == 200
        assert (
            await alice.call("POST", f"/users/sessions/{alice.session_id}", **{name: "DELETE"})
        ).status_code == 405


# ---------------------------------------------------------------------------------------------- ambiguous requests


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Host: other"], id="two hosts"),
        pytest.param(["host: gateway"], id="one host twice"),
        pytest.param(["Content-Length: 5", "Transfer-Encoding: chunked"], id="length, then chunked"),
        pytest.param(["Transfer-Encoding: chunked", "Content-Length: 5"], id="chunked, then length"),
        pytest.param(["Content-Length: 2", "Content-Length: 3"], id="two lengths"),
        pytest.param(["Content-Length: +2"], id="signed length"),
        pytest.param(["Content-Length: 2,2"], id="length list"),
        pytest.param(["Content-Length: 0x2"], id="hexadecimal length"),
        pytest.param(["Content-Length: -1"], id="negative length"),
        pytest.param(["Transfer-Encoding: chunked, identity"], id="chunked not last"),
        pytest.param(["Transfer-Encoding: xchunked"], id="unknown encoding"),
        pytest.param(["Transfer-Encoding : chunked"], id="blank before colon"),
        pytest.param(["Authorization: Bearer x"], id="two authorizations"),
        pytest.param(["Idempotency-Key: a", "Idempotency-Key: b"], id="two keys"),
        pytest.param(["Content-Type: application/json", "content-type: text/plain"], id="two types"),
        pytest.param(["User-Agent: a\r\n b"], id="folded header"),
        pytest.param(["User-Agent: a\x01b"], id="control character"),
        pytest.param(["Idempotency-Key: a\x00b"], id="NUL"),
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_is_read_in_none(
    platform: Platform, books: Books, mallory: Actor, lines: list[str]
) -> None:
    before = await books.state()
    smuggled = head("GET", "/internal/postings")

    answer = await talk(
        platform.gateway,
        head("POST", "/wallets/create", f"Authorization: {mallory.headers['Authorization']}", *lines)
        + b"0\r\n\r\n"
        + smuggled,
    )

    assert status_of(answer) == 400
    assert await books.state() == before


@pytest.mark.parametrize("target", ["gateway", "wallet-service"])
async def test_a_body_is_never_the_next_request(platform: Platform, mallory: Actor, target: str) -> None:
    """What is sent as a body stays one, at the gateway and at the services."""
    url = platform.gateway if target == "gateway" else platform.direct(target)
    body = head("GET", "/wallets", f"Authorization: {mallory.headers['Authorization']}")

    answer = await talk(url, head("GET", "/wallets", f"Content-Length: {len(body)}") + body)

    assert status_of(answer) == 401


async def test_headers_named_as_hop_by_hop_are_not_taken_away(alice: Actor, books: Books) -> None:
    """The gateway writes a service's headers anew: nobody talks it out of the key, the address or its own proof."""
    source, target = await alice.wallet(), await (await newcomer(alice.client)).wallet()
    await alice.deposit(source)
    connection = "Authorization, Idempotency-Key, X-Forwarded-For, X-Gateway-Token, X-Request-Id, Content-Type"
    body = {
        "transaction_type": "transfer",
        "amount": "1.00",
        "currency": "USD",
        "from_wallet_id": source,
        "to_wallet_id": target,
    }
    headers = {"Connection": connection, "Idempotency-Key": "once"}

    first = await alice.call("POST", "/transactions/create", body, **headers)
    again = await alice.call("POST", "/transactions/create", body, **headers)

    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotent-replayed"] == "true"
    assert await books.sql("select balance_minor from wallets.accounts where id = $1::uuid", source) == [(9_900,)]


# -------------------------------------------------------------------------------------------------- forged headers


@pytest.mark.parametrize("service", PRIVATE)
async def test_a_service_port_believes_no_header_that_says_who_calls(
    client: httpx.AsyncClient, platform: Platform, admin: Actor, service: str
) -> None:
    forged = {
        "X-User-Id": admin.id,
        "X-User-Role": "admin",
        "X-Forwarded-User": admin.id,
        "X-Authenticated-User": admin.email,
        "X-Session-Id": admin.session_id,
        "X-Internal": "true",
        "X-Forwarded-For": "127.0.0.1",
        "Cookie": f"access_token={admin.access}",
        "X-Access-Token": admin.access,
        "Proxy-Authorization": admin.headers["Authorization"],
    } | {"X-Gateway-Token": service_headers("api-gateway", service)["Authorization"].removeprefix("Bearer ")}
    path = PRIVATE[service]
    for url in (platform.direct(service), platform.gateway):
        for target in (path, f"{path}?access_token={admin.access}"):
            response = await client.get(url + target, headers=forged)
            assert (response.status_code, response.json()["code"]) == (401, "unauthorized")


async def test_the_callers_own_role_counts_and_no_other(client: httpx.AsyncClient, mallory: Actor) -> None:
    for headers in ({"X-User-Role": "admin"}, {"X-User-Id": str(new_id())}, {"Role": "admin"}):
        assert (await mallory.call("GET", "/users", **headers)).status_code == 403
        assert (await mallory.call("GET", "/users/me", **headers)).json()["id"] == mallory.id


async def test_only_the_gateway_says_where_somebody_comes_from(
    client: httpx.AsyncClient, platform: Platform, alice: Actor
) -> None:
    """Its proof in a caller's hands is worth nothing through the gateway, nor is any other anywhere."""
    proof = service_headers("api-gateway", "user-service")["Authorization"].removeprefix("Bearer ")
    others = [
        "forged",
        alice.access,
        service_headers("api-gateway", "wallet-service")["Authorization"].removeprefix("Bearer "),
        service_headers("wallet-service", "user-service")["Authorization"].removeprefix("Bearer "),
    ]
    attempts = [(platform.gateway, proof), *((platform.direct("user-service"), other) for other in others)]
    for url, token in attempts:
        response = await client.post(
            f"{url}/users/login",
            json={"email": alice.email, "password": PASSWORD},
            headers={"X-Forwarded-For": "203.0.113.99", "X-Gateway-Token": token},
        )
        assert response.status_code == 200

    sessions = (await alice.call("GET", "/users/sessions")).json()["data"]
    assert [session["ip"] for session in sessions] == ["127.0.0.1"] * (len(attempts) + 1)


async def test_a_caller_sets_no_deadline_and_no_strange_request_id(client: httpx.AsyncClient, alice: Actor) -> None:
    for value in ("1", "0", "999999"):
        assert (await alice.call("GET", "/wallets", **{"X-Deadline-Ms": value})).status_code == 200
    for strange in ("x", "a" * 65, "../../etc/passwd", "<script>", "a b c d e f g", "\u00e9" * 10):
        headers = {b"X-Request-Id": strange.encode(), b"Authorization": alice.headers["Authorization"].encode()}
        response = await client.get("/wallets", headers=headers)
        assert response.headers["x-request-id"] != strange
        assert re.fullmatch(r"[0-9a-f-]{36}", response.headers["x-request-id"])


# ------------------------------------------------------------------------------------------------------ rate limits


@pytest.fixture
async def limited(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with the limits that it has by default, and a memory of its own."""
    prefix = f"{platform.sandbox.environment['REDIS_KEY_PREFIX']}{new_id()}:"
    async with (
        platform.another_gateway(redis_key_prefix=prefix) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client


def rotated(number: int) -> dict[str, str]:
    """Another address each time, in every header that was ever believed somewhere."""
    address = f"198.51.100.{number}"
    return {
        "X-Forwarded-For": f"{address}, 127.0.0.1",
        "X-Real-IP": address,
        "Forwarded": f"for={address}",
        "True-Client-IP": address,
        "CF-Connecting-IP": address,
    }


def assert_limited(response: httpx.Response, limit: int) -> None:
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    assert 0 < int(response.headers["retry-after"]) <= 60
    assert (response.headers["ratelimit-limit"], response.headers["ratelimit-remaining"]) == (str(limit), "0")


async def test_the_hundred_and_first_request_in_a_minute_is_refused_whatever_address_it_says(
    limited: httpx.AsyncClient, mallory: Actor
) -> None:
    """With a good token, a bad one, or none: all count."""
    headers = [mallory.headers, {"Authorization": "Bearer x.y.z"}, {}]
    paths = ["/wallets", "/wallets?x=1", "/users/me", "/transactions", "/openapi.json"]

    statuses = [
        (await limited.get(paths[n % 5], headers=headers[n % 3] | rotated(n))).status_code for n in range(100)
    ]

    assert set(statuses) == {200, 401}
    for path in ("/wallets", "/users/me", "/docs", "/"):
        assert_limited(await limited.get(path, headers=mallory.headers | rotated(200)), 100)
    assert (await limited.get("/health/live", headers=rotated(201))).status_code == 200


async def test_the_eleventh_login_in_a_minute_is_refused_however_it_is_spelled(
    limited: httpx.AsyncClient, alice: Actor, books: Books
) -> None:
    body: dict[str, Any] = {"email": alice.email, "password": PASSWORD}
    targets = ["/users/login", "/users/login?x=1", "/users/login?", "http://other/users/login"]
    host = {"Host": "gateway"}

    statuses = [
        (await limited.post(targets[n % 3], json=body, headers=rotated(n) | host)).status_code for n in range(10)
    ]
    before = await books.state()

    assert statuses == [200] * 10
    for target in targets[:3]:
        assert_limited(await limited.post(target, json=body, headers=rotated(100)), 10)
    wire = json.dumps(body).encode()
    answer = await talk(
        str(limited.base_url),
        head("POST", targets[3], "Content-Type: application/json", f"Content-Length: {len(wire)}") + wire,
    )
    assert status_of(answer) in {400, 404, 429}
    assert await books.state() == before
    assert (await limited.get("/wallets", headers=alice.headers)).status_code == 200


async def test_a_refusal_at_the_gateway_looks_like_one_of_the_services(
    client: httpx.AsyncClient, platform: Platform
) -> None:
    """No answer tells how deep a request got."""
    through = await client.get("/wallets")
    around = await client.get(f"{platform.direct('wallet-service')}/wallets")

    assert without_ids(through) == without_ids(around)
    assert "server" not in through.headers
    assert "x-powered-by" not in through.headers
