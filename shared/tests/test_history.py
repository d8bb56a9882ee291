"""`GET /<segment>/audit`: found by who, what and when, page by page, by admins alone."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import chain
from typing import Any, Final
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from shared.audit import AuditLog
from shared.auth import Principal
from shared.chain import CHAIN
from shared.errors import UnauthorizedError
from shared.http.app import create_api
from shared.http.history import audit_router
from shared.ids import new_id
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox

ALICE, BOB = str(new_id()), str(new_id())
WALLETS: Final = [str(new_id()) for _ in range(3)]
COUNT: Final = 30

Line = tuple[int, Callable[[], None], Callable[[], None]]
Lines = Callable[[str, int], AbstractAsyncContextManager[Line]]


class Anybody:
    """Takes the caller's word for their role."""

    async def authenticate(self, authorization: str) -> Principal:
        role = authorization.removeprefix("Bearer ")
        if not role:
            raise UnauthorizedError
        return Principal(UUID(ALICE), role, UUID(ALICE))


@asynccontextmanager
async def client_of(audit: AuditLog, role: str = "admin") -> AsyncIterator[httpx.AsyncClient]:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = create_api(
        title="Things",
        description="",
        version="0",
        registry=CollectorRegistry(),
        health=APIRouter(),
        lifespan=lifespan,
    )
    app.include_router(audit_router("things", audit, Anybody()))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test", headers={"Authorization": f"Bearer {role}"}
    ) as client:
        yield client


def document(number: int) -> dict[str, Any]:
    """Each of the first ten instants has three events, in no order of their ids."""
    event_id = str(UUID(int=(number * 7) % COUNT + 1))
    return {
        "_id": event_id,
        "id": event_id,
        "type": "things.made.v1" if number % 5 else "things.lost.v1",
        "subject": WALLETS[number % 3],
        "sequence": number // 3 + 1,
        "time": f"2026-11-24T09:30:{number // 3:02}.000001Z",
        "actor": ALICE if number % 2 else BOB,
        "requestid": "request-1",
        "ip": "203.0.113.7",
        "traceparent": "00",
        "data": {"number": number, "large": 2**40},
        CHAIN: {"position": number + 1, "hash": f"{number:064}"},
    }


DOCUMENTS: Final = [document(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
async def audit(sandbox: Sandbox, probe: type[DatabaseSettings]) -> AsyncIterator[AuditLog]:
    audit = AuditLog(sandbox.settings(probe))
    await audit.write(DOCUMENTS)
    yield audit
    audit.close()


async def ids(client: httpx.AsyncClient, **query: Any) -> tuple[list[str], bool]:
    response = await client.get("/things/audit", params=query)
    assert response.status_code == 200, response.text
    return [each["id"] for each in response.json()["data"]], response.json()["has_more"]


def expected(**wanted: str) -> list[str]:
    found = [each for each in DOCUMENTS if all(each[name] == value for name, value in wanted.items())]
    return [each["id"] for each in sorted(found, key=lambda each: (each["time"], each["id"]), reverse=True)]


async def test_an_event_says_who_did_what_to_what_and_where_it_stands(audit: AuditLog) -> None:
    async with client_of(audit) as client:
        response = await client.get("/things/audit", params={"subject": WALLETS[0], "limit": 1})

    [found] = response.json()["data"]
    number = found["data"]["number"]
    assert found == {
        "id": DOCUMENTS[number]["id"],
        "type": DOCUMENTS[number]["type"],
        "subject": WALLETS[0],
        "sequence": 10,
        "time": "2026-11-24T09:30:09.000001Z",
        "actor": DOCUMENTS[number]["actor"],
        "request_id": "request-1",
        "ip": "203.0.113.7",
        "traceparent": "00",
        "data": {"number": number, "large": 2**40},
        "position": number + 1,
        "hash": f"{number:064}",
    }
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"actor": ALICE},
        {"subject": WALLETS[1]},
        {"type": "things.lost.v1"},
        {"actor": BOB, "subject": WALLETS[2]},
    ],
)
async def test_pages_of_any_size_have_everything_once_in_both_directions(
    audit: AuditLog, wanted: dict[str, str]
) -> None:
    everything = expected(**wanted)
    async with client_of(audit) as client:
        assert await ids(client, **wanted, limit=100) == (everything, False)
        for limit in (1, 2, 4):
            found, more = await ids(client, **wanted, limit=limit)
            pages = [found]
            while more:
                found, more = await ids(client, **wanted, limit=limit, starting_after=pages[-1][-1])
                pages.append(found)
            assert [*chain.from_iterable(pages)] == everything
            assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)

            back, more = await ids(client, **wanted, limit=limit, ending_before=everything[-1])
            pages = [back]
            while more:
                back, more = await ids(client, **wanted, limit=limit, ending_before=pages[0][0])
                pages.insert(0, back)
            assert [*chain.from_iterable(pages)] == everything[:-1]


async def test_an_instant_from_and_one_to_which_does_not_count(audit: AuditLog) -> None:
    bounds = {"from": "2026-11-24T10:30:02.000001+01:00", "to": "2026-11-24T09:30:05.000001Z"}
    within = [
        each for each in expected() if 6 <= next(d for d in DOCUMENTS if d["id"] == each)["data"]["number"] < 15
    ]
    async with client_of(audit) as client:
        assert await ids(client, **bounds) == (within, False)
        assert await ids(client, **bounds, starting_after=within[3]) == (within[4:], False)
        assert await ids(client, **bounds, ending_before=within[3]) == (within[:3], False)
        assert await ids(client, **bounds, starting_after=expected()[0]) == (within, False)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"starting_after": str(new_id())}, "starting_after"),
        ({"ending_before": str(new_id())}, "ending_before"),
        ({"starting_after": DOCUMENTS[0]["id"], "ending_before": DOCUMENTS[1]["id"]}, "ending_before"),
        ({"actor": '{"$ne": null}'}, "actor"),
        ({"actor[$ne]": "x"}, "actor[$ne]"),
        ({"subject": "nobody"}, "subject"),
        ({"type": ".*"}, "type"),
        ({"from": "yesterday"}, "from"),
        ({"limit": "1000000000"}, "limit"),
    ],
)
async def test_a_wrong_filter_is_named(audit: AuditLog, query: dict[str, str], field: str) -> None:
    async with client_of(audit) as client:
        response = await client.get("/things/audit", params=query)

    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == [field]


@pytest.mark.parametrize(("role", "status"), [("", 401), ("user", 403), ("merchant", 403)])
async def test_nobody_else_is_let_in(audit: AuditLog, role: str, status: int) -> None:
    async with client_of(audit, role) as client:
        assert (await client.get("/things/audit")).status_code == status


async def test_a_document_that_was_altered_is_shown_without_what_cannot_be(
    sandbox: Sandbox, audit: AuditLog, probe: type[DatabaseSettings]
) -> None:
    settings = sandbox.settings(probe)
    altered = str(new_id())
    with sandbox.mongo() as mongo:
        collection = mongo[settings.mongo_db][f"{settings.schema_name}_audit"]
        collection.insert_one({"_id": altered, "id": altered, "actor": "altered", "time": 5, "data": "x", CHAIN: 7})
        async with client_of(audit) as client:
            response = await client.get("/things/audit", params={"actor": "altered"})
        collection.delete_one({"_id": altered})

    [found] = response.json()["data"]
    assert found["id"] == altered
    assert (found["time"], found["data"], found["position"]) == (None, None, None)


async def test_without_mongodb_it_is_503_and_may_be_tried_again(
    sandbox: Sandbox, probe: type[DatabaseSettings], line: Lines, audit: AuditLog
) -> None:
    settings = sandbox.settings(probe)
    async with line(settings.mongo_host, settings.mongo_port) as (port, cut, mend):
        there = AuditLog(settings.model_copy(update={"mongo_host": "127.0.0.1", "mongo_port": port}))
        async with client_of(there) as client:
            assert (await client.get("/things/audit")).status_code == 200
            cut()
            out = await client.get("/things/audit")
            mend()
            again = await client.get("/things/audit")
        there.close()

    assert (out.status_code, out.json()["code"], out.headers["retry-after"]) == (503, "unavailable", "1")
    assert again.status_code == 200
