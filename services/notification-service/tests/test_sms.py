"""Text messages: by Twilio's API on a real HTTP server, and into the log."""

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from notification_service.delivery import DeliveryError
from notification_service.sms import ConsoleSms, TwilioSms, masked
from notification_service.testing import Post, Process, contact_event, message, sign_in_event
from shared.ids import new_id
from shared.testing.servers import serving

SID, TOKEN, SENDER = "AC00000000000000000000000000000000", "secret", "+15005550006"


@dataclass
class Twilio:
    """Answers as Twilio documents it."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[], Response] = lambda: JSONResponse({"sid": "SM1", "status": "queued"}, 201)


def error(status: int, code: int) -> Callable[[], Response]:
    document = {
        "code": code,
        "message": "The 'To' number +1234567890 is not a valid phone number.",
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    return lambda: JSONResponse(document, status)


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Twilio]:
    twilio, app = Twilio(), FastAPI()

    @app.post("/2010-04-01/Accounts/{sid}/Messages.json")
    async def create_message(sid: str, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        headers = {name: request.headers[name] for name in ("authorization", "content-type")}
        twilio.requests.append({"sid": sid, **form, **headers})
        return twilio.answer()

    async with serving(app) as twilio.url:
        yield twilio


@pytest.fixture
async def twilio(server: Twilio) -> Twilio:
    server.requests.clear()
    server.answer = Twilio.answer
    return server


async def send(url: str, **contact: Any) -> None:
    sms = TwilioSms(base_url=url, account_sid=SID, auth_token=TOKEN, sender=SENDER)
    try:
        await sms.send(message(sign_in_event(new_id()), **contact))
    finally:
        await sms.close()


async def test_a_message_is_created_as_twilio_documents_it(twilio: Twilio) -> None:
    await send(twilio.url)

    assert twilio.requests == [
        {
            "sid": SID,
            "To": "+1234567890",
            "From": SENDER,
            "Body": "New sign-in to your account from 203.0.113.7. If this was not you, change your password now.",
            "authorization": "Basic QUMwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDpzZWNyZXQ=",
            "content-type": "application/x-www-form-urlencoded",
        }
    ]


@pytest.mark.parametrize(
    ("answer", "reason", "final", "at_large"),
    [
        (error(400, 21211), "twilio_21211", True, False),
        (error(400, 21610), "twilio_21610", True, False),
        (error(400, 21212), "twilio_21212", False, False),
        (error(401, 20003), "twilio_20003", False, True),
        (error(429, 20429), "twilio_20429", False, True),
        (lambda: Response("oops", 500), "twilio_500", False, True),
        (lambda: Response("[]", 503), "twilio_503", False, True),
        (lambda: Response(status_code=307, headers={"location": "http://127.0.0.1:1/"}), "twilio_307", False, False),
    ],
)
async def test_each_refusal_says_whether_to_try_again(
    twilio: Twilio, answer: Callable[[], Response], reason: str, *, final: bool, at_large: bool
) -> None:
    twilio.answer = answer

    with pytest.raises(DeliveryError) as raised:
        await send(twilio.url)

    assert (raised.value.reason, raised.value.final, raised.value.at_large) == (reason, final, at_large)
    assert len(twilio.requests) == 1


async def test_nobody_there_is_tried_again() -> None:
    with pytest.raises(DeliveryError) as raised:
        await send("http://127.0.0.1:1")

    assert (raised.value.reason, raised.value.final, raised.value.at_large) == ("twilio_unavailable", False, True)


async def test_a_message_gets_through_trouble_and_a_bad_number_does_not(
    twilio: Twilio, post: Post, process: Process
) -> None:
    alice, answers = new_id(), iter([error(429, 20429), error(500, 20500), Twilio.answer])
    twilio.answer = lambda: next(answers)()
    settings = {
        "sms_provider": "twilio",
        "twilio_account_sid": SID,
        "twilio_auth_token": TOKEN,
        "twilio_from": SENDER,
        "twilio_api_url": twilio.url,
        "smtp_host": "",
    }
    await post.happened(contact_event(alice), sign_in_event(alice))
    async with process(**settings):
        assert ("new_device", "sms", "sent", None) in await post.ended(alice)
        assert len(twilio.requests) == 3
        bob = new_id()
        twilio.answer = error(400, 21211)
        await post.happened(contact_event(bob, phone="+1"), sign_in_event(bob))
        assert ("new_device", "sms", "failed", "twilio_21211") in await post.ended(bob)
    assert len(twilio.requests) == 4


async def test_the_console_shows_neither_number_nor_text(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "notification_service.sms"):
        await ConsoleSms().send(message(sign_in_event(new_id())))

    [record] = caplog.records
    assert record.__dict__["to"] == "*********90"
    assert "1234567890" not in str(record.__dict__)
    assert "203.0.113.7" not in str(record.__dict__)


def test_numbers_are_masked() -> None:
    assert [masked(number) for number in ("+1234567890", "12", "1", "")] == ["*********90", "12", "1", ""]
