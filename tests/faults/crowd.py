"""People who go on paying each other, whatever happens to the platform; what is not answered is asked again."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from shared.http.wire import utc_text
from shared.testing.waiting import eventually

PEOPLE: Final = 6
CLIENTS: Final = 8
PAUSE_SECONDS: Final = 0.2  # between two payments of a client
RETRY_SECONDS: Final = 0.5
ATTEMPTS: Final = 20
ASKED_AGAIN: Final = 8  # one payment of so many is sent once more when it is done
FUNDS: Final = "10000.00"
PASSWORD: Final = "SecurePass123"
GROWN_LIMIT_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a dollar wallet and money in it."""

    id: str
    wallet_id: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; no status where nothing did."""

    status: int | None
    content: bytes
    seconds: float


@dataclass(slots=True)
class Payment:
    """One transfer under one key, and each answer to it."""

    payer: Person
    payee: Person
    amount_minor: int
    key: str
    answers: list[Answer] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether somebody was told that it is."""
        return any(answer.status == httpx.codes.CREATED for answer in self.answers)


@dataclass
class Crowd:
    """All that was asked for, and all that was heard of it."""

    client: httpx.AsyncClient
    people: list[Person]
    began: str
    """The instant, as events have it, before the first of them came."""

    payments: list[Payment] = field(default_factory=list)
    profiles: list[int] = field(default_factory=list)
    """The statuses of the changes that one of them makes to the name."""

    stopped: bool = False

    @property
    def acknowledged(self) -> int:
        """How many payments are done, as far as the payers know."""
        return sum(payment.done for payment in self.payments)

    @property
    def slowest_seconds(self) -> float:
        """The longest that anybody has waited for an answer about money."""
        return max(answer.seconds for payment in self.payments for answer in payment.answers)

    async def grown(self, by: int) -> None:
        """Wait until so many more are done."""
        goal = self.acknowledged + by

        async def enough() -> bool:
            return self.acknowledged >= goal

        await eventually(enough, GROWN_LIMIT_SECONDS)

    async def busy(self, number: int) -> None:
        """Pay, and pay again, until it is enough."""
        for count in range(1_000_000):
            if self.stopped:
                return
            payer = self.people[(number + count) % PEOPLE]
            payee = self.people[(number + count + 1 + count % (PEOPLE - 1)) % PEOPLE]
            payment = Payment(payer, payee, 1 + count % 9, secrets.token_hex(12))
            self.payments.append(payment)
            await self._insist(payment)
            if count % ASKED_AGAIN == 0:
                await self._ask(payment)
            await asyncio.sleep(PAUSE_SECONDS)

    async def changing_numbers(self) -> None:
        """Change one person's phone number again and again: many events of one subject, and the same mails."""
        while not self.stopped:
            phone = {"phone": f"+12345678{len(self.profiles) % 100:02}"}
            response = await self.client.patch("/users/me", json=phone, headers=self.people[0].headers)
            self.profiles.append(response.status_code)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _insist(self, payment: Payment) -> None:
        for _ in range(ATTEMPTS):
            await self._ask(payment)
            if payment.done:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, payment: Payment) -> None:
        body = {
            "transaction_type": "transfer",
            "amount": payment.amount_minor / 100,
            "currency": "USD",
            "from_wallet_id": payment.payer.wallet_id,
            "to_wallet_id": payment.payee.wallet_id,
        }
        headers = payment.payer.headers | {"Idempotency-Key": payment.key}
        began = time.monotonic()
        try:
            response = await self.client.post("/transactions/create", json=body, headers=headers)
        except httpx.TransportError as error:
            payment.answers.append(Answer(None, repr(error).encode(), time.monotonic() - began))
        else:
            payment.answers.append(Answer(response.status_code, response.content, time.monotonic() - began))


@asynccontextmanager
async def crowd_at(gateway: str) -> AsyncIterator[Crowd]:
    """New people who pay each other for the length of the block; what was begun is ended after it."""
    async with httpx.AsyncClient(base_url=gateway, timeout=30.0) as client:
        began = utc_text(datetime.now(UTC))
        people = await asyncio.gather(*(_newcomer(client) for _ in range(PEOPLE)))
        crowd = Crowd(client, people, began)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.changing_numbers())
            for number in range(CLIENTS):
                tasks.create_task(crowd.busy(number))
            try:
                yield crowd
            finally:
                crowd.stopped = True


async def _newcomer(client: httpx.AsyncClient) -> Person:
    async def call(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
        response = await client.post(path, json=body, headers=headers)
        assert response.is_success, response.text
        answer: dict[str, Any] = response.json()
        return answer

    credentials = {"email": f"{secrets.token_hex(8)}@example.com", "password": PASSWORD}
    names = {"first_name": "Zoë", "last_name": "Doe", "phone": "+1234567890"}
    user = await call("/users/register", credentials | names)
    headers = {"Authorization": f"Bearer {(await call('/users/login', credentials))['access_token']}"}
    wallet = await call("/wallets/create", {"user_id": user["id"], "currency": "USD"}, headers)
    deposit = {"amount": FUNDS, "currency": "USD", "to_wallet_id": wallet["id"], "payment_method": "credit_card"}
    await call("/transactions/create", deposit | {"transaction_type": "deposit"}, headers)
    return Person(str(user["id"]), str(wallet["id"]), headers)
