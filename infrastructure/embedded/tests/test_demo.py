import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from infrastructure.embedded import ports
from infrastructure.embedded.demo import Demo
from infrastructure.embedded.errors import EmbeddedError


class Gateway(BaseHTTPRequestHandler):
    """Answers as the platform does, and keeps what it was sent."""

    calls: ClassVar[list[tuple[str, str, str]]] = []
    statuses: ClassVar[dict[str, int]] = {}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.calls.append((self.path, self.headers.get("Authorization", ""), body))
        status = self.statuses.get(self.path, 200 if self.path == "/users/login" else 201)
        self.send_response(status)
        self.end_headers()
        number = len(self.calls)
        self.wfile.write(json.dumps({"id": f"id-{number}", "access_token": f"token-{number}"}).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


@pytest.fixture
def gateway() -> Iterator[int]:
    Gateway.calls.clear()
    Gateway.statuses.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_sample_calls_are_made_in_order_with_what_the_answers_said(gateway: int) -> None:
    shown: list[str] = []

    Demo(shown.append, gateway).run()

    assert [path for path, _, _ in Gateway.calls] == [
        "/users/register",
        "/users/login",
        "/wallets/create",
        "/transactions/create",
        "/users/register",
        "/users/login",
        "/wallets/create",
        "/transactions/create",
    ]
    assert json.loads(Gateway.calls[2][2]) == {"user_id": "id-1", "currency": "USD"}
    _, authorization, deposit = Gateway.calls[3]
    assert authorization == "Bearer token-2"
    assert '"amount": 100.00,' in deposit
    assert json.loads(deposit)["to_wallet_id"] == "id-3"
    transfer = json.loads(Gateway.calls[7][2])
    assert (transfer["from_wallet_id"], transfer["to_wallet_id"]) == ("id-3", "id-7")
    assert Gateway.calls[7][1] == "Bearer token-2"
    assert any("curl -X POST http://localhost:8000/users/register" in text for text in shown)


def test_an_unexpected_answer_ends_the_demo_with_a_sentence(gateway: int) -> None:
    Gateway.statuses["/transactions/create"] = 402

    with pytest.raises(EmbeddedError, match=r"^/transactions/create answered 402 instead of 201\.$"):
        Demo(lambda text: None, gateway).run()

    assert len(Gateway.calls) == 4


def test_a_platform_that_is_down_is_said_to_be_down() -> None:
    with pytest.raises(EmbeddedError, match="The platform is not up"):
        Demo(lambda text: None, ports.choose([])).run()
