"""A mail server as a process of its own, which writes down what it takes before it says so.

python -m tests.faults.mail_server PORT JOURNAL
"""

import asyncio
import email
import hashlib
import json
import os
import signal
import sys
from email.policy import default
from pathlib import Path
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session

HOST: Final = "127.0.0.1"


class Journal:
    """What was taken, a line each. SIGUSR1 ends the process at the next mail: written down, and not answered."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._last = False

    def end_at_next(self) -> None:
        """The next mail is the last one."""
        self._last = True

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Nothing is awaited: between the line and the answer nobody else's mail is handled."""
        content = envelope.original_content or b""
        mail = email.message_from_bytes(content, policy=default)
        line = {
            "message_id": mail["Message-ID"],
            "recipient": envelope.rcpt_tos[0],
            "digest": hashlib.sha256(content).hexdigest(),
            "answered": not self._last,
        }
        os.write(self._file, json.dumps(line).encode() + b"\n")
        if self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        return "250 OK"


async def serve(port: int, journal: Journal) -> None:
    """Take mails until SIGTERM."""
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told_to_end.set)
    loop.add_signal_handler(signal.SIGUSR1, journal.end_at_next)
    await loop.create_server(lambda: SMTP(journal, hostname="mail.example", loop=loop), HOST, port)
    await told_to_end.wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Journal(Path(sys.argv[2]))))
