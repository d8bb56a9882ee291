"""A provider that does not answer: what it may have done stays unknown, and it keeps nobody else waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry

from payment_gateway.domain import Answer, Kind, Order, Outcome, Status
from payment_gateway.metrics import PaymentMetrics
from payment_gateway.service import MAX_CONCURRENT_ORDERS, Payments
from payment_gateway.settings import PaymentSettings
from payment_gateway.testing import Gateway
from shared.database import Database
from shared.http.context import enter_context
from shared.ids import new_id
from shared.money import Money
from shared.outbox import Relay
from shared.testing.waiting import eventually


class Providers:
    """The world outside: Stripe is silent for as long as a test wants, PayPal answers at once."""

    def __init__(self) -> None:
        self.speaks = asyncio.Event()
        self.keys: list[str] = []

    async def execute(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        self.keys.append(idempotency_key)
        if order.method != "paypal":
            await self.speaks.wait()
        return Answer(Status.SUCCEEDED, reference=f"ref {idempotency_key}")

    async def cancel(self, order: Order, idempotency_key: str, age_seconds: float) -> Answer:
        return await self.execute(order, idempotency_key, age_seconds)


class Counter:
    """Payments with providers of the test's own, and nobody who follows up by himself."""

    def __init__(self, payments: Payments, providers: Providers, registry: CollectorRegistry) -> None:
        self.payments = payments
        self.providers = providers
        self._registry = registry

    async def ask(self, *orders: Order, seconds: float = 1.0) -> list[Outcome]:
        enter_context(seconds=seconds)
        return await self.payments.execute(orders)

    def counted(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(f"{name}_total", labels) or 0.0


@pytest.fixture
async def counter(gateway: Gateway, settings: PaymentSettings) -> AsyncIterator[Counter]:
    providers, registry, database = Providers(), CollectorRegistry(), Database(settings)
    relay = Relay(database, settings, registry)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        stack.push_async_callback(relay.close)
        await database.open()
        yield Counter(Payments(database, providers, relay, PaymentMetrics(registry)), providers, registry)


def order(method: str = "pm_usBankAccount_processing", kind: Kind = Kind.CHARGE, **more: Any) -> Order:
    """By default one that the simulated providers of the service beside this would leave pending, too."""
    return Order(new_id(), kind, new_id(), method, Money(10_000, "USD"), **more)


async def payment(gateway: Gateway, order: Order) -> tuple[UUID, str, bool]:
    """Id, status, and whether the provider is going to be asked again."""
    [(id_, status, again)] = await gateway.sql(
        "select id, status, next_check_at is not null from payments.payments where transaction_id = $1",
        order.transaction_id,
    )
    return id_, str(status), bool(again)


async def age(gateway: Gateway, order: Order, interval: str) -> None:
    """The order came so long ago, and nobody but the test asks about it in the next hour."""
    await gateway.sql(
        "update payments.payments set created_at = now() - $2::text::interval, "
        "next_check_at = now() + interval '1 hour' where transaction_id = $1",
        order.transaction_id,
        interval,
    )


async def test_no_answer_in_time_is_unknown_and_is_asked_for_again_under_the_same_key(
    gateway: Gateway, counter: Counter
) -> None:
    wanted = order()

    async with asyncio.timeout(2.0):
        [first] = await counter.ask(wanted)
    id_, status, again = await payment(gateway, wanted)
    counter.providers.speaks.set()
    [second] = await counter.ask(wanted)

    assert (first.status, status, again) == (Status.PENDING, "pending", True)
    assert (second.status, second.payment_id) == (Status.SUCCEEDED, id_)
    assert counter.providers.keys == [str(id_)] * 2
    assert counter.counted("payments_provider_timeouts", provider="stripe") == 1


async def test_a_silent_provider_keeps_nobody_from_another_one(gateway: Gateway, counter: Counter) -> None:
    stuck = [asyncio.ensure_future(counter.ask(order(), seconds=5.0)) for _ in range(2 * MAX_CONCURRENT_ORDERS)]

    async def all_hang() -> bool:
        return len(counter.providers.keys) == MAX_CONCURRENT_ORDERS

    await eventually(all_hang)
    async with asyncio.timeout(2.0):
        [other] = await counter.ask(order("paypal"))

    assert other.status is Status.SUCCEEDED
    assert not any(task.done() for task in stuck)
    counter.providers.speaks.set()
    assert {outcome.status for [outcome] in await asyncio.gather(*stuck)} == {Status.SUCCEEDED}


async def test_what_waits_for_a_place_in_vain_is_unknown(gateway: Gateway, counter: Counter) -> None:
    stuck = [asyncio.ensure_future(counter.ask(order(), seconds=5.0)) for _ in range(MAX_CONCURRENT_ORDERS)]

    async def all_hang() -> bool:
        return len(counter.providers.keys) == MAX_CONCURRENT_ORDERS

    await eventually(all_hang)
    late, paypal = await counter.ask(order(), order("paypal"))

    assert (late.status, late.code) == (Status.PENDING, "unknown")
    assert paypal.status is Status.SUCCEEDED
    assert len(counter.providers.keys) == MAX_CONCURRENT_ORDERS + 1
    counter.providers.speaks.set()
    await asyncio.gather(*stuck)


@pytest.mark.parametrize("cancel", [False, True], ids=["again", "to-be-cancelled"])
async def test_without_an_answer_in_a_day_it_is_never_sent_again_and_a_person_is_called_once(
    gateway: Gateway, counter: Counter, *, cancel: bool
) -> None:
    wanted = order()
    await counter.ask(wanted)
    await age(gateway, wanted, "24 hours")
    counter.providers.speaks.set()

    outcomes = [await counter.ask(order_) for order_ in [_cancelled(wanted, cancel), wanted, wanted]]

    assert [outcome.status for [outcome] in outcomes] == [Status.PENDING] * 3
    assert len(counter.providers.keys) == 1
    assert (await payment(gateway, wanted))[1:] == ("pending", False)
    assert counter.counted("payments_need_a_person", provider="stripe", kind="charge") == 1


async def test_until_shortly_before_its_key_ends_it_is_sent_again(gateway: Gateway, counter: Counter) -> None:
    wanted = order()
    await counter.ask(wanted)
    await age(gateway, wanted, "23 hours 59 minutes")
    counter.providers.speaks.set()

    [outcome] = await counter.ask(wanted)

    assert outcome.status is Status.SUCCEEDED
    assert counter.counted("payments_need_a_person", provider="stripe", kind="charge") == 0


async def test_the_worker_gives_up_too(gateway: Gateway) -> None:
    """With the simulated providers: this one is pending for ever."""
    wanted = {
        "transaction_id": str(new_id()),
        "kind": "charge",
        "user_id": str(new_id()),
        "method": "pm_usBankAccount_processing",
        "amount_minor": 10_000,
        "currency": "USD",
    }
    await gateway.execute(wanted)
    await gateway.sql(
        "update payments.payments set created_at = now() - interval '1 day', next_check_at = now() "
        "where transaction_id = $1::uuid",
        wanted["transaction_id"],
    )

    async def given_up() -> list[tuple[Any, ...]]:
        return await gateway.sql(
            "select status from payments.payments where transaction_id = $1::uuid and next_check_at is null",
            wanted["transaction_id"],
        )

    assert await eventually(given_up) == [("pending",)]
    metrics = (await gateway.client.get("/metrics")).text
    assert 'payments_need_a_person_total{kind="charge",provider="stripe"} 1.0' in metrics


def _cancelled(wanted: Order, cancel: bool) -> Order:
    return Order(wanted.transaction_id, wanted.kind, wanted.user_id, wanted.method, wanted.amount, cancel=cancel)
