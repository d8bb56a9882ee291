"""What a database is asked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.database import Asyncpg, Database
from shared.settings import DatabaseSettings


class CountingDatabase(Database):
    """A database that remembers what its batches have asked of it."""

    def __init__(self, settings: DatabaseSettings) -> None:
        super().__init__(settings)
        self.statements: list[str] = []

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Asyncpg]:
        async with super().batch() as connection:
            with connection.query_logger(self._note):
                yield connection

    def _note(self, record: Any) -> None:
        if record.query[0].islower():  # asyncpg has some of its own, about types that a connection meets first
            self.statements.append(record.query)
