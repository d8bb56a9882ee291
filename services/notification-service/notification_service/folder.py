"""E-mails as files, where there is no mail server: `.eml`, which every mail program opens."""

import asyncio
import os
from pathlib import Path
from typing import Final

from notification_service.delivery import DeliveryError
from notification_service.domain import Channel
from notification_service.letters import AddressError, Letters, Message

MAX_MAILS: Final = 1_000  # the oldest ones beyond it go
TIDIED_EACH: Final = 100


class MailFolder:
    """Writes each e-mail to a file whose name is the message's own: a repeat replaces it."""

    def __init__(self, folder: Path, letters: Letters) -> None:
        self._folder = folder
        self._letters = letters
        self._written = 0

    async def send(self, message: Message) -> None:
        """Write one e-mail; raises DeliveryError."""
        try:
            letter = bytes(self._letters.write(message))
            await asyncio.to_thread(self._write, f"{self._name(message)}.eml", letter)
        except AddressError as error:
            raise DeliveryError("address_invalid", final=True) from error
        except OSError as error:
            raise DeliveryError("folder_not_writable", at_large=True) from error

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _name(self, message: Message) -> str:
        return f"{message.created_at:%Y%m%dT%H%M%S.%f}-{message.kind}-{message.token(Channel.EMAIL)}"

    def _write(self, name: str, letter: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        unfinished = self._folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(letter)
        unfinished.replace(self._folder / name)
        self._written += 1
        if self._written % TIDIED_EACH == 0:
            for old in sorted(self._folder.glob("*.eml"))[:-MAX_MAILS]:
                old.unlink(missing_ok=True)
