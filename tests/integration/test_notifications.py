"""People hear of what they do and what happens to them, from the call through the gateway to the mail."""

import email
import secrets
from dataclasses import dataclass
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

import httpx

from shared.testing.waiting import eventually
from tests.platform import Platform

PASSWORD = "SecurePass123"


@dataclass
class Somebody:
    """A person at the gateway."""

    client: httpx.AsyncClient
    email: str
    id: str
    headers: dict[str, str]

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What the call answers."""
        response = await self.client.post(path, json=body, headers=self.headers)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json() if response.content else {}
        return answer

    async def wallet(self) -> str:
        """A new wallet in USD."""
        return str((await self.post("/wallets/create", {"user_id": self.id, "currency": "USD"}))["id"])

    async def notified(self) -> list[tuple[str, str, str]]:
        """Kind, channel and state of what they were told, in a fixed order."""
        response = await self.client.get("/notifications", params={"limit": 100}, headers=self.headers)
        assert response.status_code == 200, response.text
        return sorted((each["kind"], each["channel"], each["state"]) for each in response.json()["data"])


def mails_in(folder: Path) -> list[Message]:
    """Every mail that was written to a file."""
    return [email.message_from_bytes(file.read_bytes(), policy=default) for file in folder.glob("*.eml")]


async def newcomer(client: httpx.AsyncClient, role: str = "user") -> Somebody:
    address = f"{secrets.token_hex(6)}@example.com"
    person = {"first_name": "Zoë", "last_name": "Doe", "phone": "+1234567890", "role": role}
    registered = await client.post("/users/register", json={"email": address, "password": PASSWORD} | person)
    assert registered.status_code == 201, registered.text
    headers = await sign_in(client, address, "first")
    return Somebody(client, address, registered.json()["id"], headers)


async def sign_in(client: httpx.AsyncClient, address: str, device: str) -> dict[str, str]:
    login = {"email": address, "password": PASSWORD}
    response = await client.post("/users/login", json=login, headers={"User-Agent": device})
    assert response.status_code == 200, response.text
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


async def test_each_thing_that_happens_is_told_once_to_whom_it_concerns(client: httpx.AsyncClient) -> None:
    alice, merchant = await newcomer(client), await newcomer(client, "merchant")
    mine, theirs = await alice.wallet(), await merchant.wallet()
    create = "/transactions/create"
    money = {"currency": "USD", "from_wallet_id": mine, "to_wallet_id": theirs}
    deposit = {"currency": "USD", "to_wallet_id": mine, "payment_method": "credit_card"}

    await alice.post(create, deposit | {"transaction_type": "deposit", "amount": "100.00"})
    await alice.post(create, money | {"transaction_type": "transfer", "amount": "10.00"})
    paid = await alice.post(create, money | {"transaction_type": "payment", "amount": "20.00"})
    await merchant.post(f"/transactions/{paid['id']}/refund", {"amount": "5.00"})
    refused = money | {"transaction_type": "transfer", "amount": "9999.00"}
    assert (await client.post(create, json=refused, headers=alice.headers)).status_code == 402
    alice.headers = await sign_in(client, alice.email, "second")
    await alice.post("/users/me/password", {"current_password": PASSWORD, "new_password": "AnotherPass456"})

    expected_of_alice = [
        ("deposit", "email", "sent"),
        ("failure", "email", "sent"),
        ("money_sent", "email", "sent"),
        ("money_sent", "email", "sent"),
        ("new_device", "email", "sent"),
        ("new_device", "sms", "sent"),
        ("password_changed", "email", "sent"),
        ("password_changed", "sms", "sent"),
        ("refund", "email", "sent"),
        ("welcome", "email", "sent"),
    ]
    expected_of_merchant = [
        ("money_received", "email", "sent"),
        ("payment_received", "email", "sent"),
        ("refund", "email", "sent"),
        ("welcome", "email", "sent"),
    ]

    async def all_told() -> bool:
        return await alice.notified() == expected_of_alice and await merchant.notified() == expected_of_merchant

    try:
        await eventually(all_told, 30)
    finally:
        assert await alice.notified() == expected_of_alice
        assert await merchant.notified() == expected_of_merchant


async def test_without_a_mail_server_the_mails_are_files(platform: Platform, client: httpx.AsyncClient) -> None:
    alice = await newcomer(client)
    folder = Path(platform.sandbox.environment["MAIL_FOLDER"])

    async def welcome() -> Any:
        return [mail for mail in mails_in(folder) if alice.email in mail["To"]]

    [mail] = await eventually(welcome)

    assert mail["Subject"] == "Welcome"
    assert mail["To"].addresses[0].display_name == "Zoë Doe"
