"""`make create-admin`: how admins come to be, in words for whoever runs it."""

import asyncio
import os
import re
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from shared.testing.sandbox import Sandbox
from user_service.testing import PASSWORD, UNCHANGED, event_of, somebody

pytestmark = pytest.mark.usefixtures("nobody")

Rows = Callable[..., Coroutine[Any, Any, list[asyncpg.Record]]]

FOLDER = Path(__file__).parent.parent
ROOT = "root@example.com"


async def create_admin(sandbox: Sandbox, **variables: str) -> tuple[int | None, list[str], list[str]]:
    """Run the command; its status and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "user_service",
        cwd=FOLDER,
        env=os.environ | sandbox.environment | {"ENV_FILE": "", "BCRYPT_ROUNDS": "4"} | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        written, errors = await process.communicate()
    assert b"Traceback" not in errors
    return process.returncode, written.decode().splitlines(), errors.decode().splitlines()


async def log_in(client: httpx.AsyncClient, password: str) -> httpx.Response:
    return await client.post("/users/login", json={"email": ROOT, "password": password})


async def test_an_admin_is_made_with_a_password_that_is_made_up_and_shown_once(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    status, written, errors = await create_admin(sandbox, EMAIL="Root@Example.com")

    assert (status, errors) == (0, [])
    [row] = await rows("select * from users")
    assert written[0] == f"{ROOT} is an admin ({row['id']})."
    shown = re.fullmatch(r"Password, shown this once: (\S{24})", written[1])
    assert shown is not None
    assert (row["role"], row["status"], row["first_name"], row["phone"]) == ("admin", "active", "Platform", "")
    answer = (await log_in(client, shown[1])).json()
    assert (answer["user"]["role"], answer["user"]["phone"]) == ("admin", "")
    headers = {"Authorization": f"Bearer {answer['access_token']}"}
    assert (await client.get("/users", headers=headers)).status_code == 200
    [told, _] = [event_of(event) for event in await rows("select payload from outbox order by position")]
    assert (told["type"], told["sequence"], told["actor"]) == ("users.registered.v1", 1, "create-admin")
    assert (told["data"]["role"], told["data"]["email"]) == ("admin", ROOT)
    assert shown[1] not in str(await rows("select payload from outbox"))


async def test_a_password_name_and_phone_may_be_given(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    given = {"PASSWORD": "BetterPass456", "FIRST_NAME": "Ada", "LAST_NAME": "Roe", "PHONE": "+1234567890"}

    status, written, _ = await create_admin(sandbox, EMAIL=ROOT, **given)

    [row] = await rows("select * from users")
    assert (status, written) == (0, [f"{ROOT} is an admin ({row['id']})."])
    assert (row["first_name"], row["last_name"], row["phone"]) == ("Ada", "Roe", "+1234567890")
    assert (await log_in(client, "BetterPass456")).status_code == 200


async def test_an_address_that_is_registered_is_refused_unless_its_owner_is_meant(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows
) -> None:
    root = await somebody(client, "root")
    session = await root.sign_in()

    status, written, [sentence] = await create_admin(sandbox, EMAIL=ROOT, PASSWORD="BetterPass456")

    assert (status, written) == (1, [])
    assert sentence == f"error: {ROOT} is registered already: PROMOTE=1 makes an admin of its owner."
    assert [row["role"] for row in await rows("select role from users")] == ["user"]
    assert await session.is_alive()

    status, [sentence], _ = await create_admin(sandbox, EMAIL=ROOT, PROMOTE="1")
    assert (status, sentence) == (0, f"{ROOT} is an admin ({root.id}), keeps the password, and has to log in anew.")
    assert not await session.is_alive()
    assert (await log_in(client, PASSWORD)).json()["user"]["role"] == "admin"
    told = [event_of(row) for row in await rows("select payload from outbox order by position")][2:4]
    assert [(event["type"], event["sequence"], event["actor"]) for event in told] == [
        ("users.updated.v1", 3, "create-admin"),
        ("users.sessions_ended.v1", 4, "create-admin"),
    ]
    assert told[0]["data"]["role"] == "admin"
    assert told[0]["data"]["before"] == UNCHANGED | {"role": "user"}
    assert (
        await rows("select 1 from outbox where payload::jsonb ->> 'actor' = 'create-admin' and ip is not null") == []
    )
    before = await rows("select count(*) as events from outbox")
    assert (await create_admin(sandbox, EMAIL=ROOT, PROMOTE="1"))[0] == 0
    assert await rows("select count(*) as events from outbox") == before


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "Say whom to make an admin: make create-admin EMAIL=ada@example.com"),
        ({"EMAIL": "root"}, "EMAIL: Must be an e-mail address."),
        ({"EMAIL": ROOT, "PASSWORD": "short"}, "PASSWORD: String should have at least 8 characters"),
        ({"EMAIL": ROOT, "PASSWORD": "password123"}, "PASSWORD: Is among the most common passwords."),
        ({"EMAIL": ROOT, "PHONE": "123"}, "PHONE: String should match pattern"),
        ({"EMAIL": ROOT, "PROMOTE": "1"}, f"Nobody who may log in is registered as {ROOT}"),
        ({"EMAIL": ROOT, "POSTGRES_PORT": "1"}, "PostgreSQL at 127.0.0.1:1 cannot be used"),
        ({"EMAIL": ROOT, "ENVIRONMENT": "production"}, "JWT_SECRET_KEY must be set"),
    ],
    ids=str,
)
async def test_what_cannot_be_done_is_said_in_one_sentence(
    sandbox: Sandbox, client: httpx.AsyncClient, rows: Rows, variables: dict[str, str], sentence: str
) -> None:
    status, written, [error] = await create_admin(sandbox, **variables)

    assert (status, written) == (1, [])
    assert error.startswith(f"error: {sentence}")
    assert await rows("select * from users") == []
