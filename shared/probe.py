"""`python -m shared.probe 8001`: status 0 when the service on this port can do its work, 1 when not.

The health check of the images, which have no curl. It runs every few seconds, so it imports next to nothing.
"""

import socket
import sys
from typing import Final

REQUEST: Final = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
READY: Final = b"HTTP/1.1 200 "
TIMEOUT_SECONDS: Final = 2.0


def is_ready(port: int) -> bool:
    """True when the service on this port of this machine answers 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS) as connection:
            connection.sendall(REQUEST)
            return connection.recv(len(READY), socket.MSG_WAITALL) == READY
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(0 if is_ready(int(sys.argv[1])) else 1)
