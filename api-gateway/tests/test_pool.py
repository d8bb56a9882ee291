"""The gateway's connections: what is an answer, what ends a connection, and how many there are."""

import asyncio
import datetime as dt
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api_gateway import pool as pool_module
from api_gateway.connection import (
    MAX_HEAD_BYTES,
    MAX_UNREAD_BYTES,
    MAX_WHOLE_BYTES,
    BrokenOffError,
    NoConnectionInTimeError,
    NotSentError,
    Response,
)
from api_gateway.pool import Pool
from api_gateway.testing import Received, Service, http_answer, standing_in
from shared.testing.waiting import eventually

NAME = "wallet-service"
SECONDS = 5.0
OK = http_answer("200 OK", b"ok")
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.asyncio(loop_scope="module", loop_factories=["asyncio", "uvloop"])


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[Service]:
    async with standing_in() as service:
        yield service


@pytest.fixture
def pool(service: Service) -> Iterator[Pool]:
    with pool_of(service.url) as pool:
        yield pool


@contextmanager
def pool_of(url: str, max_connections: int = 8) -> Iterator[Pool]:
    pool = Pool({NAME: url}, max_connections)
    try:
        yield pool
    finally:
        pool.close()


async def get(pool: Pool, target: str = "/", seconds: float = SECONDS) -> Response:
    return await pool.send(NAME, "GET", target, {}, seconds=seconds)


async def fetch(pool: Pool) -> tuple[int, bytes]:
    with await get(pool) as response:
        return response.status, await response.whole(1 << 30)


def sends(service: Service, *parts: bytes, then_close: bool = False) -> None:
    """From now on the service answers with these bytes, each of the parts by itself."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        if then_close:
            writer.close()

    service.answer = answer


async def silence(_: Received, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("sent", "status", "body"),
    [
        (OK, 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b""),
        (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + OK, 200, b"ok"),
    ],
    ids=["short", "no-content", "not-modified", "chunked", "informational-first"],
)
async def test_an_answer_is_the_same_however_it_is_cut_and_leaves_the_connection_for_the_next_one(
    pool: Pool, service: Service, sent: bytes, status: int, body: bytes
) -> None:
    sends(service, sent)
    assert await fetch(pool) == (status, body)

    sends(service, *(bytes([byte]) for byte in sent))
    assert await fetch(pool) == (status, body)

    sends(service, OK)
    assert await fetch(pool) == (200, b"ok")
    assert service.connections == 1


async def test_headers_are_in_lower_case_in_their_order_and_trailers_are_none(pool: Pool, service: Service) -> None:
    sends(
        service, b"HTTP/1.1 103 Early\r\nA: 1\r\n\r\n" + CHUNKED[:-2] + b"X-B: \xe9\r\n\r\n0\r\nLocation: /x\r\n\r\n"
    )

    with await get(pool) as response:
        assert await response.whole(0) == b""

    assert response.headers == [(b"transfer-encoding", b"chunked"), (b"x-b", b"\xe9")]


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\n\r\nwhole or not?",
        b"HTTP/1.0 200 OK\r\n\r\nwhole or not?",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nwhole or not?",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nab",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\x00\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nab",
        b"HTTP/1.1 000 Nothing\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 700 What\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nab",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"1\r\na\r\n0\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 2),
        b"HTTP/1.1 104 Upload Resumption\r\nContent-Length: 2\r\n\r\nab" + OK,
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * (MAX_HEAD_BYTES // 6 + 1),
        b"hello\r\n\r\n",
    ],
)
@pytest.mark.parametrize("then_close", [True, False], ids=["closed", "open"])
async def test_what_is_no_answer_or_does_not_tell_its_end_is_none(
    pool: Pool, service: Service, sent: bytes, then_close: bool
) -> None:
    sends(service, sent, then_close=then_close)
    with pytest.raises(BrokenOffError):
        await fetch(pool)

    sends(service, OK)
    assert await fetch(pool) == (200, b"ok")
    assert service.connections == 2


@pytest.mark.parametrize(
    "sent",
    [b"", b"HTTP/1.1 2", OK[:-1], CHUNKED, CHUNKED + b"2\r\nab\r\n", CHUNKED + b"2\r\nab\r\n0\r\n"],
    ids=["nothing", "half-a-head", "a-byte-short", "no-chunk", "no-end", "half-an-end"],
)
async def test_half_an_answer_is_none(pool: Pool, service: Service, sent: bytes) -> None:
    sends(service, sent, then_close=True)

    with pytest.raises(BrokenOffError):
        await fetch(pool)


async def test_a_long_answer_comes_as_it_is_sent_and_the_service_waits_for_its_reader(
    pool: Pool, service: Service
) -> None:
    size, sent = 64 * MAX_UNREAD_BYTES, 0
    whole = asyncio.Event()

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(b"x" * 65_536)
            sent += 65_536
            await writer.drain()
        whole.set()

    service.answer = answer
    with await get(pool) as response:
        assert not response.complete
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(whole.wait(), 0.3)
        assert response.unread_bytes <= 2 * MAX_UNREAD_BYTES
        assert len(await response.whole(size)) == size

    sends(service, OK)
    assert await fetch(pool) == (200, b"ok")
    assert service.connections == 1


@pytest.mark.parametrize(("size", "at_once"), [(MAX_WHOLE_BYTES, True), (MAX_WHOLE_BYTES + 1, False)])
async def test_a_short_answer_is_complete_at_once(pool: Pool, service: Service, size: int, at_once: bool) -> None:
    sends(service, http_answer("200 OK", b"x" * size))

    with await get(pool) as response:
        assert response.complete == at_once
        assert await response.whole(size) == b"x" * size


async def test_an_answer_that_is_longer_than_it_may_be_is_not_read_to_its_end(pool: Pool, service: Service) -> None:
    sends(service, http_answer("200 OK", b"x" * 10_000_000))

    with pytest.raises(BrokenOffError), await get(pool) as response:
        await response.whole(1_000_000)


# -------------------------------------------------------------------------------------------------------- connections


@pytest.mark.parametrize(
    "sent",
    [
        http_answer("200 OK", b"ok", "Connection: close"),
        OK.replace(b"1.1", b"1.0", 1),
        OK + b"HTTP/1.1 ",
        OK + OK,
        OK + b"?",
    ],
    ids=["close", "http-1.0", "another-begun", "another", "garbage"],
)
async def test_after_such_an_answer_the_connection_is_not_used_again(
    pool: Pool, service: Service, sent: bytes
) -> None:
    sends(service, sent)

    assert [await fetch(pool) for _ in range(3)] == [(200, b"ok")] * 3
    assert service.connections == 3


async def test_what_comes_without_being_asked_for_is_nobodys_answer(pool: Pool, service: Service) -> None:
    sends(service, OK)
    await fetch(pool)
    service.say(http_answer("200 OK", b"forged"))

    async def gone() -> bool:
        return not service.open_connections

    await eventually(gone)
    assert await fetch(pool) == (200, b"ok")
    assert service.connections == 2


@pytest.mark.parametrize("said", [b"", http_answer("200 OK", b"forged")], ids=["its-end", "an-answer"])
async def test_what_came_while_the_event_loop_was_busy_counts_before_a_request_is_sent(said: bytes) -> None:
    busy, over = threading.Event(), threading.Event()

    def serve(server: socket.socket) -> None:
        first, _ = server.accept()
        with first:
            first.recv(65_536)
            first.sendall(OK)
            busy.wait(SECONDS)
            if said:
                first.sendall(said)
            else:
                first.shutdown(socket.SHUT_RDWR)
            over.set()
            second, _ = server.accept()
            with second:
                second.recv(65_536)
                second.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        server.settimeout(SECONDS)
        serving = thread.submit(serve, server)
        with pool_of(f"http://127.0.0.1:{server.getsockname()[1]}") as pool:
            assert await fetch(pool) == (200, b"ok")
            busy.set()
            over.wait(SECONDS)  # meanwhile the event loop looks at nothing

            with await pool.send(NAME, "POST", "/", {}, b"x", seconds=SECONDS) as response:
                assert (response.status, await response.read()) == (200, b"ok")
        serving.result()


async def test_a_request_whose_caller_is_cancelled_ends_its_connection_and_frees_its_place(service: Service) -> None:
    service.answer = silence
    with pool_of(service.url, max_connections=1) as pool:
        waiting = asyncio.create_task(get(pool, "/watched", seconds=60))
        await eventually(lambda: arrived(service, 1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        async with asyncio.timeout(SECONDS):
            await service.hung_up.wait()
        sends(service, OK)
        assert await fetch(pool) == (200, b"ok")


async def test_who_leaves_before_the_end_ends_the_connection(pool: Pool, service: Service) -> None:
    sends(service, CHUNKED + b"2\r\nab\r\n")

    with await get(pool, "/watched", seconds=60) as response:
        assert await response.read() == b"ab"

    async with asyncio.timeout(SECONDS):
        await service.hung_up.wait()


async def arrived(service: Service, number: int) -> bool:
    return len(service.requests) == number


async def test_a_request_waits_for_a_place_and_hears_when_there_is_none_in_time(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(OK)

    service.answer = answer
    monkeypatch.setattr(pool_module, "CONNECT_SECONDS", 0.2)
    with pool_of(service.url, max_connections=2) as pool:
        under_way = [asyncio.create_task(fetch(pool)) for _ in range(2)]
        await eventually(lambda: arrived(service, 2))
        with pytest.raises(NoConnectionInTimeError):
            await fetch(pool)

        monkeypatch.setattr(pool_module, "CONNECT_SECONDS", SECONDS)
        patient = [asyncio.create_task(fetch(pool)) for _ in range(20)]
        await asyncio.sleep(0)
        patient.pop(3).cancel()
        release.set()

        assert await asyncio.gather(*under_way, *patient) == [(200, b"ok")] * 21
    assert service.connections == 2


async def test_a_connection_that_was_idle_for_long_is_not_trusted(
    pool: Pool, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends(service, OK)
    await fetch(pool)
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.0)

    assert await fetch(pool) == (200, b"ok")
    assert service.connections == 2


async def test_an_answer_before_the_whole_request_was_sent_is_the_last_one(service: Service) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http_answer("413 Content Too Large", b"no"))
        connections.append(writer)

    connections: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    with pool_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as pool:
        for _ in range(2):
            with await pool.send(NAME, "POST", "/", {}, b"x" * 50_000_000, seconds=SECONDS) as response:
                assert (response.status, await response.read()) == (413, b"no")
    server.close()
    for connection in connections:
        connection.close()

    assert len(connections) == 2


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"2\r\nab\r\n", OK[:-1]])
async def test_the_time_is_over_for_the_whole_answer(pool: Pool, service: Service, sent: bytes) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await asyncio.Event().wait()

    service.answer = answer
    with pytest.raises(TimeoutError), await get(pool, "/watched", seconds=0.2) as response:
        await response.whole(100)

    async with asyncio.timeout(SECONDS):
        await service.hung_up.wait()


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_without_time_nothing_is_sent_and_the_connection_is_kept(
    pool: Pool, service: Service, seconds: float
) -> None:
    sends(service, OK)
    await fetch(pool)
    with pytest.raises(NoConnectionInTimeError):
        await get(pool, seconds=seconds)

    assert await fetch(pool) == (200, b"ok")
    assert (len(service.requests), service.connections) == (2, 1)


async def test_without_its_limit_an_answer_lasts(pool: Pool, service: Service) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\na\r\n")
        await asyncio.sleep(0.4)
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    service.answer = answer
    with await get(pool, seconds=0.2) as response:
        response.lift_limit()

        assert await response.whole(2) == b"ab"


async def test_a_service_that_cannot_be_reached_was_sent_nothing() -> None:
    async with standing_in() as gone:
        url = gone.url
    with pool_of(url, max_connections=1) as pool:
        for _ in range(3):
            with pytest.raises(NotSentError) as failure:
                await fetch(pool)
            assert not isinstance(failure.value, TimeoutError)


@pytest.mark.parametrize("host", ["..", "x" * 64 + ".test"])
async def test_a_name_that_can_be_no_hosts_is_not_reached(host: str) -> None:
    with pool_of(f"http://{host}") as pool, pytest.raises(NotSentError):
        await fetch(pool)


async def test_addresses_are_looked_up_once_for_all_who_wait_and_tried_in_turn(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    sends(service, OK)
    port = int(service.url.rpartition(":")[2])
    looked_up: list[str] = []
    found = asyncio.Event()

    async def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        looked_up.append(host)
        await found.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    with pool_of(f"http://wallets.test:{port}") as pool:
        monkeypatch.setattr(pool_module, "CONNECT_SECONDS", 0.2)
        with pytest.raises(NoConnectionInTimeError):
            await fetch(pool)
        monkeypatch.setattr(pool_module, "CONNECT_SECONDS", SECONDS)
        waiting = [asyncio.create_task(fetch(pool)) for _ in range(5)]
        await asyncio.sleep(0)  # each of them wants an address now
        waiting.pop().cancel()
        found.set()

        assert await asyncio.gather(*waiting) == [(200, b"ok")] * 4
    assert looked_up == ["wallets.test"]


async def test_closing_a_pool_ends_its_connections(service: Service) -> None:
    async def gone() -> bool:
        return not service.open_connections

    service.answer = silence
    with pool_of(service.url) as pool:
        waiting = asyncio.create_task(get(pool, "/watched", seconds=60))
        await eventually(lambda: arrived(service, 1))
    with pytest.raises(BrokenOffError):
        await waiting
    sends(service, OK)
    with pool_of(service.url) as pool:
        await fetch(pool)
        assert service.open_connections == 1
    await eventually(gone)


# ----------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        ("GET", "/ HTTP/1.1\r\nX: a", {}),
        ("GET", "/", {"X": "a\r\nY: b"}),
        ("GET", "/", {"X": "a\nb"}),
        ("GET", "/", {"X\r\nY": "b"}),
        ("GET", "/", {"X": "a\x00"}),
        ("GET\r\n", "/", {}),
    ],
)
async def test_no_header_brings_another(
    pool: Pool, service: Service, method: str, target: str, headers: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match="control character"):
        await pool.send(NAME, method, target, headers, seconds=SECONDS)

    assert (service.requests, service.connections) == ([], 0)


@pytest.mark.parametrize(
    ("method", "body", "length"),
    [("GET", b"", None), ("DELETE", b"", None), ("POST", b"", "0"), ("PUT", b"ab", "2"), ("DELETE", b"ab", "2")],
)
async def test_a_request_tells_the_length_of_its_body(
    pool: Pool, service: Service, method: str, body: bytes, length: str | None
) -> None:
    with await pool.send(NAME, method, "/x?y=z", {"X-Umlaut": "ä\tb"}, body, seconds=SECONDS):
        pass

    [received] = service.requests
    assert (received.method, received.target, received.body) == (method, "/x?y=z", body)
    assert received.header("content-length") == length
    assert received.header("x-umlaut") == "ä\tb"


async def test_a_base_url_may_have_a_path(service: Service) -> None:
    with pool_of(f"{service.url}/base") as pool:
        await get(pool, "/x")

    assert service.requests[0].target == "/base/x"


async def test_over_tls_the_certificate_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async with standing_in(context) as service:
        with pool_of(service.url) as pool, pytest.raises(NotSentError, match="CERTIFICATE_VERIFY_FAILED"):
            await fetch(pool)

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        sends(service, http_answer("200 OK", b"x" * 5_000_000))
        with pool_of(service.url) as pool:
            assert [await fetch(pool) for _ in range(2)] == [(200, b"x" * 5_000_000)] * 2
    assert service.connections == 1


def _certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
