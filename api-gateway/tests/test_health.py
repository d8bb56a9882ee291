"""The health of the platform, as the gateway tells it."""

import asyncio
from typing import Any

import httpx
import pytest

from api_gateway.health import Health
from api_gateway.pool import Pool
from api_gateway.settings import GatewaySettings
from api_gateway.testing import Received, Service, http_answer, json_answer

OK = {"status": "ok", "dependencies": {"postgres": "up", "kafka": "up"}}
DEGRADED = {"status": "degraded", "dependencies": {"postgres": "up", "kafka": "down"}}
DOWN = {"status": "down", "dependencies": {"postgres": "down", "kafka": "up"}}
SILENT: dict[str, Any] = {"status": "down", "dependencies": {}}


async def silence(_: Received, __: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def garbage(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(http_answer("200 OK", b"<html>", "Content-Type: text/html"))


@pytest.mark.parametrize(
    ("status", "answer", "told", "overall", "code"),
    [
        ("200 OK", OK, OK, "ok", 200),
        ("200 OK", DEGRADED, DEGRADED, "degraded", 200),
        ("503 Service Unavailable", DOWN, DOWN, "down", 503),
        ("200 OK", {"status": "fine"}, SILENT, "down", 503),
        ("200 OK", [OK], SILENT, "down", 503),
        ("500 Internal Server Error", {"code": "internal_error"}, SILENT, "down", 503),
    ],
)
async def test_health_tells_of_every_service_and_its_dependencies(
    client: httpx.AsyncClient,
    services: dict[str, Service],
    status: str,
    answer: Any,
    told: dict[str, Any],
    overall: str,
    code: int,
) -> None:
    for service in services.values():
        service.answer = json_answer(OK)
    services["payment-gateway"].answer = json_answer(answer, status)

    response = await client.get("/health")

    assert response.status_code == code
    assert response.json() == {
        "status": overall,
        "services": {name: told if name == "payment-gateway" else OK for name in services},
    }


async def test_a_service_that_does_not_answer_is_down_and_holds_up_nobody(
    settings: GatewaySettings, services: dict[str, Service]
) -> None:
    for service in services.values():
        service.answer = json_answer(OK)
    services["user-service"].answer = silence
    services["wallet-service"].answer = garbage
    pool = Pool(settings.service_urls(), 4)
    try:
        async with asyncio.timeout(2):
            found = await Health(pool, timeout_seconds=0.2).get()
    finally:
        pool.close()

    assert found.status == "down"
    assert {name: health.status for name, health in found.services.items()} == {
        "user-service": "down",
        "wallet-service": "down",
        "transaction-service": "ok",
        "payment-gateway": "ok",
        "notification-service": "ok",
    }


async def test_a_hundred_questions_at_once_ask_each_service_once(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    for service in services.values():
        service.answer = json_answer(OK)

    responses = await asyncio.gather(*(client.get("/health") for _ in range(100)))
    await client.get("/health")

    assert {response.status_code for response in responses} == {200}
    assert [[received.target for received in service.requests] for service in services.values()] == [["/health"]] * 5


async def test_a_caller_that_hangs_up_does_not_spoil_the_answer_of_another(
    client: httpx.AsyncClient, services: dict[str, Service]
) -> None:
    go, asked = asyncio.Event(), asyncio.Event()

    async def answer(received: Received, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        await json_answer(OK)(received, writer)

    for service in services.values():
        service.answer = answer
    impatient = asyncio.create_task(client.get("/health"))
    await asked.wait()
    patient = asyncio.create_task(client.get("/health"))
    impatient.cancel()
    await asyncio.wait([impatient])
    go.set()

    assert (await patient).json()["status"] == "ok"


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
async def test_the_gateway_itself_is_well_whatever_the_services_are(
    client: httpx.AsyncClient, services: dict[str, Service], path: str
) -> None:
    for service in services.values():
        service.answer = silence

    response = await client.get(path)

    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert all(not service.requests for service in services.values())
