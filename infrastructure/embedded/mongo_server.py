"""NX-27017 as it is started here, by the Python it is installed in: documents that come together are one transaction.

By itself it commits each of them, which takes longer than writing it.
"""

import sys
from typing import Any

from nx_27017 import main
from nx_27017.handler import NeoSQLiteHandler

insert = NeoSQLiteHandler.handle_insert


def insert_together(handler: Any, message: dict[str, Any]) -> Any:
    """What `handle_insert` does, for all documents or, after a crash, for none."""
    name = next(str(part.get("$db", "test")) for kind, part in message["sections"] if kind == "body")
    with handler._lock_for(name):  # noqa: SLF001 - the lock that each command takes
        connection = handler.get_database(name).db
        if connection.in_transaction:
            return insert(handler, message)
        connection.execute("BEGIN")
        try:
            return insert(handler, message)
        finally:
            connection.execute("COMMIT")


if __name__ == "__main__":
    NeoSQLiteHandler.handle_insert = insert_together
    sys.exit(main())
