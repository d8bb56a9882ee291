"""Creations of transactions go together, and each caller hears of their own."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from api_gateway.app import create_app
from api_gateway.creations import MAX_CALLS
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Received, Service, http_answer
from shared.auth import ServiceTokens
from shared.http.bundle import Parcel, Replies, Reply, read_parcels, write_replies
from shared.settings import DEVELOPMENT_SERVICE_SECRET
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually

ALICE, BOB = Person().headers, Person().headers
PATH = "/transactions/create"


class TransactionService:
    """A stand-in that notes each bundle, answers it as `reply` says, and may be held up."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.bundles: list[list[Parcel]] = []
        self.reply: Callable[[Parcel], Reply | None] = lambda parcel: Reply(
            201, b'{"echo": %s}' % (parcel.body or b"null"), [("content-type", "application/json")]
        )
        self.open = asyncio.Event()
        self.open.set()
        service.answer = self.answer

    async def answer(self, received: Received, writer: asyncio.StreamWriter) -> None:
        if received.target != "/internal/transactions":
            writer.write(http_answer("418 I'm a teapot", received.body, "Content-Type: application/json"))
            return
        parcels = read_parcels(received.body)
        self.bundles.append(parcels)
        await self.open.wait()
        replies: Replies = [self.reply(parcel) for parcel in parcels]
        writer.write(http_answer("200 OK", write_replies(replies), "Content-Type: application/msgpack"))


@pytest.fixture
def behind(services: dict[str, Service]) -> TransactionService:
    return TransactionService(services["transaction-service"])


@pytest.fixture
async def client(settings: GatewaySettings) -> AsyncIterator[httpx.AsyncClient]:
    unlimited = settings.model_copy(update={"rate_limit_per_minute": 0})
    async with in_process(create_app(unlimited)) as client:
        yield client


async def create(client: httpx.AsyncClient, caller: dict[str, str], number: int, **headers: str) -> httpx.Response:
    headers = caller | {"Content-Type": "application/json"} | headers
    return await client.post(PATH, content=json.dumps({"number": number}).encode(), headers=headers)


async def hold_up(client: httpx.AsyncClient, behind: TransactionService) -> list[asyncio.Task[httpx.Response]]:
    """As many calls as may be under way, none of which is answered until `behind.open` is set."""
    behind.open.clear()
    tasks = []
    for number in range(MAX_CALLS):
        tasks.append(asyncio.create_task(create(client, ALICE, number)))

        async def arrived(calls: int = number + 1) -> bool:
            return len(behind.bundles) == calls

        await eventually(arrived)
    return tasks


async def test_a_lone_one_goes_at_once_with_all_that_matters(
    client: httpx.AsyncClient, behind: TransactionService
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    response = await create(
        client, ALICE, 1, **{"Idempotency-Key": "rent", "X-Request-Id": "request-1", "traceparent": trace}
    )

    assert (response.status_code, response.json()) == (201, {"echo": {"number": 1}})
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == "request-1"
    assert behind.bundles == [
        [
            Parcel(
                *(b'{"number": 1}', "application/json", ALICE["Authorization"], "rent"),
                *("request-1", trace, "127.0.0.1"),
            )
        ]
    ]
    [call] = behind.service.requests
    token = (call.header("authorization") or "").removeprefix("Bearer ")
    assert ServiceTokens(DEVELOPMENT_SERVICE_SECRET, "transaction-service").verify(token) == "api-gateway"
    assert 0 < int(call.header("x-deadline-ms") or 0) <= 10_000


async def test_what_arrives_meanwhile_goes_together_and_comes_apart_again(
    client: httpx.AsyncClient, behind: TransactionService
) -> None:
    first = await hold_up(client, behind)
    rest = [asyncio.create_task(create(client, BOB, number)) for number in range(MAX_CALLS, 60)]
    for _ in range(100):
        await asyncio.sleep(0)
    behind.open.set()
    responses = await asyncio.gather(*first, *rest)

    assert [response.json()["echo"]["number"] for response in responses] == list(range(60))
    assert len(behind.bundles) < 20
    assert Counter(parcel.authorization for bundle in behind.bundles for parcel in bundle) == {
        ALICE["Authorization"]: MAX_CALLS,
        BOB["Authorization"]: 60 - MAX_CALLS,
    }


async def test_each_hears_its_own_status_body_and_headers(
    client: httpx.AsyncClient, behind: TransactionService
) -> None:
    def reply(parcel: Parcel) -> Reply:
        if parcel.body == b'{"number": 1}':
            return Reply(
                409, b'{"code":"in_use"}', [("content-type", "application/problem+json"), ("retry-after", "1")]
            )
        return Reply(
            201, b"{}", [("content-type", "application/json"), ("idempotent-replayed", "true"), ("x-own", "x")]
        )

    behind.reply = reply

    busy, replayed = await asyncio.gather(create(client, ALICE, 1), create(client, ALICE, 2))

    assert (busy.status_code, busy.content, busy.headers["retry-after"]) == (409, b'{"code":"in_use"}', "1")
    assert busy.headers["content-type"] == "application/problem+json"
    assert (replayed.status_code, replayed.headers["idempotent-replayed"]) == (201, "true")
    assert "x-own" not in replayed.headers
    assert replayed.headers["cache-control"] == "no-store"


async def test_what_is_handed_back_is_sent_by_itself(client: httpx.AsyncClient, behind: TransactionService) -> None:
    behind.reply = lambda parcel: None if parcel.body == b'{"number": 1}' else Reply(201, b"{}", [])

    alone, together = await asyncio.gather(
        create(client, ALICE, 1, **{"Idempotency-Key": "k"}), create(client, ALICE, 2)
    )

    assert (alone.status_code, alone.content) == (418, b'{"number": 1}')
    assert together.status_code == 201
    [single] = [received for received in behind.service.requests if received.target == PATH]
    assert single.header("idempotency-key") == "k"
    assert single.header("authorization") == ALICE["Authorization"]


async def test_a_query_makes_it_an_ordinary_request(client: httpx.AsyncClient, behind: TransactionService) -> None:
    response = await client.post(f"{PATH}?a=b", content=b"{}", headers=ALICE)

    assert response.status_code == 418
    assert behind.bundles == []


async def test_a_caller_that_gives_up_takes_nobody_along(
    client: httpx.AsyncClient, behind: TransactionService
) -> None:
    blocking = await hold_up(client, behind)
    leaving = asyncio.create_task(create(client, ALICE, 100))
    staying = asyncio.create_task(create(client, BOB, 101))
    for _ in range(100):
        await asyncio.sleep(0)
    leaving.cancel()
    behind.open.set()
    responses = await asyncio.gather(*blocking, staying)

    assert {response.status_code for response in responses} == {201}
    assert {parcel.body for bundle in behind.bundles for parcel in bundle} >= {b'{"number": 100}', b'{"number": 101}'}


async def test_beyond_what_may_wait_is_a_503_and_nothing_is_lost(
    client: httpx.AsyncClient, behind: TransactionService
) -> None:
    behind.open.clear()
    large = b'{"text": "%s"}' % (b"x" * 60_000)  # weighs 30 of the 2,048
    headers = ALICE | {"Content-Type": "application/json"}
    tasks = [asyncio.create_task(client.post(PATH, content=large, headers=headers)) for _ in range(120)]

    async def some_refused() -> bool:
        return any(task.done() for task in tasks)

    await eventually(some_refused)
    behind.open.set()
    responses = await asyncio.gather(*tasks)

    statuses = Counter(response.status_code for response in responses)
    assert statuses.keys() == {201, 503}
    refused = [response for response in responses if response.status_code == 503]
    assert {(r.json()["code"], r.headers["retry-after"]) for r in refused} == {("unavailable", "1")}
    assert sum(len(bundle) for bundle in behind.bundles) == statuses[201]


async def test_a_service_that_cannot_be_reached_is_a_503_for_each(settings: GatewaySettings) -> None:
    gone = settings.model_copy(update={"transaction_service_url": "http://127.0.0.1:1"})
    async with in_process(create_app(gone)) as client:
        responses = await asyncio.gather(*(create(client, ALICE, number) for number in range(5)))

    assert {(r.status_code, r.json()["code"]) for r in responses} == {(503, "service_unavailable")}
    assert {r.headers["retry-after"] for r in responses} <= {"1", "2"}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        http_answer("500 Internal Server Error", b"{}"),
        http_answer("200 OK", b"\xc1"),
        http_answer("200 OK", write_replies([])),
        http_answer("200 OK", write_replies([Reply(201, b"{}", []), Reply(201, b"{}", [])])),
    ],
    ids=["breaks-off", "status", "garbage", "too-few", "too-many"],
)
async def test_an_answer_that_is_none_is_a_502(
    client: httpx.AsyncClient, services: dict[str, Service], sent: bytes
) -> None:
    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()

    services["transaction-service"].answer = answer

    response = await create(client, ALICE, 1)

    assert (response.status_code, response.json()["code"]) == (502, "bad_gateway")
    assert len(services["transaction-service"].requests) == 1


async def test_no_answer_in_time_is_a_504(settings: GatewaySettings, services: dict[str, Service]) -> None:
    behind = TransactionService(services["transaction-service"])
    behind.open.clear()
    async with in_process(create_app(settings.model_copy(update={"forward_timeout_seconds": 1.1}))) as client:
        response = await create(client, ALICE, 1)
        behind.open.set()

    assert (response.status_code, response.json()["code"]) == (504, "gateway_timeout")
    assert response.headers["retry-after"] == "1"
