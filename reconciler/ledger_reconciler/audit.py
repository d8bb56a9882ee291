"""`python -m ledger_reconciler.audit`: walk the audit's chains once, and name the first document that is wrong."""

import asyncio
import sys

from ledger_reconciler.__main__ import CANNOT_CHECK, CLEAN, FINDINGS, INTERRUPTED
from ledger_reconciler.chains import SCHEMAS, Walk, report, verify
from ledger_reconciler.domain import CannotCheckError, Scope
from ledger_reconciler.settings import ReconcilerSettings
from ledger_reconciler.snapshot import connected
from shared.audit import AuditReader
from shared.settings import SettingsError, load


async def walk(settings: ReconcilerSettings) -> list[Walk]:
    """All services' chains; raises CannotCheckError."""
    audit = AuditReader(settings)
    try:
        async with connected(settings, Scope.RECENT) as connection:
            try:
                return [await verify(audit, connection, schema) for schema in SCHEMAS]
            except ConnectionError as error:
                raise CannotCheckError(f"{error}: check the MONGO_* settings.") from error
    finally:
        audit.close()


def main() -> int:
    """0 when each document is as it was written, 1 when one is not, 2 with one sentence when it cannot be said."""
    try:
        walks = asyncio.run(walk(load(ReconcilerSettings)))
    except (CannotCheckError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return CANNOT_CHECK
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stdout.writelines(f"{line}\n" for line in report(walks))
    return FINDINGS if any(each.finding for each in walks) else CLEAN


if __name__ == "__main__":
    sys.exit(main())
