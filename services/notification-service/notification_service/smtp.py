"""E-mails by SMTP."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Literal

import aiosmtplib

from notification_service.delivery import DeliveryError
from notification_service.letters import AddressError, Letters, Message

STEP_TIMEOUT_SECONDS: Final = 5.0  # for one answer of the server
SEND_TIMEOUT_SECONDS: Final = 10.0  # for one e-mail, whatever it takes
IDLE_SECONDS: Final = 10.0  # a server may have closed a connection that was silent longer
QUIT_SECONDS: Final = 1.0
PERMANENT: Final = range(500, 600)


class Smtp:
    """Hands e-mails to a mail server, over connections that are kept while there is something to send."""

    def __init__(
        self,
        letters: Letters,
        *,
        host: str,
        port: int,
        security: Literal["none", "starttls", "tls"],
        username: str,
        password: str,
        local_name: str,
    ) -> None:
        self._letters = letters
        self._host = host
        self._port = port
        self._security = security
        self._login = (username, password) if username else (None, None)
        self._local_name = local_name
        self._idle: list[tuple[float, aiosmtplib.SMTP]] = []

    async def send(self, message: Message) -> None:
        """Returns as soon as the server has said that it takes the message; raises DeliveryError.

        When no answer came to the message itself, the server may have taken it all the same.
        """
        try:
            letter = self._letters.write(message)
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS), self._connection() as connection:
                await connection.send_message(letter)
        except AddressError as error:
            raise DeliveryError("address_invalid", final=True) from error
        except aiosmtplib.SMTPRecipientsRefused as error:
            raise _refused(error.recipients[0].code) from error
        except aiosmtplib.SMTPDataError as error:
            raise _refused(error.code) from error
        except aiosmtplib.SMTPNotSupported as error:
            raise DeliveryError("address_not_supported", final=True) from error
        except aiosmtplib.SMTPResponseException as error:  # login, sender, greeting: not this message's fault
            raise DeliveryError(f"smtp_{error.code}", at_large=True) from error
        except (aiosmtplib.SMTPException, OSError) as error:  # a TimeoutError is an OSError
            raise DeliveryError("smtp_unavailable", at_large=True) from error

    async def close(self) -> None:
        """Say goodbye on every connection that is open."""
        idle, self._idle = self._idle, []
        for _, connection in idle:
            await _quit(connection)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection of one's own; it is kept when the block ends well or by a refusal of one message."""
        connection = self._take() or await self._connect()
        try:
            yield connection
        except (aiosmtplib.SMTPRecipientsRefused, aiosmtplib.SMTPDataError):
            self._keep(connection)
            raise
        except BaseException:
            connection.close()
            raise
        else:
            self._keep(connection)

    def _take(self) -> aiosmtplib.SMTP | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.is_connected and time.monotonic() - since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _keep(self, connection: aiosmtplib.SMTP) -> None:
        if connection.is_connected:
            self._idle.append((time.monotonic(), connection))

    async def _connect(self) -> aiosmtplib.SMTP:
        username, password = self._login
        connection = aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=username,
            password=password,
            local_hostname=self._local_name,
            timeout=STEP_TIMEOUT_SECONDS,
            use_tls=self._security == "tls",
            start_tls=self._security == "starttls",
        )
        try:
            await connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection


def _refused(code: int) -> DeliveryError:
    return DeliveryError(f"smtp_{code}", final=code in PERMANENT)


async def _quit(connection: aiosmtplib.SMTP) -> None:
    with contextlib.suppress(aiosmtplib.SMTPException, OSError):
        async with asyncio.timeout(QUIT_SECONDS):
            await connection.quit()
    connection.close()
