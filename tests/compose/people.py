"""Somebody with money, who is met again after a restart."""

import secrets
from dataclasses import dataclass
from typing import Any, Final

import httpx

PASSWORD: Final = "SecurePass123"
PERSON: Final = {"first_name": "John", "last_name": "Doe", "phone": "+1234567890", "role": "user"}


@dataclass
class Customer:
    """A registered person with a dollar wallet."""

    gateway: str
    email: str
    user_id: str = ""
    token: str = ""
    wallet_id: str = ""

    def post(self, path: str, body: dict[str, Any], expected: int) -> Any:
        """What this call answers, which must have the status that is expected."""
        answer = httpx.post(self.gateway + path, json=body, headers=self._headers, timeout=15)
        assert answer.status_code == expected, answer.text
        return answer.json()

    def log_in(self) -> None:
        """Take a new token."""
        answer = self.post("/users/login", {"email": self.email, "password": PASSWORD}, 200)
        self.token, self.user_id = answer["access_token"], answer["user"]["id"]

    def deposit(self, amount: str) -> None:
        """Put money in by card."""
        body = {"transaction_type": "deposit", "amount": amount, "currency": "USD", "payment_method": "credit_card"}
        self.post("/transactions/create", body | {"to_wallet_id": self.wallet_id}, 201)

    def balance(self) -> str:
        """What is in the wallet."""
        where = f"{self.gateway}/wallets/{self.wallet_id}/balance"
        answer = httpx.get(where, headers=self._headers, timeout=15)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["balance"])

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def new_customer(gateway: str) -> Customer:
    """Somebody new, with an empty wallet."""
    customer = Customer(gateway, f"{secrets.token_hex(8)}@example.com")
    customer.post("/users/register", PERSON | {"email": customer.email, "password": PASSWORD}, 201)
    customer.log_in()
    wallet = customer.post("/wallets/create", {"user_id": customer.user_id, "currency": "USD"}, 201)
    customer.wallet_id = wallet["id"]
    return customer
