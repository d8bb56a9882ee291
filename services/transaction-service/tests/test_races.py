"""Everything at once: retries, sweepers and requests of two processes have one effect, one event and one answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, CallLine, Fault, Neighbour, call_line

NEVER = "pm_usBankAccount_processing"


@dataclass(frozen=True)
class Lines:
    wallets: CallLine
    payments: CallLine


@pytest.fixture(scope="module")
async def lines(wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Lines]:
    async with call_line(wallet_service.url) as wallets, call_line(payment_gateway.url) as payments:
        yield Lines(wallets, payments)


@pytest.fixture(scope="module")
async def banks(sandbox: Sandbox, wallet_service: Neighbour, lines: Lines) -> AsyncIterator[tuple[Bank, Bank]]:
    """Two processes' worth of transaction-service."""
    settings = sandbox.settings(
        TransactionSettings, wallet_service_url=lines.wallets.url, payment_gateway_url=lines.payments.url
    )
    async with in_process(create_app(settings)) as here, in_process(create_app(settings)) as there:
        banks = Bank(here, wallet_service.url, sandbox), Bank(there, wallet_service.url, sandbox)
        await banks[0].watch()
        yield banks
        await banks[0].assert_consistent()


@pytest.fixture(scope="module")
def bank(banks: tuple[Bank, Bank]) -> Bank:
    return banks[0]


Ask = Callable[[Bank], Awaitable[httpx.Response]]


@dataclass
class Scene:
    """Who asks for what; `wallets` with what they hold after it, `id` where the transaction is there already."""

    person: Person
    wallets: dict[str, int]
    ask: Ask
    id: str = ""


async def deposit(bank: Bank) -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice)
    return Scene(alice, {wallet: 2_500}, lambda to: to.deposit(alice, wallet, "25.00", key="k"))


async def withdrawal(bank: Bank, method: str = "bank_account") -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    return Scene(
        alice, {wallet: 7_500}, lambda to: to.withdraw(alice, wallet, "25.00", payment_method=method, key="k")
    )


async def transfer(bank: Bank) -> Scene:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    return Scene(
        alice, {source: 7_500, target: 2_500}, lambda to: to.transfer(alice, source, target, "25.00", key="k")
    )


async def payment(bank: Bank) -> Scene:
    alice, shop = Person(), Person("merchant")
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(shop)
    return Scene(
        alice, {source: 7_500, target: 2_500}, lambda to: to.payment(alice, source, target, "25.00", key="k")
    )


async def refund_of_a_payment(bank: Bank) -> Scene:
    alice, shop = Person(), Person("merchant")
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(shop)
    paid = (await bank.payment(alice, source, target, "25.00")).json()["id"]
    return Scene(shop, {source: 8_500, target: 1_500}, lambda to: to.refund(shop, paid, "k", amount="10.00"))


async def refund_of_a_deposit(bank: Bank) -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice)
    paid_in = (await bank.deposit(alice, wallet, "100.00")).json()["id"]
    return Scene(alice, {wallet: 7_500}, lambda to: to.refund(alice, paid_in, "k", amount="25.00"))


async def cancel(bank: Bank) -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    waiting = (await bank.withdraw(alice, wallet, "25.00", payment_method=NEVER)).json()
    await bank.leave_alone(waiting["id"])
    return Scene(alice, {wallet: 10_000}, lambda to: to.cancel(alice, waiting["id"]), waiting["id"])


async def id_of(bank: Bank, person: Person) -> str:
    """The transaction that stands under the person's key."""
    [(id_,)] = await bank.sql(
        "select transaction_id::text from transactions.idempotency_keys where user_id = $1", person.id
    )
    return str(id_)


# ------------------------------------------------------------------------------------- at one place at one moment


@dataclass
class Meeting:
    """Holds each who comes until the others are there; whoever comes first calls for them."""

    size: int
    call_for_others: Callable[[], Awaitable[object]]
    _arrived: int = 0
    _all_there: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self) -> None:
        self._arrived += 1
        if self._arrived == self.size:
            self._all_there.set()
        else:
            await self.call_for_others()
        async with asyncio.timeout(10.0):
            await self._all_there.wait()


@dataclass(frozen=True)
class Where:
    """The call at which they meet, and what the request is answered."""

    prepare: Callable[[Bank], Awaitable[Scene]]
    call: str
    status: int = 201


SWEEPERS = {
    "deposit": Where(deposit, "move"),
    "withdrawal": Where(withdrawal, "capture"),
    "refund": Where(refund_of_a_deposit, "capture"),
    "cancel": Where(cancel, "release", 200),
}
RETRIES = {
    "deposit, charging": Where(deposit, "charge"),
    "deposit, posting": Where(deposit, "move"),
    "withdrawal, holding": Where(withdrawal, "hold"),
    "withdrawal, paying out": Where(withdrawal, "payout"),
    "withdrawal, capturing": Where(withdrawal, "capture"),
    "transfer": Where(transfer, "move"),
    "payment": Where(payment, "pay"),
    "refund of a payment": Where(refund_of_a_payment, "move"),
    "refund of a deposit, refunding": Where(refund_of_a_deposit, "refund"),
    "refund of a deposit, capturing": Where(refund_of_a_deposit, "capture"),
    "cancel, asking the provider": Where(cancel, "payout", 200),
    "cancel, releasing": Where(cancel, "release", 200),
}


async def scenes_of(bank: Bank, table: dict[str, Where]) -> dict[str, Scene]:
    scenes = await asyncio.gather(*(where.prepare(bank) for where in table.values()))
    return dict(zip(table, scenes, strict=True))


async def meet(
    bank: Bank, lines: Lines, where: Where, scene: Scene, call_for_others: Callable[[], Awaitable[object]]
) -> None:
    """Three are at the same call of the transaction at the same moment, and each thinks that it is its own."""

    async def wake() -> None:
        await bank.wake(scene.id or await id_of(bank, scene.person))
        await call_for_others()

    meeting = Meeting(3, wake)
    faults = [Fault(where.call, scene.person, answered=True, way=None, meanwhile=meeting) for _ in range(3)]
    for fault in faults:
        (lines.payments if where.call in {"charge", "payout", "refund"} else lines.wallets).break_at(fault)

    answer = await scene.ask(bank)

    assert answer.status_code == where.status, answer.text
    assert all(fault.happened for fault in faults)
    scene.id = answer.json()["id"]


async def assert_done_once(bank: Bank, table: dict[str, Where], scenes: dict[str, Scene]) -> None:
    await bank.all_ended(*(scene.id for scene in scenes.values()))
    balances = dict(await bank.sql("select id::text, balance_minor from wallets.accounts"))
    effects = await bank.effects(*(scene.id for scene in scenes.values()))
    for name, scene in scenes.items():
        effect, cancelled = effects[scene.id], table[name].status == 200
        assert effect.status == ("failed" if cancelled else "completed"), name
        assert effect.events == (("pending", "failed") if cancelled else ("completed",)), name
        assert {id_: balances[id_] for id_ in scene.wallets} == scene.wallets, name
        assert len(effect.payments) <= 1, name
        again = await scene.ask(bank)
        assert (again.status_code, again.json()["id"]) == (table[name].status, scene.id), name


async def test_the_request_and_two_sweepers_at_the_same_step_have_one_effect(bank: Bank, lines: Lines) -> None:
    scenes = await scenes_of(bank, SWEEPERS)

    for name, scene in scenes.items():
        await meet(bank, lines, SWEEPERS[name], scene, call_for_others=nobody)

    await assert_done_once(bank, SWEEPERS, scenes)


async def nobody() -> None:
    """The sweepers come by themselves."""


async def test_the_request_and_its_retries_at_the_same_step_have_one_effect(
    banks: tuple[Bank, Bank], lines: Lines
) -> None:
    """The second process takes the first one for dead, and so does whoever comes then."""
    scenes = await scenes_of(banks[0], RETRIES)
    retries = []

    for name, scene in scenes.items():

        async def retry(scene: Scene = scene) -> None:
            retries.append(asyncio.ensure_future(scene.ask(banks[1])))

        await meet(banks[0], lines, RETRIES[name], scene, call_for_others=retry)

    statuses = {(await retry).status_code for retry in retries}
    assert statuses <= {200, 201, 409}
    await assert_done_once(banks[0], RETRIES, scenes)


# -------------------------------------------------------------------------------------------------- fifty retries


@pytest.mark.parametrize(
    "prepare", [deposit, withdrawal, transfer, payment, refund_of_a_payment, refund_of_a_deposit]
)
async def test_fifty_retries_through_two_processes_have_one_effect_and_one_answer(
    banks: tuple[Bank, Bank], prepare: Callable[[Bank], Awaitable[Scene]]
) -> None:
    scene = await prepare(banks[0])

    answers = await asyncio.gather(*(scene.ask(banks[number % 2]) for number in range(50)))
    last = await scene.ask(banks[1])

    done = [answer for answer in answers if answer.status_code == 201]
    busy = [answer for answer in answers if answer.status_code != 201]
    assert {(a.status_code, a.json()["code"], a.headers["Retry-After"]) for a in busy} <= {
        (409, "idempotency_key_in_use", "1")
    }
    assert {answer.content for answer in [*done, last]} == {last.content}
    assert [answer.headers.get("Idempotent-Replayed") for answer in done].count(None) == 1
    assert last.headers["Idempotent-Replayed"] == "true"
    [effect] = (await banks[0].effects(last.json()["id"])).values()
    assert (effect.status, effect.events) == ("completed", ("completed",))
    assert await banks[0].balances(*scene.wallets) == list(scene.wallets.values())


async def test_fifty_wishes_to_cancel_through_two_processes_cancel_once(banks: tuple[Bank, Bank]) -> None:
    scene = await cancel(banks[0])

    answers = await asyncio.gather(*(scene.ask(banks[number % 2]) for number in range(50)))

    assert {answer.status_code for answer in answers} <= {200, 202}
    last = await scene.ask(banks[0])
    assert (last.status_code, last.json()["failure_code"]) == (200, "cancelled")
    [effect] = (await banks[0].effects(scene.id)).values()
    assert (effect.events, effect.hold, effect.payments) == (
        ("pending", "failed"),
        "released",
        (("payout", "declined"),),
    )
    assert await banks[0].balances(*scene.wallets) == [10_000]


# ---------------------------------------------------------------------------------------------------------- refunds


async def test_refunds_through_two_processes_at_once_give_back_no_more_than_there_is(
    banks: tuple[Bank, Bank],
) -> None:
    alice, shop = Person(), Person("merchant")
    source, target = await banks[0].wallet(alice, "100.00"), await banks[0].wallet(shop, "500.00")
    paid = (await banks[0].payment(alice, source, target, "20.00")).json()["id"]

    halves = await asyncio.gather(*(banks[n % 2].refund(shop, paid, amount="10.00") for n in range(12)))
    rest = await banks[1].refund(shop, paid)

    assert sorted(answer.status_code for answer in halves) == [201] * 2 + [409] * 10
    refused = [answer for answer in [*halves, rest] if answer.status_code == 409]
    assert {(answer.json()["code"], answer.json()["currency"]) for answer in refused} == {
        ("refund_exceeds_remaining", "USD")
    }
    assert rest.json()["remaining"] == "0.00"
    assert await banks[0].balances(source, target) == [10_000, 50_000]


async def test_all_that_is_left_is_given_back_once_however_often_it_is_asked_for_at_once(
    banks: tuple[Bank, Bank],
) -> None:
    alice = Person()
    wallet = await banks[0].wallet(alice)
    paid_in = (await banks[0].deposit(alice, wallet, "20.00")).json()["id"]

    answers = await asyncio.gather(*(banks[n % 2].refund(alice, paid_in) for n in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert await banks[0].balances(wallet) == [0]
    assert await banks[0].sql(
        "select kind, amount_minor, status from payments.payments where user_id = $1 order by kind", alice.id
    ) == [("charge", 2_000, "succeeded"), ("refund", 2_000, "succeeded")]


async def test_a_balance_is_spent_once_by_everything_that_can_spend_it(banks: tuple[Bank, Bank]) -> None:
    """Transfers, payments, withdrawals and refunds of a deposit compete for the last hundred."""
    alice, shop = Person(), Person("merchant")
    wallet, other = await banks[0].wallet(alice), await banks[0].wallet(shop)
    paid_in = (await banks[0].deposit(alice, wallet, "100.00")).json()["id"]

    spend: list[Ask] = [
        lambda bank: bank.transfer(alice, wallet, other, "30.00"),
        lambda bank: bank.payment(alice, wallet, other, "30.00"),
        lambda bank: bank.withdraw(alice, wallet, "30.00"),
        lambda bank: bank.refund(alice, paid_in, amount="30.00"),
    ]

    answers = await asyncio.gather(*(way(bank) for way in spend for bank in banks * 2))

    assert sum(answer.status_code == 201 for answer in answers) == 3
    assert {answer.status_code for answer in answers} <= {201, 402, 409}  # 409: a refund of more than was paid in
    assert {answer.json()["code"] for answer in answers if answer.status_code == 402} == {"insufficient_funds"}
    assert await banks[0].balances(wallet) == [1_000]
    [(held,)] = await banks[0].sql("select held_minor from wallets.accounts where id = $1::uuid", wallet)
    assert held == 0


# ------------------------------------------------------------------------------------------------- what a key means


async def test_the_same_key_is_another_one_for_another_operation_and_another_person(bank: Bank) -> None:
    alice, bob = Person(), Person()
    hers, his = await bank.wallet(alice, "100.00"), await bank.wallet(bob, "100.00")

    sent = await bank.transfer(alice, hers, his, "10.00", key="k")
    returned = await bank.transfer(bob, his, hers, "10.00", key="k")
    refunded = await bank.refund(bob, sent.json()["id"], "k")
    again = await bank.refund(bob, sent.json()["id"], "k")
    another = await bank.refund(alice, returned.json()["id"], "k", amount="3.00")

    assert [answer.status_code for answer in (sent, returned, refunded, again, another)] == [201] * 5
    assert len({answer.json()["id"] for answer in (sent, returned, refunded, again, another)}) == 4
    assert again.content == refunded.content
    assert await bank.balances(hers, his) == [10_700, 9_300]


async def test_a_refund_key_stands_for_one_transaction_only(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    first, second = [(await bank.transfer(alice, source, target, "10.00")).json()["id"] for _ in range(2)]

    done = await bank.refund(bob, first, "k")
    other = await bank.refund(bob, second, "k")
    whole = await bank.refund(bob, first, "k", amount="10.00")

    assert done.status_code == 201
    assert [(answer.status_code, answer.json()["code"]) for answer in (other, whole)] == [
        (422, "idempotency_key_reused")
    ] * 2
    assert await bank.balances(source, target) == [9_000, 1_000]


async def test_keys_of_one_and_of_255_characters_are_remembered_whole(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    keys = ["~", "k" * 254 + "a", "k" * 254 + "b", " ", "".join(map(chr, range(0x20, 0x7F)))]

    first = [await bank.transfer(alice, source, target, "1.00", key=key) for key in keys]
    again = [await bank.transfer(alice, source, target, "1.00", key=key) for key in keys]

    assert [answer.status_code for answer in first] == [201] * len(keys)
    assert [answer.content for answer in again] == [answer.content for answer in first]
    assert await bank.balances(source, target) == [10_000 - 100 * len(keys), 100 * len(keys)]


@pytest.mark.parametrize("key", ["", "x" * 256, "\x7f", "\u00e9"], ids=["empty", "256", "DEL", "not ASCII"])
async def test_no_operation_takes_a_key_that_is_none(bank: Bank, key: str) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)
    paid_in = (await bank.deposit(alice, wallet, "10.00")).json()["id"]
    ledger = await bank.ledger()
    headers = [(name.encode(), value.encode("latin-1")) for name, value in alice.headers.items()]
    body: dict[str, Any] = {
        "transaction_type": "withdrawal",
        "amount": "1.00",
        "currency": "USD",
        "from_wallet_id": wallet,
        "payment_method": "bank_account",
    }

    for path, content in (("/transactions/create", body), (f"/transactions/{paid_in}/refund", {})):
        sent = [*headers, (b"Idempotency-Key", key.encode("latin-1"))]
        answer = await bank.client.post(path, json=content, headers=sent)

        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert [error["field"] for error in answer.json()["errors"]] == ["Idempotency-Key"]
    assert await bank.ledger() == ledger


async def test_a_replay_differs_in_nothing_but_the_header_that_says_so(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    asks: list[Callable[[], Awaitable[httpx.Response]]] = [
        lambda: bank.transfer(alice, source, target, "1.00", key="done"),
        lambda: bank.transfer(alice, source, target, "100.00", key="refused"),
        lambda: bank.withdraw(alice, source, "1.00", payment_method=NEVER, key="pending"),
    ]

    for ask, status in zip(asks, (201, 402, 202), strict=True):
        first, again, once_more = await ask(), await ask(), await ask()

        assert (first.status_code, again.status_code, once_more.status_code) == (status,) * 3
        assert first.content == again.content == once_more.content
        own = {"x-request-id"}  # each request has its own
        headers = [{n: v for n, v in answer.headers.items() if n not in own} for answer in (first, again, once_more)]
        assert headers[1] == headers[2] == headers[0] | {"idempotent-replayed": "true"}
    assert await bank.balances(source, target) == [9_900, 100]
    [waiting] = await bank.transactions_of(alice, "withdrawal")
    assert (await bank.cancel(alice, waiting)).status_code == 200
    assert (await asks[2]()).status_code == 202  # the first answer stands
