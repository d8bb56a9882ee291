"""People who use the platform, for Locust: open wallets, deposit, pay each other, and look at what they have.

    pip install locust
    locust -f tests/load/locustfile.py --host http://localhost:8000

Needs Locust alone. Everybody comes from one address, which the rate limit meets soon: what is said at the start tells
how to lift it. Settings by the environment: LOCUST_PEOPLE (10), LOCUST_PASSWORD.
"""

import itertools
import logging
import os
import random
import threading
import time
from typing import Any

from locust import HttpUser, between, events, task
from locust.exception import StopUser

PEOPLE = int(os.environ.get("LOCUST_PEOPLE", "10"))
PASSWORD = os.environ.get("LOCUST_PASSWORD", "Locusts-eat-grass-7")
CURRENCY = "USD"
DEPOSIT, TRANSFER = "1000.00", "0.25"
DEPOSITING, TRANSFERRING = "/transactions/create (deposit)", "/transactions/create (transfer)"
TOKEN_MARGIN_SECONDS = 60
TIMEOUT_SECONDS = 30
TOO_MANY = 429
LIMITED = "429 rate limited"
MAX_PAUSE_SECONDS = 60
ATTEMPTS = 20

NOTICE = f"""
All of these users come from one address, and the gateway allows an address 100 requests a minute: most answers will
be 429, which have a line of their own ("{LIMITED}"). To measure more than the limit, lift it:

    make down; RATE_LIMIT_EXEMPT_CIDRS=127.0.0.0/8 make up
    RATE_LIMIT_EXEMPT_CIDRS=0.0.0.0/0 docker-compose up -d      # where the gateway sees Docker's addresses

{PEOPLE} people log in once (LOCUST_PEOPLE) and are shared by all users.
"""

_log = logging.getLogger(__name__)


class Person:
    """Somebody of this load test, with a wallet: made when it is not there, logged in again when the token ends."""

    def __init__(self, number: int) -> None:
        self.email = f"locust-{number}@example.com"
        self.wallet_id = ""
        self._first_name, self._phone = f"Locust {number}", f"+1555{number:07d}"
        self._token, self._fresh_until = "", 0.0
        self._turn = threading.Lock()

    @property
    def headers(self) -> dict[str, str]:
        """Say who calls."""
        return {"Authorization": f"Bearer {self._token}"}

    @property
    def is_ready(self) -> bool:
        """Logged in, for a while to come, and with a wallet."""
        return bool(self.wallet_id) and time.monotonic() < self._fresh_until

    def be_ready(self, client: Any) -> None:
        """Get ready where that is due: the first of the users does it, and the others wait."""
        if not self.is_ready:
            with self._turn:
                if not self.is_ready:
                    self._get_ready(client)

    def _get_ready(self, client: Any) -> None:
        """Log in, registered by now or by an earlier run (409), and have a wallet with money in it."""
        credentials = {"email": self.email, "password": PASSWORD}
        if not self._token:  # to try logging in first would take a second of the few logins that an address has
            names = {"first_name": self._first_name, "last_name": "Test", "phone": self._phone}
            _patiently(client, "POST", "/users/register", credentials | names, {}, {201, 409})
        login = _patiently(client, "POST", "/users/login", credentials, {}, {200}).json()
        self._token = login["access_token"]
        self._fresh_until = time.monotonic() + login["expires_in"] - TOKEN_MARGIN_SECONDS
        if not self.wallet_id:
            body = {"user_id": login["user"]["id"], "currency": CURRENCY}
            answer = _patiently(client, "POST", "/wallets/create", body, self.headers, {201, 409})
            wallet = answer.json()
            if answer.status_code == 409:
                found = _patiently(client, "GET", "/wallets", None, self.headers, {200}).json()
                wallet = next(each for each in found["data"] if each["currency"] == CURRENCY)
            self.wallet_id = wallet["id"]
            _patiently(client, "POST", "/transactions/create", deposit_of(self), self.headers, {201, 202}, DEPOSITING)


PERSONS = [Person(number) for number in range(max(2, PEOPLE))]
"""Shared by all users of this process."""

_next_person = itertools.cycle(PERSONS)


def deposit_of(person: Person) -> dict[str, str]:
    """Money from outside."""
    return {
        "transaction_type": "deposit",
        "amount": DEPOSIT,
        "currency": CURRENCY,
        "to_wallet_id": person.wallet_id,
        "payment_method": "credit_card",
        "description": "Load test",
    }


def _patiently(
    client: Any,
    method: str,
    path: str,
    body: dict[str, str] | None,
    headers: dict[str, str],
    good: set[int],
    name: str = "",
) -> Any:
    """An answer that is needed to go on: after a 429 the call is made again when the gateway says so."""
    for _ in range(ATTEMPTS):
        answer = call(client, method, path, name or path, body, headers, good)
        if answer.status_code != TOO_MANY:
            break
        time.sleep(min(float(answer.headers.get("Retry-After", "1")), MAX_PAUSE_SECONDS))
    if answer.status_code not in good:
        _log.error("%s %s answered %s: this user stops", method, path, answer.status_code)
        raise StopUser
    return answer


def call(
    client: Any,
    method: str,
    path: str,
    name: str,
    body: dict[str, str] | None,
    headers: dict[str, str],
    good: set[int],
) -> Any:
    """One call, counted under `name`; a 429 is counted on a line of its own and is no failure."""
    with client.request(
        method, path, name=name, json=body, headers=headers, timeout=TIMEOUT_SECONDS, catch_response=True
    ) as answer:
        if answer.status_code == TOO_MANY:
            answer.request_meta["name"] = LIMITED
            answer.request_meta["request_type"] = ""
            answer.success()
        elif answer.status_code in good:
            answer.success()
        else:
            answer.failure(f"{answer.status_code}: {answer.text[:200]}")
    return answer


@events.test_start.add_listener
def say_how_to_lift_the_limit(**_: Any) -> None:
    """Before the first request."""
    print(NOTICE, flush=True)


class Payer(HttpUser):
    """Somebody with an application on their telephone: looks often, pays now and then."""

    wait_time = between(0.05, 0.2)

    def on_start(self) -> None:
        """Be somebody."""
        self._person = next(_next_person)

    @property
    def person(self) -> Person:
        """Whoever this user is, ready to go on; this user stops when that cannot be."""
        self._person.be_ready(self.client)
        return self._person

    @task(10)
    def transfer(self) -> None:
        """Pay somebody who is known to have a wallet."""
        payer = self.person
        others = [each for each in PERSONS if each.wallet_id and each is not payer]
        if not others:
            return
        body = {
            "transaction_type": "transfer",
            "amount": TRANSFER,
            "currency": CURRENCY,
            "from_wallet_id": payer.wallet_id,
            "to_wallet_id": random.choice(others).wallet_id,  # noqa: S311 - a load, not a secret
            "description": "Payment for services",
        }
        # 402: the wallet is empty, which is an answer.
        answer = self._call("POST", "/transactions/create", TRANSFERRING, body, {201, 402})
        if answer.status_code == 402:
            self.deposit()

    @task(1)
    def deposit(self) -> None:
        """Put money into the wallet."""
        self._call("POST", "/transactions/create", DEPOSITING, deposit_of(self.person), {201, 202})

    @task(20)
    def balance(self) -> None:
        """Look what is there."""
        self._call("GET", f"/wallets/{self.person.wallet_id}/balance", "/wallets/{id}/balance")

    @task(4)
    def transactions(self) -> None:
        """Look what has happened."""
        self._call("GET", "/transactions?limit=20", "/transactions")

    @task(2)
    def wallets(self) -> None:
        """Look at the wallets."""
        self._call("GET", "/wallets", "/wallets")

    @task(1)
    def profile(self) -> None:
        """Look at the profile."""
        self._call("GET", "/users/me", "/users/me")

    def _call(
        self, method: str, path: str, name: str, body: dict[str, str] | None = None, good: set[int] | None = None
    ) -> Any:
        return call(self.client, method, path, name, body, self.person.headers, good or {200})
