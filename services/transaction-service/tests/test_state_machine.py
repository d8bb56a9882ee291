"""People do what they like, several things at once, while neighbours restart: the books are right after each step.

The services are real, and so is PostgreSQL. What the callers were told is the model: in the end it has to explain
every balance, and the reconciler has nothing to say.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger_reconciler.service import Reconciler
from ledger_reconciler.settings import ReconcilerSettings
from shared.audit import AuditReader
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, CallLine, Fault, Neighbour, Way, call_line

FEE_BPS: Final = 250
EXAMPLES: Final = 7
STEPS: Final = 12
NEVER: Final = "pm_usBankAccount_processing"
CHARGES: Final = (
    "credit_card",
    "paypal",
    "pm_usBankAccount_success",
    "pm_usBankAccount_noAccount",
    "pm_card_chargeDeclined",
    "pm_card_createDispute",
    NEVER,
)
PAYOUTS: Final = (
    "bank_account",
    "paypal",
    "pm_usBankAccount_success",
    "pm_usBankAccount_noAccount",
    "pm_usBankAccount_payoutReturned",
    "pm_card_chargeDeclined",
    NEVER,
)
REFUSALS: Final = {
    "insufficient_funds",
    "wallet_frozen",
    "wallet_closed",
    "cancelled",
    "card_declined",
    "no_account",
    "charge_disputed",
}


@pytest.fixture(scope="module")
def provider_times() -> dict[str, float]:
    return {"sandbox_settle_seconds": 0.3, "sandbox_reversal_seconds": 0.3}


@dataclass(frozen=True)
class Lines:
    """What transaction-service calls its neighbours over."""

    wallets: CallLine
    payments: CallLine


@pytest.fixture(scope="module")
async def lines(wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Lines]:
    async with call_line(wallet_service.url) as wallets, call_line(payment_gateway.url) as payments:
        yield Lines(wallets, payments)


@pytest.fixture(scope="module")
async def reconciler(sandbox: Sandbox) -> AsyncIterator[Reconciler]:
    settings = sandbox.settings(ReconcilerSettings)
    audit = AuditReader(settings)
    yield Reconciler(settings, audit)
    audit.close()


@pytest.fixture(scope="module")
async def bank(sandbox: Sandbox, wallet_service: Neighbour, lines: Lines) -> AsyncIterator[Bank]:
    settings = sandbox.settings(
        TransactionSettings,
        wallet_service_url=lines.wallets.url,
        payment_gateway_url=lines.payments.url,
        payment_fee_bps=FEE_BPS,
    )
    async with in_process(create_app(settings)) as client:
        bank = Bank(client, wallet_service.url, sandbox)
        await bank.watch()
        yield bank


@dataclass
class Asked:
    """A request under its key, and every answer that it ever got."""

    kind: str
    caller: Person
    send: Callable[[], Awaitable[httpx.Response]]
    minor: int
    source: str | None = None
    target: str | None = None
    payee: Person | None = None
    answers: list[httpx.Response] = field(default_factory=list)

    @property
    def id(self) -> str | None:
        """The transaction's, once an answer has named it."""
        for answer in self.answers:
            body = answer.json()
            if answer.status_code in {201, 202}:
                return str(body["id"])
            if answer.status_code == 402:
                return str(body["transaction_id"])
        return None

    @property
    def may_wait(self) -> bool:
        """Whether there may still be something to be cancelled."""
        pending = any(answer.status_code == 202 for answer in self.answers)
        return pending and self.kind in {"deposit", "withdrawal"}


def money(minor: int) -> str:
    return f"{minor // 100}.{minor % 100:02d}"


def fee_of(minor: int) -> int:
    """As the contract has it, computed in another way."""
    return int((Decimal(minor) * FEE_BPS / 10_000).quantize(Decimal(1), ROUND_HALF_EVEN))


class World:
    """Alice, Bob and a shop with a hundred dollars each, and all that they have asked for."""

    def __init__(self, bank: Bank, neighbours: Sequence[Neighbour], lines: Lines, reconciler: Reconciler) -> None:
        self.bank = bank
        self.neighbours = neighbours
        self.lines = lines
        self.reconciler = reconciler
        self.people = [Person(), Person(), Person("merchant")]
        self.admin = Person("admin")
        self.wallets: list[str] = []
        self.asked: list[Asked] = []

    async def begin(self) -> None:
        self.wallets = list(await asyncio.gather(*(self.bank.wallet(person) for person in self.people)))
        for index in range(len(self.people)):
            self.deposit(index, 10_000, "credit_card")
        await self.at_once(self.asked)

    # ------------------------------------------------------------------------------- what may be asked for

    def deposit(self, index: int, minor: int, method: str) -> Asked:
        person, wallet, key = self.people[index], self.wallets[index], self._key()

        def send() -> Awaitable[httpx.Response]:
            return self.bank.deposit(person, wallet, money(minor), payment_method=method, key=key)

        return self._ask(Asked("deposit", person, send, minor, target=wallet, payee=person))

    def withdraw(self, index: int, minor: int, method: str) -> Asked:
        person, wallet, key = self.people[index], self.wallets[index], self._key()

        def send() -> Awaitable[httpx.Response]:
            return self.bank.withdraw(person, wallet, money(minor), payment_method=method, key=key)

        return self._ask(Asked("withdrawal", person, send, minor, source=wallet))

    def move(self, kind: str, index: int, other: int, minor: int) -> Asked:
        person, source, target, key = self.people[index], self.wallets[index], self.wallets[other], self._key()

        def send() -> Awaitable[httpx.Response]:
            return self.bank.transfer(person, source, target, money(minor), transaction_type=kind, key=key)

        return self._ask(Asked(kind, person, send, minor, source, target, self.people[other]))

    async def disputed_early(self, minor: int, *, refused: bool) -> None:
        """Somebody new is charged and the charge disputed while the ledger does not answer: the deposit waits, or is
        refused in the end, as the wallet was closed meanwhile, and the dispute is faster than the refund."""
        person = Person()
        wallet = await self.bank.wallet(person)
        self.people.append(person)
        self.wallets.append(wallet)

        async def close() -> None:
            await self.set_status(wallet, "close")

        if refused:
            self.lines.payments.break_at(Fault("charge", person, answered=True, way=None, meanwhile=close))
            self.lines.payments.break_at(Fault("refund", person, answered=False, way=Way.CLOSED))
        else:
            self.lines.wallets.break_at(Fault("move", person, answered=False, way=Way.CLOSED))
        asked = self.deposit(len(self.people) - 1, minor, "pm_card_createDispute")
        await self.at_once([asked])
        assert asked.answers[-1].status_code == 202, asked.answers[-1].text

        await self.bank.leave_alone(str(asked.id))

        async def disputed() -> list[tuple[Any, ...]]:
            # Unless a sweep was faster than that.
            return await self.bank.sql(
                "select id from transactions.transactions where user_id = $1 and type = 'dispute' "
                "union all select id from payments.payments where user_id = $1 and kind = 'refund'",
                person.id,
            )

        await eventually(disputed)

    def refund(self, original: Asked, minor: int) -> Asked:
        caller, original_id, key = original.payee or original.caller, original.id, self._key()

        def send() -> Awaitable[httpx.Response]:
            return self.bank.refund(caller, str(original_id), key, amount=money(minor))

        return self._ask(Asked("refund", caller, send, minor, original.target, original.source))

    def _ask(self, asked: Asked) -> Asked:
        self.asked.append(asked)
        return asked

    def _key(self) -> str:
        return f"k{len(self.asked)}"

    async def cancel(self, asked: Asked) -> None:
        answer = await self.bank.cancel(asked.caller, str(asked.id))
        assert answer.status_code in {200, 202, 409}, answer.text

    async def set_status(self, wallet: str, verb: str) -> None:
        async with httpx.AsyncClient(verify=False) as client:  # noqa: S501 - no TLS
            answer = await client.post(f"{self.bank.wallet_url}/wallets/{wallet}/{verb}", headers=self.admin.headers)
        assert answer.status_code == 200, answer.text

    async def restart(self, neighbour: Neighbour, meanwhile: Awaitable[Any]) -> None:
        await neighbour.stop()
        try:
            await meanwhile
        finally:
            await neighbour.start()

    # ------------------------------------------------------------------------------------- what must come of it

    async def at_once(self, requests: Sequence[Asked], *others: Awaitable[Any]) -> None:
        """Send the requests, some of them more than once, at the same moment as the others."""

        async def send(asked: Asked) -> None:
            answer = await asked.send()
            self.check_answer(asked, answer)
            asked.answers.append(answer)

        outcomes = await asyncio.gather(*map(send, requests), *others, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def check_answer(self, asked: Asked, answer: httpx.Response) -> None:
        """It is one that the contract knows, and never another one than before."""
        status, body = answer.status_code, answer.json()
        if status == 409:
            codes = {"idempotency_key_in_use"}
            if asked.kind == "refund":
                codes |= {"transaction_not_refundable", "refund_exceeds_remaining"}
            assert body["code"] in codes, answer.text
        elif status == 404:
            assert (asked.kind, body["code"]) == ("refund", "transaction_not_found"), answer.text
        else:
            assert status in {201, 202, 402}, answer.text
            assert status != 402 or body["code"] in REFUSALS, answer.text
            assert body.get("code") != "insufficient_funds" or Decimal(body["available"]) < Decimal(
                money(asked.minor)
            )
            known = asked.id
            assert known in {None, body.get("id") or body.get("transaction_id")}, "one key, two transactions"
            if "Idempotent-Replayed" in answer.headers:
                told = [(a.status_code, a.content) for a in asked.answers if "Idempotent-Replayed" in a.headers]
                assert set(told) <= {(status, answer.content)}, "two replays differ"

    async def assert_sound(self) -> None:
        await self.bank.assert_consistent(in_flight=True)
        rows = await self.bank.sql(
            "select id::text from transactions.transactions where user_id = any($1) "
            "and type not in ('dispute', 'payout_return')",
            [person.id for person in self.people],
        )
        named = [asked.id for asked in self.asked if asked.id]
        assert sorted(id_ for (id_,) in rows) == sorted(named), "another transaction than those that were asked for"

    async def end(self) -> None:
        """Everything that is open ends, and the answers explain the balances."""
        for asked in self.asked:
            if asked.may_wait:
                await self.cancel(asked)
        try:
            await eventually(self._all_is_over, 30.0)
        except AssertionError as error:
            raise AssertionError(f"still open: {self.open}") from error
        await self.assert_sound()
        rows = await self.bank.sql(
            "select t.id::text, t.type, t.status, t.amount_minor, t.from_wallet_id::text, t.to_wallet_id::text, "
            "  coalesce((select -sum(e.amount_minor) from wallets.entries e join wallets.accounts a "
            "    on a.id = e.account_id where e.posting_id = t.id and a.name like 'receivable:%'), 0)::bigint, "
            "  t.original_id::text "
            "from transactions.transactions t where t.user_id = any($1)",
            [person.id for person in self.people],
        )
        self._explain(rows, await self.bank.balances(*self.wallets))
        looked = await self.reconciler.full()
        assert [str(finding) for result in looked.results for finding in result.findings] == []
        effects = await self.bank.effects(*(row[0] for row in rows))
        for id_, effect in effects.items():
            assert [event for event in effect.events if event != "pending"] == [effect.status], id_

    def _explain(self, rows: list[tuple[Any, ...]], balances: list[int]) -> None:
        """The wallets hold what was paid in and received, less what was paid out and sent."""
        ended = {id_: status for id_, _, status, *_ in rows}
        originals = {id_: original for id_, *_, original in rows}
        wallets = Counter[str | None]()
        for asked in self.asked:
            if asked.id and ended[asked.id] == "completed":
                wallets[asked.source] -= asked.minor
                wallets[asked.target] += asked.minor - (fee_of(asked.minor) if asked.kind == "payment" else 0)
            replays = [answer for answer in asked.answers if answer.status_code in {201, 402}]
            for answer in replays:
                was = "completed" if answer.status_code == 201 else "failed"
                assert (asked.kind, asked.id, ended[str(asked.id)]) == (asked.kind, asked.id, was)
        for id_, kind, status, minor, source, target, owed, _ in rows:
            if kind in {"dispute", "payout_return"}:
                assert status == ended[originals[id_]]
                if status == "failed":
                    continue
                wallets[source] -= minor - owed
                wallets[target] += minor
        assert [wallets[wallet] for wallet in self.wallets] == balances

    async def _all_is_over(self) -> bool:
        """Nothing is pending, nothing is expected from a provider, and what came back has been booked."""
        people = [person.id for person in self.people]
        self.open = await self.bank.sql(
            "select t.id::text, t.type, t.payment_method, t.attempts, t.cancel_requested, t.next_attempt_at::text "
            "from transactions.transactions t where t.user_id = any($1) and t.status = 'pending' "
            "union all select p.transaction_id::text, p.kind, p.method, null, null, p.next_check_at::text "
            "from payments.payments p where p.user_id = any($1) and (p.status = 'pending' "
            "  or (p.next_check_at is not null and not exists (select from payments.payments r "
            "    where r.kind = 'refund' and r.original_id = p.transaction_id group by r.original_id "
            "    having sum(r.amount_minor) filter (where r.status = 'succeeded') = p.amount_minor)) "
            "  or (p.reversal is not null and not exists (select from transactions.transactions t "
            "    where t.original_id = p.transaction_id and t.type in ('dispute', 'payout_return'))))",
            people,
        )
        await self.bank.wake(*(row[0] for row in self.open))
        return not self.open


MINORS = st.sampled_from([1, 99, 1_000, 3_333, 6_000, 20_000])


class BankMachine(RuleBasedStateMachine):
    """Steps of several things at once."""

    bank: Bank
    neighbours: Sequence[Neighbour]
    lines: Lines
    reconciler: Reconciler
    loop: asyncio.AbstractEventLoop  # that of the services; the machine itself runs in a thread
    world: World
    restarted = False

    broken = False

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)
        except BaseException:
            self.broken = True  # there is nothing to be learned from how that ends
            raise

    @initialize()
    def begin(self) -> None:
        self.world = World(self.bank, self.neighbours, self.lines, self.reconciler)
        self.run(self.world.begin())

    @rule(data=st.data(), count=st.integers(1, 6))
    def act(self, data: st.DataObject, count: int) -> None:
        self.run(self.world.at_once([self.request(data) for _ in range(count)]))

    @rule(data=st.data())
    def twins(self, data: st.DataObject) -> None:
        asked = self.request(data)
        self.run(self.world.at_once([asked, asked, self.request(data), asked]))

    @rule(data=st.data(), count=st.integers(1, 4))
    def retry(self, data: st.DataObject, count: int) -> None:
        again = [data.draw(st.sampled_from(self.world.asked)) for _ in range(count)]
        self.run(self.world.at_once([*again, self.request(data), *again]))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        chosen = [asked for asked in self.world.asked if asked.may_wait][-3:]
        request = self.request(data)
        self.run(self.world.at_once([request], *map(self.world.cancel, chosen)))

    @rule(data=st.data(), verb=st.sampled_from(["freeze", "unfreeze", "unfreeze"]))
    def freeze(self, data: st.DataObject, verb: str) -> None:
        wallet = data.draw(st.sampled_from(self.world.wallets[:3]))
        requests = [self.request(data) for _ in range(3)]
        self.run(self.world.at_once(requests, self.world.set_status(wallet, verb)))

    @precondition(lambda self: len(self.world.people) < 7)
    @rule(data=st.data(), refused=st.booleans())
    def dispute_early(self, data: st.DataObject, refused: bool) -> None:
        requests = [self.request(data) for _ in range(2)]
        self.run(self.world.at_once(requests, self.world.disputed_early(data.draw(MINORS), refused=refused)))

    @precondition(lambda self: not self.restarted)
    @rule(data=st.data(), which=st.sampled_from([0, 1]))
    def restart(self, data: st.DataObject, which: int) -> None:
        self.restarted = True
        requests = [self.request(data) for _ in range(4)]
        self.run(self.world.restart(self.neighbours[which], self.world.at_once([*requests, *requests])))

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "world"):
            self.run(self.world.assert_sound())

    def teardown(self) -> None:
        if hasattr(self, "world") and not self.broken:
            self.run(self.world.end())

    def request(self, data: st.DataObject) -> Asked:
        """Something new that somebody may want."""
        world = self.world
        kind = data.draw(
            st.sampled_from(["deposit", "withdrawal", "transfer", "transfer", "payment", "refund", "refund"])
        )
        index, minor = data.draw(st.integers(0, 2)), data.draw(MINORS)
        given = [a for a in world.asked if a.id and a.kind in {"deposit", "transfer", "payment"}]
        if kind == "deposit":
            return world.deposit(index, minor, data.draw(st.sampled_from(CHARGES)))
        if kind == "withdrawal":
            return world.withdraw(index, minor, data.draw(st.sampled_from(PAYOUTS)))
        if kind == "refund" and given:
            original = data.draw(st.sampled_from(given[-8:]))
            return world.refund(original, min(minor, original.minor))
        if kind == "payment":
            return world.move("payment", index % 2, 2, minor)
        return world.move("transfer", index, (index + 1) % 3, minor)


async def test_whatever_people_do_at_once_the_books_are_right(
    bank: Bank, wallet_service: Neighbour, payment_gateway: Neighbour, lines: Lines, reconciler: Reconciler
) -> None:
    given = {
        "bank": bank,
        "neighbours": (wallet_service, payment_gateway),
        "lines": lines,
        "reconciler": reconciler,
        "loop": asyncio.get_running_loop(),
    }

    await asyncio.to_thread(
        run_state_machine_as_test,
        type("People", (BankMachine,), given),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            print_blob=True,
            phases=(Phase.generate,),  # to shrink takes minutes, and another moment has other races
            suppress_health_check=list(HealthCheck),
        ),
    )
    await bank.assert_consistent()
    assert (await reconciler.full()).total == 0
