"""Every type of transaction, broken off at each of its steps: it ends, once, and what its caller heard stays true."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import httpx
import pytest

from shared.http.bundle import MEDIA_TYPE, read_replies, write_parcels
from shared.http.context import DEFAULT_DEADLINE_SECONDS
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import (
    Bank,
    CallLine,
    DatabaseLine,
    Effect,
    Fault,
    Neighbour,
    Way,
    call_line,
    database_line,
    parcel,
)
from transaction_service.worker import POLL_SECONDS

NEVER = "pm_usBankAccount_processing"  # pending until it is cancelled
ENDS_WITHIN_SECONDS = 30.0  # design: what a dead process was at work on


@pytest.fixture(scope="module")
def provider_times() -> dict[str, float]:
    return {"sandbox_settle_seconds": 0.2, "sandbox_reversal_seconds": 0.2}


@dataclass(frozen=True)
class Lines:
    """Everything between transaction-service and the world."""

    wallets: CallLine
    payments: CallLine
    database: DatabaseLine

    async def die(self) -> None:
        """Leave the rows as a process leaves them that is killed: whatever it does from now on is not written."""
        self.database.go_down()

    def break_at(self, fault: Fault) -> Fault:
        to_payments = fault.call in {"charge", "payout", "refund"}
        return (self.payments if to_payments else self.wallets).break_at(fault)


@pytest.fixture(scope="module")
async def lines(sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Lines]:
    async with (
        call_line(wallet_service.url) as wallets,
        call_line(payment_gateway.url) as payments,
        database_line(sandbox) as database,
    ):
        yield Lines(wallets, payments, database)


@pytest.fixture(scope="module")
async def bank(sandbox: Sandbox, wallet_service: Neighbour, lines: Lines) -> AsyncIterator[Bank]:
    settings = sandbox.settings(
        TransactionSettings,
        wallet_service_url=lines.wallets.url,
        payment_gateway_url=lines.payments.url,
        postgres_port=lines.database.port,
        payment_fee_bps=250,
    )
    async with in_process(create_app(settings)) as client:
        bank = Bank(client, wallet_service.url, sandbox)
        await bank.watch()
        yield bank
        await bank.assert_consistent()


# ------------------------------------------------------------------------------------------------ the stories


@dataclass
class Scene:
    """People and wallets before the curtain. `ask` sends the request under the key, `id` is the transaction's."""

    person: Person
    wallets: dict[str, str]
    ask: Callable[[str], Awaitable[httpx.Response]] | None = None
    id: str = ""
    original_id: str = ""
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Story:
    """A type of transaction: the calls that it makes in their order, and what it leaves behind.

    `status` is the final answer to its caller, `balances` are those of the scene's wallets.
    """

    prepare: Callable[[Bank], Awaitable[Scene]]
    calls: tuple[str, ...]
    effect: Effect
    balances: tuple[int, ...]
    status: int = 201


OUTSIDE = "external:stripe:USD"
CHARGED, PAID_OUT, GIVEN_BACK = ("charge", "succeeded"), ("payout", "succeeded"), ("refund", "succeeded")


async def a_deposit(bank: Bank, method: str = "credit_card") -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice)
    return Scene(
        alice,
        {"wallet": wallet},
        lambda key: bank.deposit(alice, wallet, "25.00", payment_method=method, key=key),
    )


async def a_deposit_to_a_closed_wallet(bank: Bank) -> Scene:
    scene = await a_deposit(bank)
    await bank.sql("update wallets.accounts set status = 'closed' where id = $1::uuid", scene.wallets["wallet"])
    return scene


async def a_deposit_to_a_wallet_that_closes_when_it_is_charged(bank: Bank) -> Scene:
    scene = await a_deposit(bank)

    async def close() -> None:
        await bank.sql("update wallets.accounts set status = 'closed' where id = $1::uuid", scene.wallets["wallet"])

    scene.faults.append(Fault("charge", scene.person, answered=True, way=None, meanwhile=close))
    return scene


async def a_withdrawal(bank: Bank, method: str = "bank_account") -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice, "100.00")
    return Scene(
        alice,
        {"wallet": wallet},
        lambda key: bank.withdraw(alice, wallet, "25.00", payment_method=method, key=key),
    )


async def a_withdrawal_that_is_declined(bank: Bank) -> Scene:
    return await a_withdrawal(bank, "pm_card_chargeDeclined")


async def a_transfer(bank: Bank, amount: str = "25.00") -> Scene:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)
    return Scene(
        alice, {"source": source, "target": target}, lambda key: bank.transfer(alice, source, target, amount, key=key)
    )


async def a_transfer_of_too_much(bank: Bank) -> Scene:
    return await a_transfer(bank, "100.01")


async def a_payment(bank: Bank) -> Scene:
    alice, shop = Person(), Person("merchant")
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(shop)
    return Scene(
        alice, {"source": source, "target": target}, lambda key: bank.payment(alice, source, target, "20.00", key=key)
    )


async def a_refund_of_a_payment(bank: Bank) -> Scene:
    alice, shop = Person(), Person("merchant")
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(shop, "1.00")
    payment = (await bank.payment(alice, source, target, "20.00")).json()["id"]
    return Scene(
        shop, {"source": target, "target": source}, lambda key: bank.refund(shop, payment, key), original_id=payment
    )


async def a_refund_by_a_merchant_who_is_short(bank: Bank) -> Scene:
    scene = await a_refund_of_a_payment(bank)
    other = await bank.wallet(Person())
    spent = await bank.transfer(scene.person, scene.wallets["source"], other, "5.00")
    assert spent.status_code == 201
    return scene


async def a_refund_of_a_deposit(bank: Bank) -> Scene:
    alice = Person()
    wallet = await bank.wallet(alice)
    deposit = (await bank.deposit(alice, wallet, "100.00")).json()["id"]
    return Scene(
        alice,
        {"wallet": wallet},
        lambda key: bank.refund(alice, deposit, key, amount="25.00"),
        original_id=deposit,
    )


async def a_cancel(bank: Bank, scene: Scene) -> Scene:
    """Of what waits for ever, and is left alone by the sweeper."""
    assert scene.ask is not None
    waiting = (await scene.ask("waiting")).json()
    assert waiting["status"] == "pending", waiting
    await bank.leave_alone(waiting["id"])
    return replace(scene, id=waiting["id"], ask=lambda _: bank.cancel(scene.person, waiting["id"]))


async def a_cancel_of_a_withdrawal(bank: Bank) -> Scene:
    return await a_cancel(bank, await a_withdrawal(bank, NEVER))


async def a_cancel_of_a_deposit(bank: Bank) -> Scene:
    return await a_cancel(bank, await a_deposit(bank, NEVER))


async def a_payout_that_comes_back(bank: Bank) -> Scene:
    return await a_withdrawal(bank, "pm_usBankAccount_payoutReturned")


async def a_charge_that_is_disputed(bank: Bank) -> Scene:
    return await a_deposit(bank, "pm_card_createDispute")


def failed(code: str, **more: Any) -> Effect:
    return Effect("failed", code, **more)


def completed(entries: dict[str, int], **more: Any) -> Effect:
    return Effect("completed", None, entries, **more)


STORIES = {
    "deposit": Story(
        a_deposit,
        ("check", "charge", "move"),
        completed({OUTSIDE: -2_500, "wallet": 2_500}, payments=(CHARGED,)),
        (2_500,),
    ),
    "deposit, refused": Story(
        a_deposit_to_a_closed_wallet,
        ("check", "refund"),
        failed("wallet_closed", payments=(("charge", "declined"),)),
        (0,),
        402,
    ),
    "deposit, refused when charged": Story(
        a_deposit_to_a_wallet_that_closes_when_it_is_charged,
        ("move", "refund"),
        failed("wallet_closed", payments=(CHARGED, GIVEN_BACK)),
        (0,),
        402,
    ),
    "withdrawal": Story(
        a_withdrawal,
        ("hold", "payout", "capture"),
        completed({"wallet": -2_500, OUTSIDE: 2_500}, hold="captured", payments=(PAID_OUT,)),
        (7_500,),
    ),
    "withdrawal, declined": Story(
        a_withdrawal_that_is_declined,
        ("hold", "payout", "release"),
        failed("card_declined", hold="released", payments=(("payout", "declined"),)),
        (10_000,),
        402,
    ),
    "transfer": Story(a_transfer, ("move",), completed({"source": -2_500, "target": 2_500}), (7_500, 2_500)),
    "transfer, refused": Story(a_transfer_of_too_much, ("move",), failed("insufficient_funds"), (10_000, 0), 402),
    "payment": Story(
        a_payment, ("pay",), completed({"source": -2_000, "target": 1_950, "fees:USD": 50}), (8_000, 1_950)
    ),
    "refund of a payment": Story(
        a_refund_of_a_payment,
        ("move",),
        completed({"source": -2_000, "target": 2_000}, refunded_minor=2_000),
        (50, 10_000),
    ),
    "refund of a payment, refused": Story(
        a_refund_by_a_merchant_who_is_short,
        ("move",),
        failed("insufficient_funds", refunded_minor=0),
        (1_550, 8_000),
        402,
    ),
    "refund of a deposit": Story(
        a_refund_of_a_deposit,
        ("hold", "refund", "capture"),
        completed({"wallet": -2_500, OUTSIDE: 2_500}, hold="captured", payments=(GIVEN_BACK,), refunded_minor=2_500),
        (7_500,),
    ),
    "cancel of a withdrawal": Story(
        a_cancel_of_a_withdrawal,
        ("hold", "payout", "release"),
        failed("cancelled", hold="released", payments=(("payout", "declined"),)),
        (10_000,),
        200,
    ),
    "cancel of a deposit": Story(
        a_cancel_of_a_deposit,
        ("check", "charge"),
        failed("cancelled", payments=(("charge", "declined"),)),
        (0,),
        200,
    ),
}
COMING_BACK = {
    "payout_return": Story(
        a_payout_that_comes_back,
        ("return",),
        completed({OUTSIDE: -2_500, "wallet": 2_500}, refunded_minor=0),
        (10_000,),
    ),
    "dispute": Story(
        a_charge_that_is_disputed,
        ("dispute",),
        completed({"wallet": -2_500, OUTSIDE: 2_500}, refunded_minor=2_500),
        (0,),
    ),
}
WAYS: Final = (Way.CLOSED, Way.ERROR, Way.GARBAGE, Way.OTHER_JSON)
PLAIN = ("deposit", "withdrawal", "transfer", "payment", "refund of a payment", "refund of a deposit")


@dataclass
class Case:
    """A scene that is broken off at one point, and what its caller heard."""

    story: Story
    scene: Scene
    fault: Fault | None = None
    heard: httpx.Response | None = None

    async def ask(self) -> httpx.Response:
        """The same request under the same key, always."""
        assert self.scene.ask is not None
        return await self.scene.ask("k")

    @property
    def cancels(self) -> bool:
        return self.story.status == 200


def faults_of(story: Story, person: Person) -> dict[str, Fault]:
    """Before and after each call, each time another way."""
    points = [(call, answered) for call in story.calls for answered in (False, True)]
    return {
        f"{'after' if answered else 'before'} {call}": Fault(call, person, answered, WAYS[index % len(WAYS)])
        for index, (call, answered) in enumerate(points)
    }


async def broken_off(
    bank: Bank, lines: Lines, stories: dict[str, Story], meanwhile: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Case]:
    """Each story once for each of its points, about to be broken off there."""
    points = [(name, point) for name, story in stories.items() for point in faults_of(story, Person())]
    scenes = await asyncio.gather(*(stories[name].prepare(bank) for name, _ in points))
    cases = {}
    for (name, point), scene in zip(points, scenes, strict=True):
        fault = faults_of(stories[name], scene.person)[point]
        if meanwhile is not None:
            fault.meanwhile = meanwhile
        for each in [*scene.faults, fault]:
            lines.break_at(each)
        cases[f"{name}: {point}"] = Case(stories[name], scene, fault)
    return cases


async def assert_as_told(bank: Bank, cases: dict[str, Case], *begins: str) -> None:
    """The scenes are left as the stories have it, whatever happened in them; the events begin with `begins`."""
    effects = await bank.effects(*(case.scene.id for case in cases.values()))
    balances = await bank.sql("select id::text, balance_minor from wallets.accounts")
    found, expected = {}, {}
    for name, case in cases.items():
        wallets = {id_: name for name, id_ in case.scene.wallets.items()}
        effect = effects[case.scene.id]
        entries = {wallets.get(account, account): minor for account, minor in effect.entries.items()}
        found[name] = (replace(effect, entries=entries), tuple(dict(balances)[id_] for id_ in wallets))
        events = (*(("pending",) if case.cancels else begins), case.story.effect.status)
        expected[name] = (replace(case.story.effect, events=events), case.story.balances)
    assert found == expected
    assert (
        await bank.sql(
            "select id from wallets.accounts where id = any($1::uuid[]) and held_minor <> 0",
            [id_ for case in cases.values() for id_ in case.scene.wallets.values()],
        )
        == []
    )


async def assert_final_answers(cases: dict[str, Case]) -> None:
    """Who asks again hears how it ended, and always the same."""
    for name, case in cases.items():
        again = await case.ask()
        assert again.status_code == case.story.status, (name, again.text)
        assert again.json().get("transaction_id", again.json().get("id")) == case.scene.id, name
        if not case.cancels:
            assert again.headers["Idempotent-Replayed"] == "true", name
            assert told(await case.ask()) == told(again), name


def told(response: httpx.Response | None) -> tuple[int, bytes]:
    assert response is not None
    return response.status_code, response.content


async def id_under(bank: Bank, person: Person, key: str) -> str:
    [(id_,)] = await bank.sql(
        "select transaction_id::text from transactions.idempotency_keys where user_id = $1 and key = $2",
        person.id,
        key,
    )
    return str(id_)


async def come_back(bank: Bank, lines: Lines) -> None:
    """The database is there again, and the service has noticed."""
    lines.database.come_back()
    somebody = Person()

    async def reads() -> bool:
        return (await bank.client.get("/transactions", headers=somebody.headers)).status_code == 200

    await eventually(reads)


# --------------------------------------------------------------------------------------------- calls that get lost


async def test_whichever_call_or_answer_is_lost_it_is_done_once(bank: Bank, lines: Lines) -> None:
    cases = await broken_off(bank, lines, STORIES)

    for name, case in cases.items():
        case.heard = await case.ask()
        assert (case.heard.status_code, case.heard.json()["status"]) == (202, "pending"), name
        assert case.fault is not None
        assert case.fault.happened, name
        case.scene.id = case.heard.json()["id"]
        assert case.cancels or told(await case.ask()) == told(case.heard), name
    await bank.all_ended(*(case.scene.id for case in cases.values()))

    await assert_as_told(bank, cases, "pending")
    for name, case in cases.items():
        again = await case.ask()
        if case.cancels:
            assert (again.status_code, again.json()["failure_code"]) == (200, "cancelled"), name
        else:
            assert told(again) == told(case.heard), name
            assert again.headers["Idempotent-Replayed"] == "true", name


async def undone_outside(bank: Bank, lines: Lines, cases: dict[str, Case]) -> None:
    """The providers have undone everything, the ledger has not heard of it, and nobody is at work on it."""
    for name, case in cases.items():
        case.heard = await case.ask()
        assert case.heard.status_code == 201, name
    people = [case.scene.person.id for case in cases.values()]
    waiting = "from transactions.transactions where user_id = any($1) and original_id is not null"

    async def all_wait() -> bool:
        [(count,)] = await bank.sql(f"select count(*) {waiting} and event_sequence = 1", people)
        return int(count) == len(people)

    lines.wallets.down = True
    try:
        await eventually(all_wait, 30.0)
        await bank.leave_alone(*(id_ for (id_,) in await bank.sql(f"select id::text {waiting}", people)))
    finally:
        lines.wallets.down = False


async def test_what_comes_back_from_outside_does_so_once_wherever_it_is_broken_off(bank: Bank, lines: Lines) -> None:
    lost = await broken_off(bank, lines, COMING_BACK)
    died = await broken_off(bank, lines, COMING_BACK, meanwhile=lines.die)
    cases = lost | {f"{name}, and the process died": case for name, case in died.items()}
    await undone_outside(bank, lines, cases)

    for name, case in cases.items():
        [case.scene.id] = await bank.transactions_of(case.scene.person, name.partition(":")[0])
        fault = case.fault

        async def happened(fault: Fault | None = fault) -> bool:
            return fault is not None and fault.happened

        await bank.wake(case.scene.id)
        await eventually(happened)
        await come_back(bank, lines)
    await bank.all_ended(*(case.scene.id for case in cases.values()), leases=True)

    await assert_as_told(bank, cases, "pending")


@pytest.mark.parametrize(("name", "call"), [("deposit", "charge"), ("transfer", "move")])
async def test_a_neighbour_that_does_it_and_is_silent_leaves_time_to_say_202(
    bank: Bank, lines: Lines, name: str, call: str
) -> None:
    case = Case(STORIES[name], await STORIES[name].prepare(bank))
    case.fault = lines.break_at(Fault(call, case.scene.person, answered=True, way=Way.SILENCE))
    bank.client.headers["X-Deadline-Ms"] = "1000"
    try:
        async with asyncio.timeout(1.0):
            heard = await case.ask()
    finally:
        del bank.client.headers["X-Deadline-Ms"]

    assert (heard.status_code, heard.json()["status"], case.fault.happened) == (202, "pending", True)
    case.scene.id = heard.json()["id"]
    await bank.all_ended(case.scene.id, leases=True)
    await assert_as_told(bank, {name: case}, "pending")


async def ask_together(bank: Bank, scene: Scene) -> tuple[int, str]:
    """The scene's transfer as the gateway sends it: status and id."""
    source, target = scene.wallets.values()
    response = await bank.client.post(
        "/internal/transactions",
        content=write_parcels([parcel(scene.person, source, target, "25.00", key="k")]),
        headers=service_headers("api-gateway", "transaction-service") | {"Content-Type": MEDIA_TYPE},
    )
    assert response.status_code == 200, response.text
    [reply] = read_replies(response.content)
    assert reply is not None
    return reply.status, json.loads(reply.body)["id"]


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
async def test_what_is_on_record_is_202_when_the_answer_is_late_and_the_database_is_out(
    bank: Bank, lines: Lines, *, together: bool
) -> None:
    case = Case(STORIES["transfer"], await STORIES["transfer"].prepare(bank))
    case.fault = lines.break_at(Fault("move", case.scene.person, answered=True, way=Way.SILENCE, meanwhile=lines.die))
    bank.client.headers["X-Deadline-Ms"] = "1000"
    try:
        if together:
            status, case.scene.id = await ask_together(bank, case.scene)
        else:
            heard = await case.ask()
            status, case.scene.id = heard.status_code, heard.json().get("id", "")
    finally:
        del bank.client.headers["X-Deadline-Ms"]

    assert (status, case.fault.happened) == (202, True)
    await come_back(bank, lines)
    await bank.all_ended(case.scene.id, leases=True)
    await assert_as_told(bank, {"transfer": case})
    await assert_final_answers({"transfer": case})


# ------------------------------------------------------------------------------------------- processes that die


async def assert_left_behind(bank: Bank, name: str, case: Case) -> None:
    """On record without an answer, and due so soon that it ends in time, yet not before its request is over."""
    [(status, seconds)] = await bank.sql(
        "select status, extract(epoch from next_attempt_at - now())::float8 from transactions.transactions "
        "where id = $1::uuid",
        case.scene.id,
    )
    assert status == "pending", name
    assert DEFAULT_DEADLINE_SECONDS < seconds <= ENDS_WITHIN_SECONDS - POLL_SECONDS, name
    if not case.cancels:
        busy = await case.ask()
        assert (busy.status_code, busy.json()["code"]) == (409, "idempotency_key_in_use"), name
        assert busy.headers["Retry-After"] == "1"


async def test_wherever_a_process_dies_its_work_is_due_within_30_seconds_and_is_done_once(
    bank: Bank, lines: Lines
) -> None:
    cases = await broken_off(bank, lines, STORIES, meanwhile=lines.die)

    for name, case in cases.items():
        case.heard = await case.ask()
        assert case.fault is not None
        assert case.fault.happened, name
        # What became of a wish to cancel has to be read, and nothing can be read.
        assert case.heard.status_code == (503 if case.cancels else 202), name
        await come_back(bank, lines)
        if not case.cancels:
            case.scene.id = case.heard.json()["id"]
        await assert_left_behind(bank, name, case)
    await bank.all_ended(*(case.scene.id for case in cases.values()), leases=True)

    await assert_as_told(bank, cases)
    await assert_final_answers(cases)


# ------------------------------------------------------------------------------------- commits that are not heard of

OPEN, CLOSE = b"insert into transactions as t", b"update transactions t set status"


async def with_lost_commits(
    bank: Bank, lines: Lines, stories: dict[str, Story], statement: bytes, *, for_good: bool
) -> dict[str, Case]:
    """Each story with the answer to the commit of this statement lost, and what its caller heard."""
    scenes = await asyncio.gather(*(story.prepare(bank) for story in stories.values()))
    cases = {name: Case(stories[name], scene) for name, scene in zip(stories, scenes, strict=True)}
    for name, case in cases.items():
        for fault in case.scene.faults:
            lines.break_at(fault)
        lines.database.cut()  # a new connection has not prepared the statement yet, and sends its text
        await come_back(bank, lines)
        lines.database.lose_a_commit(statement, for_good=for_good)
        case.heard = await case.ask()
        assert lines.database.cuts == 1, name
        await come_back(bank, lines)
        case.scene.id = case.scene.id or await id_under(bank, case.scene.person, "k")
    return cases


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        (OPEN, PLAIN),
        (CLOSE, (*PLAIN, "transfer, refused", "deposit, refused", "cancel of a withdrawal", "cancel of a deposit")),
    ],
    ids=["open", "close"],
)
async def test_a_commit_that_was_not_heard_of_changes_nothing_for_the_caller(
    bank: Bank, lines: Lines, statement: bytes, names: Sequence[str]
) -> None:
    stories = {name: STORIES[name] for name in names}

    cases = await with_lost_commits(bank, lines, stories, statement, for_good=False)

    assert {name: case.heard and case.heard.status_code for name, case in cases.items()} == {
        name: story.status for name, story in stories.items()
    }
    await assert_as_told(bank, cases)
    await assert_final_answers(cases)
    for name, case in cases.items():
        if case.story.status == 201:
            assert told(await case.ask()) == told(case.heard), name


async def test_when_nobody_can_say_whether_it_is_closed_it_is_pending_and_the_retry_tells(
    bank: Bank, lines: Lines
) -> None:
    stories = {name: STORIES[name] for name in ("deposit", "withdrawal", "transfer, refused", "refund of a payment")}

    cases = await with_lost_commits(bank, lines, stories, CLOSE, for_good=True)

    assert {case.heard and case.heard.status_code for case in cases.values()} == {202}
    await assert_as_told(bank, cases)
    await assert_final_answers(cases)


async def test_when_nobody_can_say_whether_it_is_open_the_retry_is_safe(bank: Bank, lines: Lines) -> None:
    stories = {name: STORIES[name] for name in ("deposit", "refund of a payment", "refund of a deposit")}

    cases = await with_lost_commits(bank, lines, stories, OPEN, for_good=True)

    for name, case in cases.items():
        assert case.heard is not None
        assert (case.heard.status_code, case.heard.json()["code"]) == (503, "outcome_unknown"), name
        await assert_left_behind(bank, name, case)
    await bank.all_ended(*(case.scene.id for case in cases.values()), leases=True)
    await assert_as_told(bank, cases)
    await assert_final_answers(cases)


# ------------------------------------------------------------------------------------------------- all of it


async def test_the_audit_tells_of_each_transaction_once_what_the_service_told(bank: Bank) -> None:
    """After all that has happened above."""
    rows = await bank.sql("select id::text, status from transactions.transactions")
    statuses = {str(id_): str(status) for id_, status in rows}
    assert set(statuses.values()) == {"completed", "failed"}

    audited = await bank.audited(*statuses)

    assert {id_: [event for event in told if event != "pending"] for id_, told in audited.items()} == {
        id_: [status] for id_, status in statuses.items()
    }
