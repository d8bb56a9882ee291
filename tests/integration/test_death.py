"""transaction-service in a process that ends in the middle of its work: nothing is lost, nothing is done twice."""

import asyncio
import os
import random
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import httpx
import pytest

from infrastructure.embedded import ports
from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from payment_gateway.app import create_app as create_payment_gateway
from payment_gateway.settings import PaymentSettings
from shared.audit import AuditReader
from shared.settings import ROOT
from shared.testing.sandbox import Sandbox
from shared.testing.servers import HOST, serving
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.testing import Bank
from wallet_service.app import create_app as create_wallet_service
from wallet_service.settings import WalletSettings

CLIENTS: Final = 24
KILLS: Final = 3
ENDS_WITHIN_SECONDS: Final = 30.0  # design: what a dead process was at work on
MARGIN_SECONDS: Final = 5.0  # for a machine that has other things to do
START_LIMIT_SECONDS: Final = 60.0
NO_ANSWER = (httpx.TransportError,)


class Service:
    """transaction-service on a port of its own, and the wallet-service beside it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.wallet_url = environment["WALLET_SERVICE_URL"]
        self._port = ports.choose([])
        self._environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
        self._process: Process | None = None
        self.url = f"http://{HOST}:{self._port}"

    async def start(self) -> None:
        """Serve, and answer when this returns."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "shared.serve", "--port", str(self._port)),
            cwd=ROOT / "services" / "transaction-service",
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def ready() -> bool:
            async with httpx.AsyncClient(base_url=self.url) as client:
                try:
                    return (await client.get("/health/ready")).status_code == 200
                except NO_ANSWER:
                    return False

        await eventually(ready, START_LIMIT_SECONDS)

    async def end(self, how: signal.Signals) -> None:
        """End the process, and return when it is gone."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        async with asyncio.timeout(START_LIMIT_SECONDS):
            await self._process.wait()


@pytest.fixture(scope="module")
async def service(sandbox: Sandbox) -> AsyncIterator[Service]:
    async with (
        serving(create_wallet_service(sandbox.settings(WalletSettings))) as wallets,
        serving(create_payment_gateway(sandbox.settings(PaymentSettings))) as payments,
    ):
        urls = {"WALLET_SERVICE_URL": wallets, "PAYMENT_GATEWAY_URL": payments}
        service = Service(sandbox.environment | urls)
        await service.start()
        try:
            yield service
        finally:
            await service.end(signal.SIGKILL)


@pytest.fixture(scope="module")
async def bank(service: Service, sandbox: Sandbox) -> AsyncIterator[Bank]:
    limits = httpx.Limits(max_connections=2 * CLIENTS)
    async with httpx.AsyncClient(base_url=service.url, timeout=15.0, limits=limits) as client:
        yield Bank(client, service.wallet_url, sandbox)


@dataclass
class Crowd:
    """People who pay each other, each time under a new key, and all that they have heard."""

    bank: Bank
    people: list[Person]
    wallets: list[str]
    heard: dict[tuple[int, str], list[httpx.Response]] = field(default_factory=dict)
    stopped: bool = False

    async def ask(self, payer: int, key: str) -> httpx.Response | None:
        """Whom the money is for and how much it is follows from the key."""
        number = int(key)
        payee = (payer + 1 + number % (len(self.people) - 1)) % len(self.people)
        answers = self.heard.setdefault((payer, key), [])
        try:
            answer = await self.bank.transfer(
                self.people[payer], self.wallets[payer], self.wallets[payee], f"0.{1 + number % 9:02d}", key=key
            )
        except NO_ANSWER:
            return None
        answers.append(answer)
        return answer

    async def insist(self, payer: int, key: str) -> None:
        """Ask again under the key until the answer is a final one."""

        async def final() -> bool:
            answer = await self.ask(payer, key)
            return answer is not None and answer.status_code in {201, 202, 402}

        await eventually(final, ENDS_WITHIN_SECONDS + MARGIN_SECONDS)

    @property
    def acknowledged(self) -> int:
        return sum(any(answer.status_code == 201 for answer in answers) for answers in self.heard.values())

    async def grown(self, by: int) -> None:
        """Wait until so many more were acknowledged."""
        goal = self.acknowledged + by

        async def enough() -> bool:
            return self.acknowledged >= goal

        await eventually(enough, START_LIMIT_SECONDS)


@asynccontextmanager
async def crowd_at(bank: Bank) -> AsyncIterator[Crowd]:
    people = [Person() for _ in range(6)]
    crowd = Crowd(bank, people, [await bank.wallet(person, "100.00") for person in people])
    tasks = [asyncio.create_task(_busy(crowd, index)) for index in range(CLIENTS)]
    try:
        yield crowd
    finally:
        crowd.stopped = True
        await asyncio.gather(*tasks)


async def _busy(crowd: Crowd, index: int) -> None:
    """One of several clients of a person, each with keys of its own."""
    number = index * 1_000_000
    while not crowd.stopped:
        number += 1
        if await crowd.ask(index % len(crowd.people), str(number)) is None:
            await asyncio.sleep(0.05)  # as a client waits before it tries another time


async def assert_nothing_lost(bank: Bank, crowd: Crowd, sandbox: Sandbox) -> None:
    """Each key that was ever sent stands for one transfer, which is as its callers heard."""
    rows = await bank.sql(
        "select k.user_id, k.key, k.transaction_id::text, t.status, t.amount_minor, t.to_wallet_id::text "
        "from transactions.idempotency_keys k join transactions.transactions t on t.id = k.transaction_id "
        "where k.user_id = any($1)",
        [person.id for person in crowd.people],
    )
    found = {(user_id, key): rest for user_id, key, *rest in rows}
    moved = dict.fromkeys(crowd.wallets, 10_000)
    for (payer, key), answers in crowd.heard.items():
        id_, status, minor, target = found.pop((crowd.people[payer].id, key))
        assert status == "completed", (key, status)
        told = {answer.json()["id"] for answer in answers if answer.status_code in {201, 202}}
        assert told == {id_}, key
        assert len({answer.content for answer in answers if answer.status_code == 201}) == 1, key
        moved[crowd.wallets[payer]] -= minor
        moved[target] += minor
    assert found == {}
    transfers = await bank.sql(
        "select count(*) from transactions.transactions where type = 'transfer' and user_id = any($1)",
        [person.id for person in crowd.people],
    )
    assert transfers == [(len(crowd.heard),)]
    assert await bank.balances(*crowd.wallets) == [moved[wallet] for wallet in crowd.wallets]
    await bank.assert_consistent()
    settings = sandbox.settings(ReconcilerSettings)
    audit = AuditReader(settings)
    try:
        done = await Reconciler(settings, audit).full()
    finally:
        audit.close()
    assert [str(finding) for result in done.results for finding in result.findings] == []
    assert [result.not_checked for result in done.results if result.not_checked] == []


async def pending(bank: Bank) -> int:
    [(count,)] = await bank.sql("select count(*) from transactions.transactions where status = 'pending'")
    return int(count)


async def test_killed_in_the_middle_of_transfers_it_loses_none_and_makes_none_twice(
    bank: Bank, service: Service, sandbox: Sandbox
) -> None:
    draw = random.Random(11)  # noqa: S311 - when it dies
    async with crowd_at(bank) as crowd:
        for _ in range(KILLS):
            await crowd.grown(by=draw.randrange(50, 150))
            await service.end(signal.SIGKILL)
            killed_at = time.monotonic()
            await service.start()
        await crowd.grown(by=100)
    left_open = await pending(bank)

    async def all_ended() -> bool:
        return await pending(bank) == 0

    await eventually(all_ended, ENDS_WITHIN_SECONDS + MARGIN_SECONDS - (time.monotonic() - killed_at))
    unsure = [asked for asked, answers in crowd.heard.items() if not any(a.status_code == 201 for a in answers)]
    await asyncio.gather(*(crowd.insist(*asked) for asked in unsure))

    assert unsure, "nothing was under way when it was killed"
    assert left_open <= len(unsure)
    await assert_nothing_lost(bank, crowd, sandbox)


async def test_told_to_end_under_load_it_finishes_what_it_has_begun(
    bank: Bank, service: Service, sandbox: Sandbox
) -> None:
    async with crowd_at(bank) as crowd:
        await crowd.grown(by=200)
        await service.end(signal.SIGTERM)
        left_open = await pending(bank)
        without_answer = await bank.sql(
            "select 1 from transactions.idempotency_keys where response_status is null and user_id = any($1)",
            [person.id for person in crowd.people],
        )
        crowd.stopped = True
    await service.start()
    heard = {asked for asked, answers in crowd.heard.items() if answers}
    errors = {a.status_code for answers in crowd.heard.values() for a in answers} - {201, 503}
    await asyncio.gather(*(crowd.insist(*asked) for asked in crowd.heard))

    assert (left_open, without_answer, errors) == (0, [], set())
    assert len(heard) >= 200
    await assert_nothing_lost(bank, crowd, sandbox)
