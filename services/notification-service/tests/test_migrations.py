"""Migrations of the service."""

from pathlib import Path

from shared.testing.migrations import assert_reversible_and_complete
from shared.testing.sandbox import sandbox_on


async def test_the_schema_can_be_made_undone_and_made_again(engines: dict[str, str]) -> None:
    async with sandbox_on(engines) as sandbox:
        await assert_reversible_and_complete(sandbox, Path(__file__).parent.parent)
