"""Which TCP port of this machine something may listen on."""

import random
import socket
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"
# Below the range the system takes outgoing connections' ports from, so that none of them gets there first.
FREE_RANGE = range(20_000, 32_000)
ATTEMPTS = 200
CONNECT_TIMEOUT_SECONDS = 0.5


def is_free(port: int) -> bool:
    """True when nobody listens on `port` of 127.0.0.1 and this process could."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A wildcard listener does not stop a bind to one address on every system; a connection finds it.
        probe.settimeout(CONNECT_TIMEOUT_SECONDS)
        if probe.connect_ex((LOOPBACK, port)) == 0:
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def choose(preferred: Iterable[int]) -> int:
    """The first free port of `preferred`, else any free one. Raises OSError when there is none."""
    for port in preferred:
        if is_free(port):
            return port
    for port in random.sample(FREE_RANGE, ATTEMPTS):
        if is_free(port):
            return port
    raise OSError(f"none of {ATTEMPTS} ports tried is free")
