"""`python -m ledger_reconciler`: look at everything once, and report."""

import asyncio
import sys
from typing import Final

from ledger_reconciler.domain import CannotCheckError, Pass, report
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from shared.audit import AuditReader
from shared.settings import SettingsError, load

CLEAN: Final = 0
FINDINGS: Final = 1
CANNOT_CHECK: Final = 2
INTERRUPTED: Final = 130


async def look(settings: ReconcilerSettings) -> Pass:
    """One full pass; raises CannotCheckError."""
    audit = AuditReader(settings)
    try:
        return await Reconciler(settings, audit).full()
    finally:
        audit.close()


def main() -> int:
    """0 when everything adds up, 1 when something does not, 2 with one sentence when nothing could be looked at."""
    try:
        done = asyncio.run(look(load(ReconcilerSettings)))
    except (CannotCheckError, SettingsError) as error:
        sys.stderr.write(f"error: {error}\n")
        return CANNOT_CHECK
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stdout.writelines(f"{line}\n" for line in report(done))
    return FINDINGS if done.total else CLEAN


if __name__ == "__main__":
    sys.exit(main())
