# ruff: noqa: ANN001, ANN201, UP031 - old Pythons know neither annotations nor f-strings
"""Says in one sentence why the platform cannot run here, if it cannot. Readable by Pythons as old as 2.7."""

import os
import sys

OLDEST = (3, 11)
NEWEST = (3, 14)
WANTED = "Python 3.11 to 3.14 is needed: make PYTHON=/path/to/python3.12 %s"


def problem(target):
    # type: (str) -> str | None
    """The sentence, or None."""
    found = "Python %d.%d" % sys.version_info[:2]
    if sys.version_info[:2] < OLDEST:
        return found + " is too old. " + WANTED % target
    if sys.version_info[:2] > NEWEST:
        return found + " is newer than what the dependencies support. " + WANTED % target
    if os.name == "nt" or sys.platform.startswith(("win", "cygwin", "msys")):
        return "The platform does not run on Windows itself: use WSL2 (https://learn.microsoft.com/windows/wsl)."
    if sys.platform == "linux" and is_musl():
        return "The embedded engines are not built for Alpine and other musl systems: use Docker with a Debian image."
    try:
        import ensurepip
        import venv
    except ImportError:
        return found + " lacks its venv module: install it (Debian and Ubuntu: apt install python3-venv)."
    del ensurepip, venv
    return None


def is_musl():
    # type: () -> bool
    """True when this Python is linked against musl instead of glibc."""
    import sysconfig

    return "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")


if __name__ == "__main__":
    sentence = problem(sys.argv[1] if len(sys.argv) > 1 else "up")
    if sentence:
        sys.stderr.write("error: " + sentence + "\n")
        sys.exit(1)
