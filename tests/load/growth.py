"""How large the table of an outbox becomes while rows come and go."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.background import running
from tests.load.arena import connect
from tests.load.relay_report import Size
from wallet_service.settings import WalletSettings

SAMPLE_SECONDS = 1.0
# The server looks for tables to clean up once a minute.
CLEAN_LIMIT_SECONDS = 130.0
FEW_DEAD_ROWS = 1000
SIZE = "select pg_total_relation_size('outbox') as size, pg_stat_get_dead_tuples('outbox'::regclass) as dead"


@asynccontextmanager
async def watching(settings: WalletSettings, sizes: list[Size]) -> AsyncIterator[None]:
    """Add the size of wallet-service's outbox to `sizes` each second, for the length of the block."""
    connection, begun = await connect(settings), time.monotonic()

    async def watch() -> None:
        while True:
            row = await connection.fetchrow(SIZE)
            assert row is not None
            sizes.append(Size(time.monotonic() - begun, row["size"], row["dead"]))
            await asyncio.sleep(SAMPLE_SECONDS)

    try:
        async with running(watch):
            yield
    finally:
        await connection.close()


async def cleaned(sizes: Sequence[Size]) -> None:
    """Wait until the server has cleaned up after all that was deleted, or had the time to."""
    until = time.monotonic() + CLEAN_LIMIT_SECONDS
    while sizes[-1].dead_rows > FEW_DEAD_ROWS and time.monotonic() < until:  # noqa: ASYNC110 - a figure, no event
        await asyncio.sleep(SAMPLE_SECONDS)
