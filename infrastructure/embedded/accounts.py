"""The account PostgreSQL runs under, which refuses to run as root, and the folder that account can reach."""

import hashlib
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from infrastructure.embedded.errors import EmbeddedError

CANDIDATES = ("postgres", "nobody")
OUTSIDE = Path("/var/tmp")  # noqa: S108 - survives a restart of the machine; ownership is checked below


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account of this machine."""

    uid: int
    gid: int


def unprivileged() -> Account | None:
    """The account that stands in for root, or None when this process is not root's."""
    if os.geteuid() != 0:
        return None
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedError("PostgreSQL does not run as root, and this machine has no account named postgres or nobody.")


def digest(path: Path) -> str:
    """A short name that stands for `path`."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]


def outside_directory(checkout: Path) -> Path:
    """Root's own folder outside `checkout` that others may enter but not change, made when missing."""
    directory = OUTSIDE / f"payment-system-{digest(checkout)}"
    try:
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)  # whatever the umask
    except FileExistsError:
        pass
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise EmbeddedError(f"{directory} belongs to somebody else: look into it and remove it.")
    return directory


def owned_directory(directory: Path, account: Account) -> None:
    """Make `directory` a folder that only `account` can enter."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.chown(directory, account.uid, account.gid)
