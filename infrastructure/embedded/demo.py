"""The README's five sample calls against the running platform."""

import http.client
import json
import secrets
from collections.abc import Callable
from typing import Any

from infrastructure.embedded import ports
from infrastructure.embedded.errors import EmbeddedError
from infrastructure.embedded.services import GATEWAY

TIMEOUT_SECONDS = 30.0
PASSWORD = "SecurePass123"  # noqa: S105 - the README's sample


class Demo:
    """Plays two people who use the platform at `port`, and shows each call and its answer through `show`."""

    def __init__(self, show: Callable[[str], None], port: int = GATEWAY.port) -> None:
        self._show = show
        self._port = port

    def run(self) -> None:
        """Register, log in, make wallets, deposit 100.00 and transfer 50.00 of it.

        Raises EmbeddedError at the first answer that is not the expected one.
        """
        if ports.is_free(self._port):
            raise EmbeddedError("The platform is not up: run `make up` first.")
        john, john_token = self._person("John", "Doe")
        johns = self._wallet("3. Create wallet", john, john_token)
        self._call(
            "4. Deposit funds",
            "/transactions/create",
            {
                "transaction_type": "deposit",
                "amount": "100.00",
                "currency": "USD",
                "to_wallet_id": johns,
                "payment_method": "credit_card",
                "description": "Initial deposit",
            },
            token=john_token,
        )
        jane, jane_token = self._person("Jane", "Roe")
        janes = self._wallet("3. Create wallet, for Jane", jane, jane_token)
        self._call(
            "5. Transfer funds",
            "/transactions/create",
            {
                "transaction_type": "transfer",
                "amount": "50.00",
                "currency": "USD",
                "from_wallet_id": johns,
                "to_wallet_id": janes,
                "description": "Payment for services",
            },
            token=john_token,
        )

    def _person(self, first_name: str, last_name: str) -> tuple[str, str]:
        email = f"{first_name.lower()}.{secrets.token_hex(4)}@example.com"
        user = self._call(
            f"1. Register {first_name}",
            "/users/register",
            {
                "email": email,
                "password": PASSWORD,
                "first_name": first_name,
                "last_name": last_name,
                "phone": "+1234567890",
                "role": "user",
            },
        )
        login = {"email": email, "password": PASSWORD}
        session = self._call(f"2. Log {first_name} in", "/users/login", login, expected=200)
        return str(user["id"]), str(session["access_token"])

    def _wallet(self, title: str, user: str, token: str) -> str:
        body = {"user_id": user, "currency": "USD"}
        return str(self._call(title, "/wallets/create", body, token=token)["id"])

    def _call(
        self, title: str, path: str, body: dict[str, str], *, token: str = "", expected: int = 201
    ) -> dict[str, Any]:
        # The README writes amounts as JSON numbers; a Python float would turn 100.00 into 100.0.
        text = json.dumps(body, indent=2)
        if "amount" in body:
            text = text.replace(f'"amount": "{body["amount"]}"', f'"amount": {body["amount"]}')
        headers = {"Content-Type": "application/json"}
        if token:
            headers = {"Authorization": f"Bearer {token}", **headers}
        shown = "".join(f' \\\n  -H "{name}: {value}"' for name, value in headers.items())
        self._show(f"# {title}\ncurl -X POST {GATEWAY.url}{path}{shown} \\\n  -d '{text}'\n")
        status, answer = self._post(path, text, headers)
        self._show(f"{status} {http.client.responses.get(status, '')}\n{json.dumps(answer, indent=2)}\n")
        if status != expected:
            raise EmbeddedError(f"{path} answered {status} instead of {expected}.")
        return answer

    def _post(self, path: str, text: str, headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("localhost", self._port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", path, text.encode(), headers)
            response = connection.getresponse()
            answer = json.loads(response.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EmbeddedError(f"{path} gave no answer that can be read: {error!r}.") from None
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise EmbeddedError(f"{path} answered something other than a JSON object.")
        return response.status, answer
