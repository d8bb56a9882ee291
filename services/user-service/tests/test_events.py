"""A registration as the rest of the platform hears of it, with all sinks up."""

import asyncio
from typing import Any

from shared.background import running
from shared.consumer import Consumer, each
from shared.events import Envelope, UserRegistered
from shared.settings import DatabaseSettings
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.waiting import eventually
from user_service.app import create_app
from user_service.settings import UserSettings


class ListenerSettings(DatabaseSettings):
    service = "listener"
    schema_name = "listener"


async def test_a_registration_is_told_once_in_kafka_and_kept_once_in_the_audit(sandbox: Sandbox) -> None:
    heard: list[Envelope] = []

    async def hear(envelope: Envelope) -> None:
        heard.append(envelope)

    async def arrived() -> list[Envelope]:
        return heard

    def audit() -> list[dict[str, Any]]:
        with sandbox.mongo() as client:
            return list(client[sandbox.environment["MONGO_DB"]]["users_audit"].find())

    async def audited() -> list[dict[str, Any]]:
        return await asyncio.to_thread(audit)

    listener = Consumer(sandbox.settings(ListenerSettings), [UserRegistered.topic], each(hear))
    app = create_app(sandbox.settings(UserSettings, bcrypt_rounds=4))
    async with in_process(app) as client, running(listener.run):
        body = {
            "email": "User@example.com",
            "password": "SecurePass123",
            "first_name": "John",
            "last_name": "Doe",
            "phone": "+1234567890",
        }
        user = (await client.post("/users/register", json=body)).json()
        assert (await client.post("/users/register", json=body)).status_code == 409

        [envelope] = await eventually(arrived)
        [document] = await eventually(audited)
        assert (await client.get("/health")).json() == {
            "status": "ok",
            "dependencies": {"postgres": "up", "redis": "up", "kafka": "up", "mongodb": "up"},
        }

    assert (envelope.type, envelope.subject, envelope.sequence) == ("users.registered.v1", user["id"], 1)
    assert envelope.data == {
        "user_id": user["id"],
        "email": "user@example.com",
        "phone": "+1234567890",
        "first_name": "John",
        "last_name": "Doe",
        "role": "user",
        "status": "active",
    }
    assert (document["_id"], document["data"]) == (str(envelope.id), envelope.data)
