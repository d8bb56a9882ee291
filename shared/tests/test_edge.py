"""What every service does with a request before and after its own code: limits, problem documents, health, logs."""

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from shared.http.app import create_api, health_router, strict_router
from shared.http.context import DEFAULT_DEADLINE_SECONDS, current_context, seconds_left
from shared.http.wire import SINGLE_LINE, AmountIn
from shared.logs import configure_logging
from shared.testing.problems import text_without_ids
from shared.testing.servers import in_process, serving

LIMIT = 64 * 1024
HIDDEN = "hidden-7f3a"


class NoteIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(max_length=LIMIT), SINGLE_LINE]
    amount: AmountIn | None = None
    count: int = 0


async def fine() -> None:
    """A dependency that answers."""


async def broken() -> None:
    raise ValueError(HIDDEN)


def note_app(checks: dict[str, Any] | None = None, **options: Any) -> tuple[FastAPI, list[str]]:
    """A service that keeps the texts it is sent in a list."""
    notes: list[str] = []
    router = strict_router("notes")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    @router.post("/notes", status_code=201)
    async def create(body: NoteIn) -> dict[str, str]:
        notes.append(body.text)
        logging.getLogger("notes").info("noted %s", body.text)
        return {"text": body.text, "amount": str(body.amount), "request_id": current_context().trace.request_id}

    @router.get("/notes/{note_id}")
    async def read(note_id: UUID, limit: int = 10) -> dict[str, str]:
        return {"id": str(note_id), "limit": str(limit)}

    @router.get("/left")
    async def left() -> float:
        return seconds_left()

    @router.get("/broken")
    async def fail() -> None:
        await broken()

    @router.get("/gone/{kind}")
    async def gone(kind: str) -> None:
        raise {"refused": ConnectionRefusedError, "reset": ConnectionResetError, "late": TimeoutError}[kind](HIDDEN)

    app = create_api(
        title="Notes",
        description="",
        version="1",
        registry=CollectorRegistry(),
        health=health_router(checks or {"store": fine, "mirror": fine}, essential=frozenset({"store"})),
        lifespan=lifespan,
        **options,
    )
    app.include_router(router)
    return app, notes


@pytest.fixture
def notes_and_app() -> tuple[FastAPI, list[str]]:
    return note_app()


@pytest.fixture
def notes(notes_and_app: tuple[FastAPI, list[str]]) -> list[str]:
    return notes_and_app[1]


@pytest.fixture
async def client(notes_and_app: tuple[FastAPI, list[str]]) -> AsyncIterator[httpx.AsyncClient]:
    async with in_process(notes_and_app[0]) as client:
        yield client


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a service writes to its log."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging("notes", "DEBUG")
    [handler] = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream := io.StringIO())
    yield stream
    root.handlers[:] = before
    root.setLevel(level)


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """RFC 9457 with our members, and nothing of how the answer came about."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["type"] == f"urn:payment-system:error:{code}"
    assert problem["status"] == status
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem.keys() - {"errors"} == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    for trace in ("Traceback", ".py", "Error(", HIDDEN):
        assert trace not in response.text
    return problem


def note_of(size: int) -> bytes:
    """A body of exactly `size` bytes."""
    frame = b'{"text": "%s"}'
    return frame % (b"x" * (size - len(frame) + 2))


# ------------------------------------------------------------------------------------------- size, encoding, time


async def test_a_body_of_sixty_four_kilobytes_is_accepted_and_one_byte_more_is_not(
    client: httpx.AsyncClient, notes: list[str]
) -> None:
    headers = {"Content-Type": "application/json"}

    assert (await client.post("/notes", content=note_of(LIMIT), headers=headers)).status_code == 201
    refused = await client.post("/notes", content=note_of(LIMIT + 1), headers=headers)

    assert_problem(refused, 413, "body_too_large")
    assert refused.headers["connection"] == "close"
    assert len(notes) == 1


async def test_a_body_without_a_length_is_read_up_to_the_limit_only(
    client: httpx.AsyncClient, notes: list[str]
) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'{"text": "'
        for _ in range(50_000):
            sent += 1024
            yield b"x" * 1024

    refused = await client.post("/notes", content=endless(), headers={"Content-Type": "application/json"})

    assert_problem(refused, 413, "body_too_large")
    assert refused.headers["connection"] == "close"
    assert sent <= LIMIT + 1024
    assert notes == []


@pytest.mark.parametrize("length", ["65537", "52428800", "9999999999", "1" + "0" * 4000])
async def test_a_length_beyond_the_limit_is_refused_before_the_body_comes(
    client: httpx.AsyncClient, notes: list[str], length: str
) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b""
        raise AssertionError("the body was read")

    headers = {"Content-Type": "application/json", "Content-Length": length}

    assert_problem(await client.post("/notes", content=never(), headers=headers), 413, "body_too_large")
    assert notes == []


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "１０", ""])
async def test_a_length_that_is_no_number_is_refused(
    client: httpx.AsyncClient, notes: list[str], length: str
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]

    assert_problem(await client.post("/notes", content=b"{}", headers=headers), 400, "content_length_invalid")
    assert notes == []


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "zstd", "identity, gzip", "x"])
async def test_a_compressed_body_is_refused(client: httpx.AsyncClient, notes: list[str], encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}

    refused = await client.post("/notes", content=b'{"text": "a"}', headers=headers)

    assert_problem(refused, 415, "content_encoding_unsupported")
    assert notes == []


@pytest.mark.parametrize(
    "media_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json", "application/json2"],
)
async def test_another_media_type_is_refused(client: httpx.AsyncClient, notes: list[str], media_type: str) -> None:
    refused = await client.post("/notes", content=b'{"text": "a"}', headers={"Content-Type": media_type})

    assert_problem(refused, 415, "content_type_unsupported")
    assert notes == []


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
async def test_json_may_be_called_json_in_any_case(client: httpx.AsyncClient, media_type: str) -> None:
    response = await client.post("/notes", content=b'{"text": "a"}', headers={"Content-Type": media_type})

    assert response.status_code == 201


async def test_a_body_that_does_not_arrive_in_time_is_a_408_and_the_connection_ends() -> None:
    app, notes = note_app(body_timeout_seconds=0.2)
    async with serving(app) as url:
        reader, writer = await asyncio.open_connection(httpx.URL(url).host, httpx.URL(url).port)
        head = b"POST /notes HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
        writer.write(head + b'{"text"')
        async with asyncio.timeout(5):
            answer = await reader.read()  # to the end of the connection
        writer.close()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "body_timeout"
    assert notes == []


# ------------------------------------------------------------------------------------------ deadlines, request ids


@pytest.mark.parametrize(
    ("given", "most"), [("500", 0.5), ("999999", DEFAULT_DEADLINE_SECONDS), ("soon", DEFAULT_DEADLINE_SECONDS)]
)
async def test_a_callers_deadline_counts_and_is_never_further_than_ours(
    client: httpx.AsyncClient, given: str, most: float
) -> None:
    left = (await client.get("/left", headers={"X-Deadline-Ms": given})).json()

    assert 0 < left <= most


@pytest.mark.parametrize("given", ["rent-2026-11", "0190b6a0-7c1e-7000-8000-000000000000", "a" * 64, "A_b.c-12"])
async def test_a_sane_request_id_is_kept(client: httpx.AsyncClient, given: str) -> None:
    response = await client.post("/notes", json={"text": "a"}, headers={"X-Request-Id": given})

    assert response.headers["x-request-id"] == given
    assert response.json()["request_id"] == given


@pytest.mark.parametrize(
    "given", ["", "short", "a" * 65, "a b c d e f", "<script>alert", "{{7*7}}xx", "ééééééééé", "１２３４５６７８"]
)
async def test_another_request_id_is_replaced_by_one_of_ours(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/nothing", headers=[(b"x-request-id", given.encode())])

    assert UUID(response.headers["x-request-id"]).version == 7
    assert response.json()["request_id"] == response.headers["x-request-id"]


# ---------------------------------------------------------------------------------------------- problem documents


async def test_an_unknown_path_is_a_problem_document(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/nothing/here"), 404, "route_not_found")

    assert problem["instance"] == "/nothing/here"


async def test_another_method_is_a_problem_document_that_says_which_are_allowed(client: httpx.AsyncClient) -> None:
    response = await client.delete("/notes")

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({}, "text", "missing"),
        ({"text": 17711}, "text", "string_type"),
        ({"text": "a\nb"}, "text", "text_invalid"),
        ({"text": "\x1b[31m"}, "text", "text_invalid"),
        ({"text": "a\u2028b"}, "text", "text_invalid"),
        ({"text": "a", "balance": HIDDEN}, "balance", "extra_forbidden"),
        ({"text": "a", "count": HIDDEN}, "count", "int_parsing"),
        ({"text": "a", "count": [HIDDEN]}, "count", "int_type"),
        ({"text": "a", "amount": HIDDEN}, "amount", "amount_invalid"),
        ({"text": "a", "amount": "1_000"}, "amount", "amount_invalid"),
        ({"text": "a", "amount": True}, "amount", "amount_invalid"),
        ({"text": "a", "amount": -17711}, "amount", "amount_not_positive"),
        ({"text": "a\x00"}, "text", "text_invalid"),
        ({"text": "\ud800"}, "text", "text_invalid"),
    ],
)
async def test_a_wrong_field_is_named_and_its_value_is_not_repeated(
    client: httpx.AsyncClient, notes: list[str], body: dict[str, Any], field: str, code: str
) -> None:
    content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}

    response = await client.post("/notes", content=content, headers=headers)

    problem = assert_problem(response, 422, "validation_failed")
    assert [(error["field"], error["code"]) for error in problem["errors"]] == [(field, code)]
    assert "17711" not in text_without_ids(response)
    assert "1_000" not in response.text
    assert notes == []


@pytest.mark.parametrize(
    "literal",
    ["NaN", "Infinity", "-Infinity", "1e99999999999999999999"],
)
async def test_numbers_that_json_does_not_have_are_a_400(
    client: httpx.AsyncClient, notes: list[str], literal: str
) -> None:
    content = b'{"text": "a", "amount": %s}' % literal.encode()

    response = await client.post("/notes", content=content, headers={"Content-Type": "application/json"})

    assert_problem(response, 400, "json_invalid")
    assert notes == []


@pytest.mark.parametrize(
    ("literal", "amount"), [("100.00", "100.00"), ('"100.00"', "100.00"), ("0.001", "0.001"), ("7", "7")]
)
async def test_an_amount_is_read_as_it_was_written(client: httpx.AsyncClient, literal: str, amount: str) -> None:
    content = b'{"text": "a", "amount": %s}' % literal.encode()

    response = await client.post("/notes", content=content, headers={"Content-Type": "application/json"})

    assert response.json()["amount"] == amount


async def test_a_wrong_path_and_query_are_named(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/notes/17?limit=many"), 422, "validation_failed")

    assert {(error["field"], error["code"]) for error in problem["errors"]} == {
        ("note_id", "uuid_parsing"),
        ("limit", "int_parsing"),
    }


async def test_ten_thousand_wrong_fields_are_twenty_errors(client: httpx.AsyncClient) -> None:
    body = {"text": "a"} | {f"f{number}": 1 for number in range(5_000)}

    problem = assert_problem(await client.post("/notes", json=body), 422, "validation_failed")

    assert len(problem["errors"]) == 20


async def test_an_unexpected_error_is_a_500_that_says_nothing_and_is_logged(
    client: httpx.AsyncClient, log: io.StringIO
) -> None:
    problem = assert_problem(await client.get("/broken"), 500, "internal_error")

    [line] = [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry["level"] == "ERROR"]
    assert line["request_id"] == problem["request_id"]
    assert f"ValueError: {HIDDEN}" in line["exc_info"]


@pytest.mark.parametrize("kind", ["refused", "reset", "late"])
async def test_a_dependency_that_is_gone_is_a_503_to_be_tried_again(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.get(f"/gone/{kind}")

    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize("url", ["/notes%00", "/%00", "/notes?limit=%00", "/notes?%00", "/notes/%2500%00"])
async def test_a_nul_in_the_url_is_a_400(client: httpx.AsyncClient, url: str) -> None:
    assert_problem(await client.get(url), 400, "url_invalid")


@pytest.mark.parametrize(
    "url", ["/notes%ff", "/notes%0d%0aX:1", "/..%2fnotes", "/%2e%2e/%2e%2e/etc/passwd", "/notes;a"]
)
async def test_an_odd_url_is_a_404(client: httpx.AsyncClient, url: str) -> None:
    assert_problem(await client.get(url), 404, "route_not_found")


async def test_the_path_in_a_problem_is_cut(client: httpx.AsyncClient) -> None:
    problem = assert_problem(await client.get("/" + "x" * 5_000), 404, "route_not_found")

    assert problem["instance"] == "/" + "x" * 199


# ----------------------------------------------------------------------------------------------------------- logs


@pytest.mark.parametrize(
    "text",
    [
        'x\r\n{"level": "INFO", "message": "forged"}',
        "x\n\n\nadmin logged in",
        "\x1b[2J\x1b[31mred\x07\x08\x7f",
        "a\u2028b\u2029c\x85d",
        "\x00",
        '"}, {"',
        "\ud800",
        "Zoë 😀",
    ],
    ids=["crlf", "lf", "ansi", "unicode-lines", "nul", "json", "surrogate", "letters"],
)
def test_whatever_is_logged_stays_one_line_of_json_in_ascii(log: io.StringIO, text: str) -> None:
    # Not by the logger: pytest would keep it, and its processes cannot tell each other a surrogate.
    [handler] = [each for each in logging.getLogger().handlers if getattr(each, "stream", None) is log]
    record = logging.getLogger("notes").makeRecord(
        "notes", logging.INFO, __file__, 1, "noted %s", (text,), None, extra={"note": text}
    )
    handler.handle(record)

    [line] = log.getvalue().splitlines()
    assert re.fullmatch(r"[\x20-\x7e]+", line)
    entry = json.loads(line)
    assert (entry["message"], entry["note"]) == (f"noted {text}", text)
    assert (entry["level"], entry["logger"], entry["service"]) == ("INFO", "notes", "notes")


def test_an_exception_is_logged_in_one_line(log: io.StringIO) -> None:
    try:
        raise ValueError("first\nsecond\x1b[31m")
    except ValueError:
        logging.getLogger("notes").exception("failed")

    [line] = log.getvalue().splitlines()
    assert re.fullmatch(r"[\x20-\x7e]+", line)
    assert json.loads(line)["exc_info"].endswith("ValueError: first\nsecond\x1b[31m")


async def test_a_line_logged_in_a_request_carries_its_id(client: httpx.AsyncClient, log: io.StringIO) -> None:
    await client.post("/notes", json={"text": "hello"}, headers={"X-Request-Id": "request-1"})

    [line] = [entry for entry in map(json.loads, log.getvalue().splitlines()) if entry["logger"] == "notes"]
    assert (line["message"], line["request_id"]) == ("noted hello", "request-1")


# --------------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize(
    ("store", "mirror", "code", "status", "ready"),
    [
        (fine, fine, 200, "ok", 200),
        (fine, broken, 200, "degraded", 200),
        (broken, fine, 503, "down", 503),
        (broken, broken, 503, "down", 503),
    ],
    ids=["ok", "degraded", "down", "all-down"],
)
async def test_health_tells_what_is_out(store: Any, mirror: Any, code: int, status: str, ready: int) -> None:
    app, _ = note_app({"store": store, "mirror": mirror})
    states = {fine: "up", broken: "down"}
    async with in_process(app) as client:
        health = await client.get("/health")
        ready_answer = await client.get("/health/ready")
        live = await client.get("/health/live")

    assert health.status_code == code
    assert health.json() == {"status": status, "dependencies": {"store": states[store], "mirror": states[mirror]}}
    assert ready_answer.status_code == ready
    assert HIDDEN not in ready_answer.text
    assert (live.status_code, live.json()) == (200, {"status": "ok"})


async def test_requests_are_counted_by_the_template_of_their_route(client: httpx.AsyncClient) -> None:
    await client.get("/notes/0190b6a0-7c1e-7000-8000-000000000000")
    await client.get("/notes/0190b6a0-7c1e-7000-8000-000000000001")
    await client.get("/nothing/17")

    text = (await client.get("/metrics")).text

    assert 'http_requests_total{method="GET",route="/notes/{note_id}",status="200"} 2.0' in text
    assert 'http_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert "0190b6a0" not in text
