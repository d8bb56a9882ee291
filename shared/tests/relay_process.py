"""A process that does nothing but relay: `relay_process.py <service> <schema>`, by the environment."""

import asyncio
import sys

from prometheus_client import CollectorRegistry

from shared.database import Database
from shared.outbox import Relay
from shared.settings import DatabaseSettings


class RelayingSettings(DatabaseSettings):
    service, schema_name = sys.argv[1:]


async def main() -> None:
    settings = RelayingSettings(_env_file=None)
    database = Database(settings)
    await database.open()
    await Relay(database, settings, CollectorRegistry()).run()


if __name__ == "__main__":
    asyncio.run(main())
