"""`python -m shared.migrate`, run in a service's folder: bring its schema up to date, or say in a sentence why not.

For deployments, where the login that owns the schemas is not the one that services have.
"""

import sys
from pathlib import Path

from shared.database import upgrade
from shared.settings import SettingsError


def main() -> int:
    """0 when the schema is up to date, 1 with one sentence when it is as it was."""
    folder = Path.cwd()
    try:
        upgrade(folder)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"The schema of {folder.name} is up to date.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
