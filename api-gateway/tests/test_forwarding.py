"""What passes the gateway, what does not, and what becomes of it."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest

from api_gateway.app import create_app
from api_gateway.breaker import FAILURES_TO_OPEN
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Received, Service, http_answer, json_answer, standing_in
from shared.auth import ServiceTokens
from shared.http import edge
from shared.settings import DEVELOPMENT_SERVICE_SECRET
from shared.testing.servers import in_process, serving
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually

ALICE = Person()
LIMIT_SECONDS = 5.0


def assert_problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text


def requests_at(services: dict[str, Service]) -> dict[str, int]:
    return {name: len(service.requests) for name, service in services.items() if service.requests}


# ----------------------------------------------------------------------------------------------- requests and answers


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/users/me", "user-service"),
        ("/wallets", "wallet-service"),
        ("/wallets/0190b6a0-7c1e-7000-8000-000000000000/balance", "wallet-service"),
        ("/transactions/create", "transaction-service"),
        ("/payments/webhooks/stripe", "payment-gateway"),
        ("/notifications", "notification-service"),
    ],
)
async def test_the_first_segment_decides_the_service(
    client: httpx.AsyncClient, services: dict[str, Service], path: str, name: str
) -> None:
    response = await client.get(path, headers=ALICE.headers)

    assert (response.status_code, response.json()) == (200, {"ok": True})
    assert requests_at(services) == {name: 1}
    assert services[name].requests[0].target == path


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_method_query_and_body_arrive_byte_for_byte(
    client: httpx.AsyncClient, services: dict[str, Service], method: str
) -> None:
    body = bytes(range(256)) * 255 + b'{"amount": 100.00, "amount": 1}'

    await client.request(method, "/wallets?a=%2F..%01x&b=1+2&&c", content=body, headers=ALICE.headers)

    [received] = services["wallet-service"].requests
    assert (received.method, received.target) == (method, "/wallets?a=%2F..%01x&b=1+2&&c")
    assert received.body == body


async def test_only_known_headers_reach_the_service(client: httpx.AsyncClient, services: dict[str, Service]) -> None:
    given = ALICE.headers | {
        "Accept": "application/json",
        "Accept-Language": "de",
        "Content-Type": "application/json",
        "Idempotency-Key": "rent-2026-11",
        "Last-Event-ID": "17",
        "User-Agent": "tests",
    }
    forged = {
        "X-User-Id": "1",
        "X-Forwarded-For": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "X-Deadline-Ms": "999999",
        "Cookie": "a=b",
        "Connection": "keep-alive, Authorization",
        "Accept-Encoding": "gzip",
        "X-Original-URL": "/internal/postings",
    }

    response = await client.post("/wallets/create", content=b"{}", headers=given | forged)

    [received] = services["wallet-service"].requests
    headers = {name.lower(): value for name, value in received.headers}
    assert len(headers) == len(received.headers)
    host = httpx.URL(services["wallet-service"].url).netloc.decode()
    assert 9_000 < int(headers.pop("x-deadline-ms")) <= 10_000
    assert headers.pop("traceparent").startswith("00-")
    proof = headers.pop("x-gateway-token").removeprefix("Bearer ")
    assert ServiceTokens(DEVELOPMENT_SERVICE_SECRET, "wallet-service").verify(proof) == "api-gateway"
    assert headers == {name.lower(): value for name, value in given.items()} | {
        "host": host,
        "content-length": "2",
        "x-forwarded-for": "127.0.0.1",
        "x-request-id": response.headers["x-request-id"],
    }


async def test_nothing_is_said_that_the_caller_did_not_say(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    request = client.build_request("GET", "/wallets", headers=ALICE.headers)
    for name in ("accept", "accept-encoding", "connection", "user-agent"):
        del request.headers[name]

    await client.send(request)

    headers = {name.lower(): value for name, value in services["wallet-service"].requests[0].headers}
    own = {"host", "x-request-id", "traceparent", "x-deadline-ms", "x-forwarded-for"}
    assert headers.keys() == own | {"authorization"}


async def test_a_sane_request_id_and_trace_go_along(client: httpx.AsyncClient, services: dict[str, Service]) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    await client.get("/wallets", headers=ALICE.headers | {"X-Request-Id": "request-1", "traceparent": trace})

    [received] = services["wallet-service"].requests
    assert (received.header("x-request-id"), received.header("traceparent")) == ("request-1", trace)


async def test_only_known_headers_reach_the_caller(client: httpx.AsyncClient, services: dict[str, Service]) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(
            http_answer(
                "402 Payment Required",
                b'{"code":"card_declined"}',
                "Content-Type: application/problem+json",
                "Idempotent-Replayed: true",
                "Retry-After: 7",
                "Location: /transactions/1",
                "Set-Cookie: a=b",
                "Server: uvicorn",
                "X-Powered-By: Python",
                "X-Request-Id: another",
            )
        )

    services["wallet-service"].answer = answer

    response = await client.post("/wallets/create", headers=ALICE.headers | {"X-Request-Id": "request-1"})

    assert (response.status_code, response.content) == (402, b'{"code":"card_declined"}')
    assert dict(response.headers) == {
        "content-length": "24",
        "content-type": "application/problem+json",
        "idempotent-replayed": "true",
        "retry-after": "7",
        "location": "/transactions/1",
        "x-request-id": "request-1",
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-frame-options": "DENY",
        "ratelimit-limit": "100",
        "ratelimit-remaining": "99",
        "ratelimit-reset": "60",
    }


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "307 Temporary Redirect", "500 Oops"])
async def test_every_status_passes_and_no_redirect_is_followed(
    client: httpx.AsyncClient, services: dict[str, Service], status: str
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".encode())

    services["wallet-service"].answer = answer

    response = await client.get("/wallets", headers=ALICE.headers)

    assert (response.status_code, response.content) == (int(status[:3]), b"")
    assert len(services["wallet-service"].requests) == 1


async def test_connections_are_used_again(client: httpx.AsyncClient, services: dict[str, Service]) -> None:
    for _ in range(20):
        await client.get("/wallets", headers=ALICE.headers)

    assert (len(services["wallet-service"].requests), services["wallet-service"].connections) == (20, 1)


async def test_a_large_answer_without_a_length_passes_whole(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/csv\r\n\r\n")
        for _piece in range(50):
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    services["wallet-service"].answer = answer

    response = await client.get("/wallets/1/statement", headers=ALICE.headers)

    assert (response.status_code, response.content) == (200, b"x" * 65_536 * 50)


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "path",
    [
        "/users/",
        "/users//me",
        "//users/me",
        "/users/..%2finternal/postings",
        "/users%2fme",
        "/users/%2e%2e/internal",
        "/users/%252e%252e/internal",
        "/users/me;a=b",
        "/users/me%0d%0aX:1",
        "/users/%ff",
        "/Users/me",
        "/usersx/me",
        "/users.json",
        "/internal/postings",
        "/wallets/../internal/postings",
        "/metrics",
        "/%6detrics",
        "/%68ealth",
        "/health/",
        "/redoc",
        "/docs/oauth2-redirect",
    ],
)
async def test_a_path_off_the_list_is_a_404(
    client: httpx.AsyncClient, services: dict[str, Service], path: str
) -> None:
    request = client.build_request("GET", "/", headers=ALICE.headers)
    request.url = RawUrl(path)

    assert_problem(await client.send(request), 404, "route_not_found")
    assert requests_at(services) == {}


class RawUrl(httpx.URL):
    """A URL whose path nobody tidies up."""

    def __init__(self, path: str) -> None:
        super().__init__("http://service/")
        self._raw = path.encode()

    @property
    def raw_path(self) -> bytes:
        return self._raw

    @property
    def path(self) -> str:
        return httpx.URL("http://service/").copy_with(raw_path=self._raw).path


@pytest.mark.parametrize("path", ["/users/me%00", "/%00", "/users/me?a=%00"])
async def test_a_nul_in_the_url_is_a_400(client: httpx.AsyncClient, services: dict[str, Service], path: str) -> None:
    assert_problem(await client.get(path, headers=ALICE.headers), 400, "url_invalid")
    assert requests_at(services) == {}


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
async def test_another_method_is_a_405(client: httpx.AsyncClient, services: dict[str, Service], method: str) -> None:
    request = client.build_request("GET", "/wallets", headers=ALICE.headers)
    request.method = method

    response = await client.send(request)

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "DELETE, GET, PATCH, POST, PUT"
    assert requests_at(services) == {}


@pytest.mark.parametrize("name", ["Authorization", "Idempotency-Key", "Content-Type", "Host", "Last-Event-ID"])
@pytest.mark.parametrize("path", ["/wallets/create", "/users/login", "/health"])
async def test_a_header_that_must_be_single_and_comes_twice_is_a_400(
    client: httpx.AsyncClient, services: dict[str, Service], name: str, path: str
) -> None:
    given = [(name, "a"), (name.lower(), "a")] + ([] if name == "Authorization" else [*ALICE.headers.items()])

    assert_problem(await client.post(path, headers=given), 400, "header_repeated")
    assert requests_at(services) == {}


async def test_a_body_of_sixty_four_kilobytes_passes_and_one_byte_more_is_a_413(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    passed = await client.post("/wallets/create", content=b"x" * 65_536, headers=ALICE.headers)
    refused = await client.post("/wallets/create", content=b"x" * 65_537, headers=ALICE.headers)

    assert passed.status_code == 200
    assert_problem(refused, 413, "body_too_large")
    assert [len(received.body) for received in services["wallet-service"].requests] == [65_536]


async def test_a_body_without_a_length_is_refused_at_the_limit(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1024

    assert_problem(
        await client.post("/wallets/create", content=endless(), headers=ALICE.headers), 413, "body_too_large"
    )
    assert requests_at(services) == {}


# ------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("path", ["/users/register", "/users/login"])
async def test_registration_and_login_need_no_token(
    client: httpx.AsyncClient, services: dict[str, Service], path: str
) -> None:
    assert (await client.post(path, content=b"{}")).status_code == 200
    assert services["user-service"].requests[0].header("authorization") is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/users/register"),
        ("GET", "/users/login"),
        ("POST", "/users/login/x"),
        ("POST", "/users"),
        ("GET", "/users/me"),
        ("POST", "/wallets/create"),
        ("POST", "/transactions/create"),
        ("GET", "/payments"),
        ("GET", "/notifications"),
    ],
)
async def test_everything_else_needs_one(
    client: httpx.AsyncClient, services: dict[str, Service], method: str, path: str
) -> None:
    response = await client.request(method, path)

    assert_problem(response, 401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"
    assert requests_at(services) == {}


TOKEN = ALICE.headers["Authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic YTpi",
        TOKEN,
        f"Token {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-2]}",
        f"Bearer  {TOKEN}",
        "Bearer " + TOKEN.replace(TOKEN.split(".")[0], "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"),
        "Bearer " + "a" * 30_000,
        service_headers("transaction-service", "wallet-service")["Authorization"],
    ],
)
async def test_a_token_that_does_not_count_is_a_401(
    client: httpx.AsyncClient, services: dict[str, Service], authorization: str
) -> None:
    await client.get("/wallets", headers=ALICE.headers)  # a good one is known

    response = await client.get("/wallets", headers={"Authorization": authorization})

    assert_problem(response, 401, "unauthorized")
    assert requests_at(services) == {"wallet-service": 1}


# ----------------------------------------------------------------------------------------------------------- failures


async def test_a_service_that_is_not_there_is_a_503(settings: GatewaySettings) -> None:
    async with standing_in() as gone:
        url = gone.url
    async with in_process(create_app(settings.model_copy(update={"wallet_service_url": url}))) as client:
        response = await client.post("/wallets/create", headers=ALICE.headers)

    assert_problem(response, 503, "service_unavailable")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{",
        b"not http\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
    ids=["nothing", "half-a-head", "half-a-body", "garbage", "two-lengths"],
)
async def test_a_service_that_breaks_off_is_a_502(
    client: httpx.AsyncClient, services: dict[str, Service], sent: bytes
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()

    services["transaction-service"].answer = answer

    response = await client.post("/transactions/create", headers=ALICE.headers)

    assert_problem(response, 502, "bad_gateway")
    assert response.headers["retry-after"] == "1"
    assert len(services["transaction-service"].requests) == 1


async def test_a_service_that_was_gone_answers_again_when_it_is_back(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    await client.get("/wallets", headers=ALICE.headers)
    services["wallet-service"].drop()

    assert (await client.get("/wallets", headers=ALICE.headers)).status_code == 200


async def test_a_get_that_broke_off_is_sent_once_more_with_what_is_left_of_its_time(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    async def break_off(_: Received, writer: asyncio.StreamWriter) -> None:
        services["wallet-service"].answer = json_answer({"ok": True})
        await asyncio.sleep(0.2)
        writer.close()

    services["wallet-service"].answer = break_off

    assert (await client.get("/wallets", headers=ALICE.headers)).json() == {"ok": True}

    first, second = (int(received.header("x-deadline-ms") or 0) for received in services["wallet-service"].requests)
    assert second <= first - 200


async def test_a_get_that_breaks_off_twice_is_a_502(client: httpx.AsyncClient, services: dict[str, Service]) -> None:
    async def break_off(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.close()

    services["wallet-service"].answer = break_off

    assert_problem(await client.get("/wallets", headers=ALICE.headers), 502, "bad_gateway")
    assert requests_at(services) == {"wallet-service": 2}


@pytest.mark.parametrize(
    "sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"], ids=["silent", "half-a-body"]
)
async def test_a_service_that_does_not_answer_in_time_is_a_504(
    settings: GatewaySettings, services: dict[str, Service], sent: bytes
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await asyncio.Event().wait()

    services["wallet-service"].answer = answer
    async with in_process(create_app(settings.model_copy(update={"forward_timeout_seconds": 0.2}))) as client:
        response = await client.post("/wallets/watched", headers=ALICE.headers)

    assert_problem(response, 504, "gateway_timeout")
    assert response.headers["retry-after"] == "1"
    [received] = services["wallet-service"].requests
    assert 0 < int(received.header("x-deadline-ms") or 0) <= 200
    async with asyncio.timeout(LIMIT_SECONDS):
        await services["wallet-service"].hung_up.wait()


@pytest.mark.parametrize("body_seconds", [0.15, 0.3], ids=["little-time-left", "no-time-left"])
async def test_a_body_that_uses_up_its_time_is_not_the_services_fault(
    client: httpx.AsyncClient, services: dict[str, Service], monkeypatch: pytest.MonkeyPatch, body_seconds: float
) -> None:
    monkeypatch.setattr(edge, "DEFAULT_DEADLINE_SECONDS", 0.2)
    whole = asyncio.Event()

    async def silence(_: Received, __: asyncio.StreamWriter) -> None:
        await whole.wait()

    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(body_seconds)
        yield b"}"

    services["wallet-service"].answer = silence
    headers = ALICE.headers | {"Content-Type": "application/json"}
    late = await asyncio.gather(
        *(client.post("/wallets/create", content=slowly(), headers=headers) for _ in range(2 * FAILURES_TO_OPEN))
    )
    whole.set()
    services["wallet-service"].answer = json_answer({"ok": True})

    assert {response.status_code for response in late} <= {503, 504}
    assert {response.json()["code"] for response in late} <= {"unavailable", "service_unavailable", "gateway_timeout"}
    assert (await client.get("/wallets", headers=ALICE.headers)).status_code == 200


async def test_a_service_that_hangs_does_not_hold_up_the_others(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    async def silence(_: Received, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    services["wallet-service"].answer = silence
    hanging = [asyncio.create_task(client.get("/wallets/watched", headers=ALICE.headers)) for _ in range(100)]

    assert (await client.get("/users/me", headers=ALICE.headers)).status_code == 200

    for task in hanging:
        task.cancel()
    await asyncio.wait(hanging)


# ------------------------------------------------------------------------------------------------------------ streams

SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def test_events_arrive_while_the_stream_goes_on_and_it_outlives_the_time_limit(
    settings: GatewaySettings, services: dict[str, Service]
) -> None:
    received_first = asyncio.Event()
    short = settings.model_copy(update={"forward_timeout_seconds": 0.2})
    clock = asyncio.get_running_loop().time
    over_at = clock() + LIMIT_SECONDS

    async def limit_is_over() -> bool:
        return clock() > over_at

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b"data: 1\n\n"))
        await received_first.wait()
        await eventually(limit_is_over)
        writer.write(chunk(b"data: 2\n\n") + b"0\r\n\r\n")

    services["wallet-service"].answer = answer
    async with (
        asyncio.timeout(LIMIT_SECONDS),
        serving(create_app(short)) as url,
        httpx.AsyncClient(base_url=url, headers=ALICE.headers) as caller,
        caller.stream("GET", "/wallets/1/stream") as response,
    ):
        events = response.aiter_raw()
        first = await anext(events)
        over_at = clock() + short.forward_timeout_seconds
        received_first.set()
        rest = [event async for event in events]

    assert (response.status_code, first, rest) == (200, b"data: 1\n\n", [b"data: 2\n\n"])
    assert response.headers["content-type"] == "text/event-stream"


async def test_a_listener_that_hangs_up_ends_the_stream_of_the_service(
    settings: GatewaySettings, services: dict[str, Service]
) -> None:
    arrived = asyncio.Event()

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b"data: 1\n\n"))
        arrived.set()
        await asyncio.Event().wait()

    services["wallet-service"].answer = answer
    async with asyncio.timeout(LIMIT_SECONDS), serving(create_app(settings)) as url:
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        authorization = ALICE.headers["Authorization"]
        writer.write(
            f"GET /wallets/watched/stream HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n".encode()
        )
        await arrived.wait()
        await reader.readuntil(b"data: 1")
        writer.transport.abort()

        await services["wallet-service"].hung_up.wait()


async def test_an_answer_that_breaks_off_after_its_beginning_is_not_ended_politely(
    settings: GatewaySettings, services: dict[str, Service]
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(b"data: 1\n\n"))
        await writer.drain()
        writer.close()

    services["wallet-service"].answer = answer
    async with (
        serving(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, headers=ALICE.headers) as caller,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await caller.get("/wallets/1/stream")
        services["wallet-service"].answer = json_answer({"ok": True})

        assert (await caller.get("/wallets")).json() == {"ok": True}


async def test_an_id_is_made_for_a_request_without_one(client: httpx.AsyncClient) -> None:
    response = await client.get("/wallets", headers=ALICE.headers)

    assert UUID(response.headers["x-request-id"]).version == 7
