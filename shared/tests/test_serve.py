"""A service on a real socket: hostile heads, forwarded headers, the end of the process."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shared.serve import MAX_BODIES_BYTES, MAX_HEAD_BYTES, BoundedProtocol
from shared.settings import ROOT
from shared.testing.servers import serving
from shared.testing.waiting import eventually

LIMIT_SECONDS = 5.0
GET = b"GET /echo HTTP/1.1\r\nHost: service\r\n"
CLOSE = b"\r\nconnection: close\r\n\r\n"

Served = tuple[Process, str]
Serve = Callable[[], Awaitable[Served]]


class ImpatientProtocol(BoundedProtocol):
    """As every service's, with less patience."""

    head_timeout_seconds = 0.2


class Counting:
    """A transport, and what was written to it each time; once it is closed that is an error, as with uvloop."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise RuntimeError("the handler is closed")
        self._writes.append(data)
        self._transport.write(data)


class CountedProtocol(BoundedProtocol):
    """As every service's, seen from the transport's side."""

    writes: ClassVar[list[bytes]] = []
    lost: ClassVar[int] = 0  # connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Counting(transport, self.writes))  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        CountedProtocol.lost += 1
        super().connection_lost(exc)


def echo_app() -> FastAPI:
    app = FastAPI()

    @app.api_route("/echo", methods=["GET", "POST"])
    async def echo(request: Request) -> dict[str, object]:
        body = await request.body()
        return {
            "client": request.client.host if request.client else None,
            "scheme": request.url.scheme,
            "body": len(body),
            "x": request.headers.getlist("x"),
        }

    return app


async def talk(url: str, *parts: bytes, pause: Callable[[], Awaitable[object]] | None = None) -> bytes:
    """Everything that is answered to `parts` until the connection ends."""
    reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            if pause is not None:
                await pause()
        async with asyncio.timeout(LIMIT_SECONDS):
            return await reader.read()
    finally:
        writer.close()


async def next_turn() -> None:
    """Let the server read what was sent, so that the next part is another read."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with serving(echo_app()) as url:
        yield url


# ---------------------------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(GET + b"X: " + b"a" * MAX_HEAD_BYTES, id="one-endless-header"),
        pytest.param(GET + b"X: a\r\n" * 8_000, id="many-headers"),
        pytest.param(b"GET /" + b"a" * MAX_HEAD_BYTES, id="endless-path"),
        pytest.param(GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", id="complete-and-too-large"),
        pytest.param(GET + b"X: a\r\n" * 8_000 + b"\r\n", id="complete-with-many-headers"),
        pytest.param(b"GET /echo?" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="complete-with-long-query"),
    ],
)
async def test_a_head_of_more_than_thirty_two_kilobytes_is_a_431(url: str, head: bytes) -> None:
    answer = await talk(url, head)

    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"connection: close" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("target", [b"/echo#", b"/echo#/other", b"/#/echo", b"/echo?a#b", b"http://service/echo#x"])
async def test_a_target_with_a_fragment_is_a_400(url: str, target: bytes) -> None:
    answer = await talk(url, GET.replace(b"/echo", target) + b"\r\n")

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_a_head_that_comes_in_pieces_is_counted_as_one(url: str) -> None:
    answer = await talk(url, GET, *[b"X: " + b"a" * 4_000 + b"\r\n"] * 9, b"\r\n", pause=next_turn)

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_of_thirty_kilobytes_is_answered_with_its_body(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/echo", content=b"b" * 60_000, headers={"X": "a" * 30_000})
        again = await client.post("/echo", content=b"b" * 60_000, headers={"X": "a" * 30_000})

    for each in (response, again):
        assert (each.status_code, each.json()["body"], each.json()["x"]) == (200, 60_000, ["a" * 30_000])


async def test_requests_one_after_another_on_a_connection_are_counted_each_by_itself(url: str) -> None:
    request = GET + b"X: " + b"a" * 20_000 + b"\r\n\r\n"

    answer = await talk(url, request * 3 + GET + b"Connection: close\r\n\r\n")

    assert answer.count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize("start", [b"", b"GET /", GET, GET + b"X: a"], ids=["nothing", "path", "header", "value"])
async def test_a_head_that_is_not_complete_in_time_is_a_408(start: bytes) -> None:
    async with serving(echo_app(), http=ImpatientProtocol) as url:
        answer = await talk(url, start)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer


async def test_an_answer_is_sent_as_a_whole() -> None:
    CountedProtocol.writes.clear()
    async with serving(echo_app(), http=CountedProtocol) as url:
        answer = await talk(url, GET + b"\r\n" + GET + b"connection: close\r\n\r\n")

    assert len(CountedProtocol.writes) == 2
    assert b"".join(CountedProtocol.writes) == answer


async def raw_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers four bytes with the header `x` of the query, and says that they are as many as its path."""
    if scope["type"] == "http":
        value, length = scope["query_string"].replace(b"+", b"\r\n"), scope["path"].strip("/").encode()
        headers = [(b"x", value), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"four"})


@pytest.mark.parametrize(
    ("target", "end"),
    [
        pytest.param(b"/4?fine", b"\r\nx: fine\r\ncontent-length: 4" + CLOSE + b"four", id="plain"),
        pytest.param(b"/5?fine", b"\r\n\r\nfour", id="shorter-than-it-says"),
        pytest.param(b"/3?fine", b"\r\n\r\n", id="longer-than-it-says"),
    ],
)
async def test_a_head_and_its_body_belong_together(target: bytes, end: bytes) -> None:
    async with serving(raw_app) as url:
        answer = await talk(url, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(end)


async def test_a_header_cannot_bring_another_one_with_it() -> None:
    async with serving(raw_app) as url:
        answer = await talk(url, b"GET /4?a+set-cookie:b HTTP/1.1\r\nHost: x\r\n\r\n")

    assert answer == b""  # the connection is closed


async def test_who_does_not_read_is_not_answered() -> None:
    answered = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        if scope["type"] == "http":
            answered += 1
            await Response(b"x" * 65_536)(scope, receive, send)

    async def pauses() -> bool:
        before = answered
        await asyncio.sleep(0.2)
        return 0 < answered == before

    async with serving(app) as url:
        _, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port, limit=1024)
        writer.write((GET + b"\r\n") * 2000)
        await eventually(pauses, LIMIT_SECONDS)
        writer.transport.abort()

    assert answered < 1000


async def test_answers_to_nobody_are_no_errors(caplog: pytest.LogCaptureFixture) -> None:
    left = asyncio.Event()
    begun: list[str] = []
    ended: list[str] = []
    lost_before = CountedProtocol.lost

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
            begun.append(scope["path"])
            await left.wait()
            await send({"type": "http.response.body", "body": b"four", "more_body": True})
            await send({"type": "http.response.body", "body": b"four"})
            ended.append(scope["path"])

    async def both_begun() -> bool:
        return len(begun) == 2

    async def both_lost() -> bool:
        return CountedProtocol.lost == lost_before + 2

    async def both_ended() -> bool:
        return len(ended) == 2

    async with serving(app, http=CountedProtocol) as url:
        answer = await talk(url, GET + b"\r\nno request\r\n\r\n")  # which the connection does not outlive
        _, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        writer.write(GET + b"\r\n")
        await eventually(both_begun, LIMIT_SECONDS)
        writer.transport.abort()
        await eventually(both_lost, LIMIT_SECONDS)
        left.set()
        await eventually(both_ended, LIMIT_SECONDS)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "Exception in ASGI application" not in caplog.text
    assert "without completing" not in caplog.text


async def test_a_head_is_answered_without_a_body() -> None:
    async with serving(raw_app) as url:
        answer = await talk(url, b"HEAD /4?x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert b"\r\ncontent-length: 4\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_what_an_answer_has_so_far_is_sent_when_more_takes_time() -> None:
    app, more = FastAPI(), asyncio.Event()

    @app.get("/echo")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await more.wait()
            yield b"last"

        return StreamingResponse(chunks())

    async with serving(app) as url:
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        writer.write(GET + b"connection: close\r\n\r\n")
        async with asyncio.timeout(LIMIT_SECONDS):
            begun = await reader.readuntil(b"first")
            more.set()
            rest = await reader.read()
        writer.close()

    assert begun.startswith(b"HTTP/1.1 200 ")
    assert b"last" in rest


async def test_a_second_head_that_is_not_complete_in_time_is_a_408_too() -> None:
    async with serving(echo_app(), http=ImpatientProtocol) as url:
        answer = await talk(url, GET + b"\r\n" + GET)

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in answer


async def test_a_trailer_is_no_header_of_the_request(url: str) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nX: first\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = await talk(url, head + b"3\r\nabc\r\n0\r\nX: second\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"body":3' in answer
    assert b'"x":["first"]' in answer


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="tls"),
        pytest.param(b"GET /echo HTTP/3.7\r\n\r\n", id="http-3.7"),
        pytest.param(GET + b"Bad Header\r\n\r\n", id="no-colon"),
        pytest.param(GET + b"X: a\x00b\r\n\r\n", id="nul-in-header"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", id="two-lengths"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            id="length-and-chunked",
        ),
        pytest.param(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", id="negative-length"),
    ],
)
async def test_what_is_not_http_is_a_400_and_the_connection_ends(url: str, request_: bytes) -> None:
    answer = await talk(url, request_)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


async def test_forwarded_headers_that_nobody_vouched_for_are_not_believed(url: str) -> None:
    headers = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https", "Forwarded": "for=203.0.113.9"}
    async with httpx.AsyncClient(base_url=url) as client:
        response = await client.get("/echo", headers=headers)

    assert (response.json()["client"], response.json()["scheme"]) == ("127.0.0.1", "http")
    assert "server" not in response.headers


# ----------------------------------------------------------------------------------------- the process of a service

MAIN = """
import asyncio
from pathlib import Path
from fastapi import FastAPI

app = FastAPI()
waiting = 0

@app.get("/waiting")
async def count() -> int:
    return waiting

@app.get("/wait")
async def wait() -> str:
    global waiting
    waiting += 1
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "finished"
"""


@asynccontextmanager
async def service(folder: Path, port: int = 0) -> AsyncIterator[Served]:
    """`python -m shared.serve` in `folder`."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "shared.serve", "--port", str(port)),
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "HOST"} | {"PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_on_sigterm_requests_in_hand_are_finished_and_new_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MAIN)
    async with service(tmp_path) as (process, url), httpx.AsyncClient(base_url=url) as client:

        async def answer(path: str) -> str | None:
            try:
                async with httpx.AsyncClient(base_url=url) as fresh:
                    return (await fresh.get(path)).text
            except httpx.TransportError:  # refused, or reset where the listener had not taken it yet
                return None

        async def up() -> bool:
            return await answer("/waiting") == "0"

        async def in_hand() -> bool:
            return await answer("/waiting") == "1"

        async def refused() -> bool:
            return await answer("/waiting") is None

        await eventually(up)
        waiting = asyncio.create_task(client.get("/wait"))
        await eventually(in_hand)
        process.send_signal(signal.SIGTERM)
        await eventually(refused)
        (tmp_path / "go").touch()
        response = await waiting

        assert (response.status_code, response.json()) == (200, "finished")
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await process.wait() == -signal.SIGTERM  # drained, then ended as asked


async def test_a_service_that_cannot_start_says_why_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        "from shared.settings import SettingsError\nraise SettingsError('POSTGRES_PORT: must be a port.')\n"
    )
    async with service(tmp_path) as (process, _):
        async with asyncio.timeout(20):
            _, errors = await process.communicate()

    assert process.returncode == 1
    assert errors == b"POSTGRES_PORT: must be a port.\n"


# ---------------------------------------------------------------------------------------------------------- bodies


class NarrowProtocol(BoundedProtocol):
    """As every service's, with room for little and much patience."""

    max_bodies_bytes = 100_000
    body_patience_seconds = LIMIT_SECONDS


class HastyProtocol(NarrowProtocol):
    """One that breaks off whatever has not come at once, where it needs the room."""

    body_patience_seconds = 0.0


def post(size: int) -> bytes:
    head = "POST /echo HTTP/1.1\r\nHost: service\r\nConnection: close\r\nContent-Length: "
    return f"{head}{size}\r\n\r\n".encode()


@asynccontextmanager
async def stalled(url: str, connections: int, size: int, sent: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    """So many callers who send that much of a body, and no more."""
    opened = []
    for number in range(connections):
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        writer.write(post(size) + b"a" * sent)
        opened.append((reader, writer))

        async def has_come(number: int = number) -> bool:
            return BoundedProtocol.unfinished_bytes == (number + 1) * sent

        await eventually(has_come)
    try:
        yield [reader for reader, _ in opened]
    finally:
        for _, writer in opened:
            writer.close()


async def test_bodies_that_do_not_end_leave_room_for_those_that_are_complete() -> None:
    async with serving(echo_app(), http=NarrowProtocol) as url, stalled(url, 3, 25_000, 24_999):
        answers = [await talk(url, post(200) + b"b" * 200) for _ in range(20)]
        whole = await talk(url, post(25_003) + b"c" * 25_003)
        another = await talk(url, post(10) + b"c" * 5)

        assert [answer[:13] for answer in answers] == [b"HTTP/1.1 200 "] * 20
        assert whole.startswith(b"HTTP/1.1 200 ")
        assert another.startswith(b"HTTP/1.1 503 ")
        assert BoundedProtocol.bodies_bytes == BoundedProtocol.unfinished_bytes == 74_997


async def test_the_body_that_has_been_incomplete_for_longest_is_broken_off_where_there_is_no_room() -> None:
    async with serving(echo_app(), http=HastyProtocol) as url, stalled(url, 3, 25_000, 24_999) as readers:
        answer = await talk(url, post(30_000) + b"b" * 29_999, b"b", pause=next_turn)

        assert answer.startswith(b"HTTP/1.1 200 ")
        async with asyncio.timeout(LIMIT_SECONDS):
            broken_off = [await readers[number].read() for number in (0, 1)]
        assert [each[:13] for each in broken_off] == [b"HTTP/1.1 408 "] * 2
        assert not readers[2].at_eof()
        assert BoundedProtocol.unfinished_bytes == 24_999

    async def all_let_go() -> bool:
        return (BoundedProtocol.bodies_bytes, BoundedProtocol.unfinished_bytes) == (0, 0)

    await eventually(all_let_go)


async def test_thirty_five_callers_who_stall_keep_nobody_out() -> None:
    """With the limits that every service has: large bodies get in once the others have had their time."""
    async with serving(echo_app()) as url, stalled(url, 24, 64_000, 63_000) as readers:
        async with asyncio.timeout(LIMIT_SECONDS):
            more = [asyncio.create_task(talk(url, post(64_000) + b"a" * 63_000)) for _ in range(11)]
            small = [await talk(url, post(300) + b"b" * 300) for _ in range(50)]

        async def comes_in_two_parts() -> bool:
            answer = await talk(url, post(60_000) + b"c" * 30_000, b"c" * 30_000, pause=next_turn)
            return answer.startswith(b"HTTP/1.1 200 ")

        assert [answer[:13] for answer in small] == [b"HTTP/1.1 200 "] * 50
        await eventually(comes_in_two_parts)
        assert BoundedProtocol.bodies_bytes <= MAX_BODIES_BYTES
        async with asyncio.timeout(LIMIT_SECONDS):
            assert (await readers[0].read()).startswith(b"HTTP/1.1 408 ")
        for task in more:
            task.cancel()
        await asyncio.gather(*more, return_exceptions=True)


async def test_what_was_answered_before_its_body_was_there_takes_no_room() -> None:
    app = FastAPI()

    @app.post("/echo")
    async def refuse() -> Response:
        return Response(status_code=403)

    request = post(50_000).replace(b"Connection: close\r\n", b"")
    async with serving(app, http=NarrowProtocol) as url:
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        writer.write(request)
        async with asyncio.timeout(LIMIT_SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        writer.write(b"a" * 49_999)
        await next_turn()
        assert BoundedProtocol.bodies_bytes == 0
        writer.write(b"a" + request)
        async with asyncio.timeout(LIMIT_SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        writer.close()


async def test_bodies_beyond_what_the_process_holds_are_refused_and_there_is_room_again_afterwards() -> None:
    async with serving(echo_app(), http=NarrowProtocol) as url:
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        try:
            writer.write(post(60_000) + b"a" * 59_999)

            async def held() -> bool:
                return BoundedProtocol.bodies_bytes == 59_999

            await eventually(held)
            refused = await talk(url, post(60_000) + b"b" * 60_000)
            writer.write(b"a")
            async with asyncio.timeout(LIMIT_SECONDS):
                served = await reader.read()
        finally:
            writer.close()
        again = await talk(url, post(60_000) + b"c" * 60_000)

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused
    assert served.startswith(b"HTTP/1.1 200 ")
    assert again.startswith(b"HTTP/1.1 200 ")
    assert BoundedProtocol.bodies_bytes == 0
