"""Hostile bytes at a gateway that runs as it does in production: a process of its own, on a real socket."""

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from api_gateway.app import create_app
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Service, standing_in
from shared.serve import BoundedProtocol
from shared.settings import ROOT
from shared.testing.servers import serving
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

FOLDER = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 5.0
TOKEN = Person().headers["Authorization"].encode()
POST = b"POST /wallets/create HTTP/1.1\r\nConnection: close\r\nAuthorization: " + TOKEN + b"\r\n"
GET = b"GET /wallets HTTP/1.1\r\nConnection: close\r\nAuthorization: " + TOKEN + b"\r\n"


class ImpatientProtocol(BoundedProtocol):
    """As in production, with less patience."""

    head_timeout_seconds = 0.2


@pytest.fixture(scope="module")
async def service() -> AsyncIterator[Service]:
    async with standing_in() as service:
        yield service


@pytest.fixture(scope="module")
async def gateway(service: Service) -> AsyncIterator[str]:
    """The URL of `python -m shared.serve` in the gateway's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("USER_SERVICE", "WALLET_SERVICE", "TRANSACTION_SERVICE", "PAYMENT_GATEWAY", "NOTIFICATION_SERVICE")
    urls = {f"{name}_URL": service.url for name in names}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "shared.serve", "--host", "127.0.0.1", "--port", str(port)),
        cwd=FOLDER,
        env=os.environ | urls | {"PYTHONPATH": str(ROOT), "ENV_FILE": ""},
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"

    async def up() -> bool:
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{url}/health/live")).status_code == 200
        except httpx.TransportError:
            return False

    try:
        await eventually(up)
        yield url
    finally:
        process.kill()
        await process.wait()


@pytest.fixture(autouse=True)
def nothing_received(service: Service) -> None:
    service.requests.clear()


async def talk(url: str, data: bytes) -> bytes:
    """Everything that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    try:
        writer.write(data)
        async with asyncio.timeout(LIMIT_SECONDS):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            POST + b"Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length-then-chunked",
        ),
        pytest.param(
            POST + b"Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            id="chunked-then-length",
        ),
        pytest.param(POST + b"Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two-lengths"),
        pytest.param(POST + b"Host: x\r\nTransfer-Encoding: x, chunked, x\r\n\r\n0\r\n\r\n", id="odd-encoding"),
        pytest.param(GET + b"Host: x\r\nHost: y\r\n\r\n", id="two-hosts"),
        pytest.param(GET + b"Host: x\r\nhost: x\r\n\r\n", id="one-host-twice"),
        pytest.param(GET + b"Host: x\r\nAuthorization: Bearer x\r\n\r\n", id="two-authorizations"),
        pytest.param(GET + b"Host: x\r\nX : a\r\n\r\n", id="blank-before-colon"),
        pytest.param(GET + b"Host: x\r\nUser-Agent: a\r\n b\r\n\r\n", id="folded-header"),
        pytest.param(GET + b"Host: x\r\nUser-Agent: a\x01b\r\n\r\n", id="control-character"),
        pytest.param(GET + b"Host: x\nX: a\r\n\r\n", id="bare-line-feed"),
        pytest.param(b"GET /wallets%00 HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n", id="nul-in-path"),
    ],
)
async def test_an_ambiguous_request_is_a_400_and_reaches_no_service(
    gateway: str, service: Service, request_: bytes
) -> None:
    answer = await talk(gateway, request_)

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert service.requests == []


@pytest.mark.parametrize(
    "target",
    [
        b"/wallets/../internal",
        b"/wallets/..%2finternal",
        b"/wallets;a",
        b"/wallets//x",
        b"//wallets",
        b"/wallets/\xc3\xa9",
        b"/internal/postings",
        b"/metrics",
        b"/wallets/",
        b"http://evil/internal/postings",
    ],
)
async def test_an_unusual_target_reaches_no_service(gateway: str, service: Service, target: bytes) -> None:
    answer = await talk(gateway, GET.replace(b"/wallets", target) + b"Host: x\r\n\r\n")

    assert answer[:13] in {b"HTTP/1.1 404 ", b"HTTP/1.1 400 "}, answer
    assert service.requests == []


async def test_what_follows_a_request_is_a_request_of_its_own(gateway: str, service: Service) -> None:
    first = POST.replace(b"Connection: close\r\n", b"") + b"Host: x\r\nContent-Length: 3\r\n\r\nabc"

    answer = await talk(gateway, first + GET.replace(b"/wallets", b"/internal/x") + b"Host: x\r\n\r\n")

    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"404"]
    assert [(received.target, received.body) for received in service.requests] == [("/wallets/create", b"abc")]


async def test_a_chunked_body_arrives_with_its_length(gateway: str, service: Service) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\nAuthorization: Bearer x\r\n\r\n"

    answer = await talk(gateway, POST + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    assert answer.startswith(b"HTTP/1.1 200 ")
    [received] = service.requests
    assert (received.body, received.header("content-length")) == (b"abcde", "5")
    assert received.header("transfer-encoding") is None


async def test_an_upgrade_is_not_passed_on(gateway: str, service: Service) -> None:
    head = (
        GET.replace(b"close", b"Upgrade") + b"Host: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    answer = await asyncio.wait_for(first_line(gateway, head + b"\r\n"), LIMIT_SECONDS)

    assert answer.startswith(b"HTTP/1.1 200 ")
    [received] = service.requests
    assert (received.header("upgrade"), received.header("http2-settings")) == (None, None)


async def first_line(url: str, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    try:
        writer.write(data)
        return await reader.readline()
    finally:
        writer.close()


async def test_a_forwarded_address_is_the_peers(gateway: str, service: Service) -> None:
    await talk(gateway, GET + b"Host: x\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")

    assert service.requests[0].header("x-forwarded-for") == "127.0.0.1"


@pytest.mark.parametrize("start", [b"", b"GET /wallets", GET, GET + b"Host: x\r\nUser-Agent: a"])
async def test_a_head_that_does_not_come_in_time_is_a_408(service: Service, start: bytes) -> None:
    settings = GatewaySettings(_env_file=None, wallet_service_url=service.url)
    async with serving(create_app(settings), http=ImpatientProtocol) as url:
        answer = await talk(url, start)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert service.requests == []
