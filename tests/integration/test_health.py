"""Health of the platform while a dependency is out."""

import asyncio
from typing import Any

import httpx

from api_gateway.app import create_app as create_gateway
from api_gateway.settings import GatewaySettings
from infrastructure.embedded import ports
from shared.testing.sandbox import Sandbox
from shared.testing.servers import serving
from shared.testing.waiting import eventually
from user_service.app import create_app as create_user_service
from user_service.settings import UserSettings

URLS = [name for name in GatewaySettings.model_fields if name.endswith("_url")]


async def test_the_platform_is_well_when_everything_answers(client: httpx.AsyncClient) -> None:
    async def well() -> dict[str, Any] | None:  # what has just begun may not have met everything yet
        response = await client.get("/health")
        found: dict[str, Any] = response.json()
        return found if (response.status_code, found["status"]) == (200, "ok") else None

    found = await eventually(well)

    assert found is not None
    assert found["services"]["wallet-service"] == {
        "status": "ok",
        "dependencies": {"postgres": "up", "redis": "up", "kafka": "up", "mongodb": "up"},
    }


async def test_without_kafka_and_mongodb_the_platform_is_degraded_and_not_down(sandbox: Sandbox) -> None:
    """One refuses; the other accepts and never answers, so its check takes all the time that it may."""
    refused = ports.choose([])
    silent = await asyncio.start_server(_never_answer, "127.0.0.1", 0)
    users = create_user_service(
        sandbox.settings(
            UserSettings,
            bcrypt_rounds=4,
            mongo_host="127.0.0.1",
            mongo_port=silent.sockets[0].getsockname()[1],
            kafka_bootstrap_servers=f"127.0.0.1:{refused}",
        )
    )
    async with serving(users) as url:
        settings = sandbox.settings(GatewaySettings, **dict.fromkeys(URLS, url))
        async with serving(create_gateway(settings)) as gateway, httpx.AsyncClient() as client:
            response = await client.get(f"{gateway}/health")
    silent.close()

    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    assert response.json()["services"]["user-service"]["dependencies"] == {
        "postgres": "up",
        "redis": "up",
        "kafka": "down",
        "mongodb": "down",
    }


async def _never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def test_the_bare_address_leads_to_the_documentation(client: httpx.AsyncClient) -> None:
    response = await client.get("/")

    assert (response.status_code, response.headers["Location"]) == (307, "/docs")
