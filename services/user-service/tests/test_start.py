"""What stops the start of a service is said in one sentence, with exit status 1."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from shared.signing_keys import new_pair
from shared.testing.sandbox import Sandbox

FOLDER = Path(__file__).parent.parent
PRIVATE, PUBLIC = new_pair()
OWN_SECRETS = {"JWT_SECRET_KEY": "j" * 32, "SERVICE_SECRET_KEY": "s" * 32}


async def start(sandbox: Sandbox, **change: str) -> tuple[int | None, list[str]]:
    """Serve with these variables changed; the exit status and the lines that were written."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shared.serve",
        "--port",
        "0",
        cwd=FOLDER,
        env=os.environ | sandbox.environment | {"ENV_FILE": ""} | change,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        _, written = await process.communicate()
    assert b"Traceback" not in written
    return process.returncode, written.decode().splitlines()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"POSTGRES_PASSWORD": "wrong"},
            'cannot be used as paymentuser (password authentication failed for user "paymentuser"): '
            "check the POSTGRES_* settings, or start one with `make infra`.",
        ),
        ({"POSTGRES_DB": "not_there"}, 'database "not_there" does not exist'),
        ({"POSTGRES_PORT": "1"}, "PostgreSQL at 127.0.0.1:1 cannot be used"),
        ({"MIGRATE_AT_START": "false"}, "run `alembic upgrade head` in user-service first."),
    ],
    ids=["password", "database", "server", "schema"],
)
async def test_a_database_that_cannot_be_used_is_named(
    sandbox: Sandbox, change: dict[str, str], sentence: str
) -> None:
    status, lines = await start(sandbox, **change)

    assert status == 1
    said = [json.loads(line)["message"] for line in lines if '"level": "ERROR"' in line]
    assert len(said) == 2
    assert sentence in said[0]
    assert said[1] == "Application startup failed. Exiting."


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"POSTGRES_PORT": "many"}, "POSTGRES_PORT: Input should be a valid integer"),
        ({"ENVIRONMENT": "production"}, "JWT_SECRET_KEY must be set to a secret of at least 32 bytes of your own"),
        (
            {"ENVIRONMENT": "production", "JWT_SECRET_KEY": "j" * 32, "SERVICE_SECRET_KEY": "short"},
            "SERVICE_SECRET_KEY must be set to a secret of at least 32 bytes of your own",
        ),
        (
            {"ENVIRONMENT": "staging"} | OWN_SECRETS,
            "POSTGRES_PASSWORD must be set to a password of your own when ENVIRONMENT is staging.",
        ),
        (
            {"ENVIRONMENT": "staging", "POSTGRES_PASSWORD": "p" * 16, "MONGO_PASSWORD": "mongopass"} | OWN_SECRETS,
            "MONGO_PASSWORD must be set to a password of your own when ENVIRONMENT is staging.",
        ),
        ({"JWT_PUBLIC_KEY": "a key"}, "JWT_PUBLIC_KEY: Must be a public key on the curve P-256 in PEM"),
        ({"JWT_PRIVATE_KEY": PUBLIC}, "JWT_PRIVATE_KEY: Must be a private key on the curve P-256 in PEM"),
        ({"JWT_PUBLIC_KEY": PUBLIC}, "JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be set together"),
        ({"JWT_PRIVATE_KEY": PRIVATE}, "JWT_PRIVATE_KEY and JWT_PUBLIC_KEY must be set together"),
        (
            {"JWT_PRIVATE_KEY": new_pair()[0], "JWT_PUBLIC_KEY": PUBLIC},
            "JWT_PRIVATE_KEY and JWT_PUBLIC_KEY are not a pair",
        ),
    ],
    ids=[
        "port",
        "known secret",
        "short secret",
        "known password",
        "other known password",
        "no key",
        "public as private",
        "half",
        "other half",
        "no pair",
    ],
)
async def test_a_setting_that_cannot_be_is_named(sandbox: Sandbox, change: dict[str, str], sentence: str) -> None:
    status, [line] = await start(sandbox, **change)

    assert status == 1
    assert line.startswith(sentence)
    assert "BEGIN" not in line
