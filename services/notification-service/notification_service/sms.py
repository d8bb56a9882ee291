"""Text messages: by Twilio, or into the log."""

import json
import logging
from datetime import timedelta
from typing import Final

from pyreqwest.client import Client
from pyreqwest.exceptions import PyreqwestError

from notification_service.delivery import DeliveryError
from notification_service.letters import Message
from notification_service.words import sms_of
from shared.http.client import plain_client

SEND_TIMEOUT: Final = timedelta(seconds=10)
MAX_CONNECTIONS: Final = 8
VISIBLE_DIGITS: Final = 2

# Twilio's codes for a number that takes no message from us, whatever we do (https://www.twilio.com/docs/api/errors):
# invalid, unreachable, in no region we may send to, unsubscribed, unable to receive text messages.
_FINAL_CODES: Final = frozenset({21211, 21214, 21217, 21265, 21408, 21610, 21612, 21614})
_CREATED: Final = 201
_TROUBLE_AT_LARGE: Final = frozenset({401, 403, 404, 429})

_log = logging.getLogger(__name__)


class ConsoleSms:
    """Says in the log that a text message would go out; neither the number nor the text is in it."""

    async def send(self, message: Message) -> None:
        """Log one message."""
        _log.info(
            "text message",
            extra={
                "to": masked(message.contact.phone),
                "template": message.template,
                "letters": len(sms_of(message.template, message.facts)),
                "event_id": str(message.event_id),
            },
        )

    async def close(self) -> None:
        """There is nothing to let go of."""


class TwilioSms:
    """Text messages by Twilio's HTTP API (https://www.twilio.com/docs/messaging/api/message-resource).

    Twilio knows no idempotency key: when no answer came, the message may have been sent all the same.
    """

    def __init__(self, *, base_url: str, account_sid: str, auth_token: str, sender: str) -> None:
        self._url = f"{base_url}/2010-04-01/Accounts/{account_sid}/Messages.json"
        self._account_sid = account_sid
        self._auth_token = auth_token
        self._sender = sender
        self._client: Client | None = None

    async def send(self, message: Message) -> None:
        """Returns when Twilio has taken the message; raises DeliveryError."""
        if self._client is None:
            self._client = plain_client(MAX_CONNECTIONS)
        form = {
            "To": message.contact.phone,
            "From": self._sender,
            "Body": sms_of(message.template, message.facts),
        }
        request = self._client.post(self._url).basic_auth(self._account_sid, self._auth_token)
        try:
            response = await request.form(form).timeout(SEND_TIMEOUT).build().send()
            answer = bytes(await response.bytes())
        except (PyreqwestError, OSError) as error:
            raise DeliveryError("twilio_unavailable", at_large=True) from error
        if response.status != _CREATED:
            raise _refused(response.status, answer)

    async def close(self) -> None:
        """Close every connection."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def _refused(status: int, answer: bytes) -> DeliveryError:
    """What an answer other than 201 means; without a code of Twilio's own, its status has to say it."""
    code = _code(answer)
    if code in _FINAL_CODES:
        return DeliveryError(f"twilio_{code}", final=True)
    return DeliveryError(f"twilio_{code or status}", at_large=status in _TROUBLE_AT_LARGE or status >= 500)


def _code(answer: bytes) -> int | None:
    try:
        code = json.loads(answer)["code"]
    except (ValueError, LookupError, TypeError):
        return None
    return code if isinstance(code, int) else None


def masked(phone: str) -> str:
    """A phone number of which the last digits alone are left."""
    return "*" * max(len(phone) - VISIBLE_DIGITS, 0) + phone[-VISIBLE_DIGITS:]
