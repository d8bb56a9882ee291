"""What must hold of every service's migrations."""

import asyncio
import os
import sys
from pathlib import Path

from shared.testing.sandbox import Sandbox


async def alembic(sandbox: Sandbox, folder: Path, *arguments: str) -> None:
    """Run alembic in a service's folder, as an operator would; fails with what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "alembic",
        *arguments,
        cwd=folder,
        env=os.environ | sandbox.environment | {"ENV_FILE": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


async def assert_reversible_and_complete(sandbox: Sandbox, folder: Path) -> None:
    """Up, nothing that the models have beyond the schema, down to nothing, and up again."""
    await alembic(sandbox, folder, "upgrade", "head")
    await alembic(sandbox, folder, "check")
    await alembic(sandbox, folder, "downgrade", "base")
    await alembic(sandbox, folder, "upgrade", "head")
