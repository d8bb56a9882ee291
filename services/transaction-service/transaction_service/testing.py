"""transaction-service's neighbours and callers, as tests need them, and the lines between them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI

from infrastructure.embedded import ports
from shared.http.bundle import Parcel
from shared.testing.lines import CommitLine
from shared.testing.sandbox import Sandbox
from shared.testing.servers import HOST, serving
from shared.testing.tokens import Person, service_headers
from shared.testing.waiting import eventually


class Neighbour:
    """A real service on a port of its own, which can be stopped and started again."""

    def __init__(self, create_app: Callable[[], FastAPI]) -> None:
        self._create_app = create_app
        self._running = AsyncExitStack()
        self._port = ports.choose([])
        self.url = f"http://{HOST}:{self._port}"

    async def start(self) -> None:
        """Serve, and answer when this returns."""
        await self._running.enter_async_context(serving(self._create_app(), self._port))

    async def stop(self) -> None:
        """Refuse connections from now on."""
        await self._running.aclose()


# -------------------------------------------------------------------------------------- lines that break


class Way(Enum):
    """What a caller gets instead of the answer."""

    CLOSED = b""  # the connection ends
    ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
    GARBAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>503"
    OTHER_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n[]"
    SILENCE = None  # nothing, until the caller gives up


async def _nothing() -> None:
    pass


@dataclass
class Fault:
    """Something that happens to the next call with `call` in it, made for this person; then all is well again.

    `call` is the action of a posting or the kind of an order. `answered` says whether the call gets through and only
    its answer is lost. `meanwhile` happens before the caller notices, or, when nothing is lost, before the call gets
    through.
    """

    call: str
    person: Person
    answered: bool
    way: Way | None
    meanwhile: Callable[[], Awaitable[object]] = _nothing
    happened: bool = False


@dataclass
class CallLine:
    """A line to a neighbour on which the calls that are meant get lost, or their answers; all others pass."""

    far_url: str
    url: str = ""
    down: bool = False
    faults: list[Fault] = field(default_factory=list)
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    def break_at(self, fault: Fault) -> Fault:
        """Have this happen when its call comes."""
        self.faults.append(fault)
        return fault

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry the calls of one connection until its caller or a fault ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        try:
            while (request := await _read_message(reader)) is not None:
                answer = await self._answer(request)
                if answer is None:
                    await reader.read()  # its caller hangs up
                if not answer:
                    break
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # either side went away, or the test is over
        finally:
            writer.transport.abort()
            self._carrying.discard(task)

    async def end(self) -> None:
        """End every connection."""
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying)

    async def _answer(self, request: bytes) -> bytes | None:
        if self.down:
            return b""
        calls = _calls(request)
        fault = next((fault for fault in self.faults if (fault.call, str(fault.person.id)) in calls), None)
        if fault is None:
            return await self._pass_on(request)
        self.faults.remove(fault)
        if fault.way is not None and fault.answered:
            await self._pass_on(request)
        await fault.meanwhile()
        fault.happened = True
        return await self._pass_on(request) if fault.way is None else fault.way.value

    async def _pass_on(self, request: bytes) -> bytes:
        far = urlsplit(self.far_url)
        reader, writer = await asyncio.open_connection(far.hostname, far.port)
        try:
            writer.write(request)
            return await _read_message(reader) or b""
        finally:
            writer.transport.abort()


@asynccontextmanager
async def call_line(far_url: str) -> AsyncIterator[CallLine]:
    """A line to the neighbour at `far_url`, for the length of the block."""
    line = CallLine(far_url)
    server = await asyncio.start_server(line.carry, HOST, 0)
    line.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        await line.end()
        await server.wait_closed()


class DatabaseLine(CommitLine):
    """A line to PostgreSQL that goes down and comes back, or loses the answer to a COMMIT, as often as one likes."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port, b"", for_good=False)
        self.come_back()

    def lose_a_commit(self, statement: bytes, *, for_good: bool) -> None:
        """Lose the answer to the next COMMIT of one that has sent `statement`, and go down with it `for_good`."""
        self.cuts, self._meant = 0, None
        self._statement, self._for_good = statement, for_good

    def go_down(self) -> None:
        """End every connection, and take no other."""
        self.cuts, self._for_good = 1, True
        self.cut()

    def come_back(self) -> None:
        """Work as a line should."""
        self.lose_a_commit(b"\x00 nobody sends this \x00", for_good=False)


@asynccontextmanager
async def database_line(sandbox: Sandbox) -> AsyncIterator[DatabaseLine]:
    """A line to the sandbox's PostgreSQL, for the length of the block."""
    line = DatabaseLine(sandbox.environment["POSTGRES_HOST"], int(sandbox.environment["POSTGRES_PORT"]))
    server = await asyncio.start_server(line.carry, HOST, 0)
    line.port = server.sockets[0].getsockname()[1]
    try:
        yield line
    finally:
        server.close()
        line.cut()
        await server.wait_closed()


async def _read_message(reader: asyncio.StreamReader) -> bytes | None:
    """An HTTP message whose length is told; None at the end of the connection."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        head = await reader.readuntil(b"\r\n\r\n")
        names = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
        return head + await reader.readexactly(int(names.get(b"content-length", b"0")))
    return None


def _calls(request: bytes) -> set[tuple[str, str]]:
    """What is asked for, and for whom."""
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    postings = [(posting["action"], posting["user_id"]) for unit in body.get("units", ()) for posting in unit]
    return {*postings, *((order["kind"], order["user_id"]) for order in body.get("orders", ()))}


# ------------------------------------------------------------------------------------------------ the bank


@dataclass(frozen=True)
class Effect:
    """All that a transaction has left behind, in minor units.

    `entries` are by wallet or system account, `events` by the order of their sequence.
    """

    status: str
    failure_code: str | None = None
    entries: dict[str, int] = field(default_factory=dict)
    hold: str | None = None
    payments: tuple[tuple[str, str], ...] = ()
    events: tuple[str, ...] = ()
    refunded_minor: int | None = None  # of the transaction that it gives back


_EFFECTS: Final = """
select t.id::text, t.status, t.failure_code,
    (select h.status from wallets.holds h where h.id = t.id) as hold,
    (select o.refunded_minor from transactions.transactions o where o.id = t.original_id) as refunded_minor,
    array(select coalesce(a.name, a.id::text) from wallets.entries e join wallets.accounts a on a.id = e.account_id
        where e.posting_id = t.id order by e.account_id, e.version) as accounts,
    array(select e.amount_minor from wallets.entries e
        where e.posting_id = t.id order by e.account_id, e.version) as amounts,
    array(select p.kind from payments.payments p where p.transaction_id = t.id order by p.kind) as kinds,
    array(select p.status from payments.payments p where p.transaction_id = t.id order by p.kind) as statuses,
    array(select s.payload::jsonb ->> 'type' from transactions.seen s where s.key = t.id::text
        order by s.position) as events,
    array(select (s.payload::jsonb ->> 'sequence')::int from transactions.seen s where s.key = t.id::text
        order by s.position) as sequences
from transactions.transactions t where t.id = any($1::uuid[])
"""


def _effect(
    transaction_id: str,
    status: str,
    failure_code: str | None,
    hold: str | None,
    refunded_minor: int | None,
    accounts: list[str],
    amounts: list[int],
    kinds: list[str],
    statuses: list[str],
    events: list[str],
    sequences: list[int],
) -> Effect:
    assert sequences == list(range(1, len(events) + 1)), (transaction_id, events, sequences)
    assert len(set(accounts)) == len(accounts), f"two entries in one account: {transaction_id}"
    return Effect(
        status,
        failure_code,
        dict(zip(accounts, amounts, strict=True)),
        hold,
        tuple(zip(kinds, statuses, strict=True)),
        tuple(event.split(".")[1] for event in events),
        refunded_minor,
    )


_VIOLATIONS: Final = """
with moved as (
    select e.*, a.currency, sum(e.amount_minor) over (partition by e.account_id order by e.version) as running
    from wallets.entries e left join wallets.accounts a on a.id = e.account_id
), given_back as (
    select original_id, sum(amount_minor) as minor from transactions.transactions
    where type = 'dispute' or (type = 'refund' and status <> 'failed') group by original_id
)
select 'a currency does not sum to zero' as what, currency as where from moved
    group by currency having sum(amount_minor) <> 0
union all
select 'a posting does not balance', posting_id::text from moved
    group by posting_id having sum(amount_minor) <> 0 or count(distinct currency) <> 1 or bool_or(currency is null)
union all
select 'a balance after an entry is not the sum so far', posting_id::text from moved where running <> balance_minor
union all
select 'a balance is not the sum of the entries', a.id::text from wallets.accounts a
    left join moved m on m.account_id = a.id
    group by a.id having a.balance_minor <> coalesce(sum(m.amount_minor), 0)
union all
select 'held is not the sum of the open holds', a.id::text from wallets.accounts a
    left join wallets.holds h on h.account_id = a.id and h.status = 'open'
    group by a.id having a.held_minor <> coalesce(sum(h.amount_minor), 0)
union all
select 'a wallet is overdrawn', id::text from wallets.accounts
    where user_id is not null and (balance_minor < held_minor or held_minor < 0)
union all
select 'completed without a posting, or a posting without one that is completed', coalesce(t.id, e.posting_id)::text
    from transactions.transactions t
    full join (select distinct posting_id from wallets.entries) e on e.posting_id = t.id
    where (t.status = 'completed') is distinct from (e.posting_id is not null)
        and not ($1 and t.status is not distinct from 'pending')
union all
select 'a hold is open although its transaction has ended', t.id::text from transactions.transactions t
    join wallets.holds h on h.id = t.id where h.status = 'open' and t.status <> 'pending'
union all
select 'a charge stays although the deposit has failed', t.id::text from transactions.transactions t
    join payments.payments c on c.transaction_id = t.id and c.kind = 'charge' and c.status <> 'declined'
    left join payments.payments r on r.transaction_id = t.id and r.kind = 'refund' and r.status = 'succeeded'
    where t.type = 'deposit' and t.status = 'failed' and r.id is null and c.reversal is null
union all
select 'the provider knows another outcome', t.id::text from transactions.transactions t
    left join payments.payments p on p.transaction_id = t.id
        and p.kind = case t.type when 'deposit' then 'charge' when 'withdrawal' then 'payout' else 'refund' end
    where t.status = 'completed' and p.status is distinct from 'succeeded'
        and (t.type in ('deposit', 'withdrawal') or (t.type = 'refund' and t.original_type = 'deposit'))
union all
select 'not all that was given back is counted, or more', o.id::text from transactions.transactions o
    left join given_back g on g.original_id = o.id
    where o.refunded_minor <> least(o.amount_minor, coalesce(g.minor, 0))
union all
select 'more was refunded than there is', o.id::text from transactions.transactions o
    join transactions.transactions r on r.original_id = o.id and r.type = 'refund' and r.status <> 'failed'
    group by o.id having sum(r.amount_minor) > o.amount_minor
union all
select 'a key stands for a transaction that is not there', k.transaction_id::text from transactions.idempotency_keys k
    left join transactions.transactions t on t.id = k.transaction_id and t.user_id = k.user_id where t.id is null
union all
select 'a key has no answer although its transaction has ended', t.id::text from transactions.idempotency_keys k
    join transactions.transactions t on t.id = k.transaction_id
    where k.response_status is null and t.status <> 'pending'
"""


class Bank:
    """The platform seen by a test: people with wallets, transactions by HTTP, and SQL around the code."""

    def __init__(self, client: httpx.AsyncClient, wallet_url: str, sandbox: Sandbox) -> None:
        self.client = client
        self.wallet_url = wallet_url
        self._sandbox = sandbox

    async def wallet(self, owner: Person, balance: str = "0.00", currency: str = "USD") -> str:
        """A new wallet of the owner's, funded by a deposit."""
        async with httpx.AsyncClient(verify=False) as client:  # noqa: S501 - without TLS there is nothing to load
            response = await client.post(
                f"{self.wallet_url}/wallets/create",
                json={"user_id": str(owner.id), "currency": currency},
                headers=owner.headers,
            )
        assert response.status_code == 201, response.text
        wallet_id: str = response.json()["id"]
        if balance != "0.00":
            deposit = await self.deposit(owner, wallet_id, balance, currency=currency)
            assert deposit.status_code == 201, deposit.text
        return wallet_id

    async def create(self, caller: Person, key: str | None = None, **body: Any) -> httpx.Response:
        """POST /transactions/create."""
        headers = caller.headers | ({"Idempotency-Key": key} if key else {})
        return await self.client.post("/transactions/create", json=body, headers=headers)

    async def deposit(self, caller: Person, wallet_id: str, amount: Any, **more: Any) -> httpx.Response:
        """A deposit by credit card, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "to_wallet_id": wallet_id, "payment_method": "credit_card"}
        return await self.create(caller, **({"transaction_type": "deposit"} | body | more))

    async def transfer(self, caller: Person, source: str, target: str, amount: Any, **more: Any) -> httpx.Response:
        """A transfer in dollars, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "from_wallet_id": source, "to_wallet_id": target}
        return await self.create(caller, **({"transaction_type": "transfer"} | body | more))

    async def payment(self, caller: Person, source: str, target: str, amount: Any, **more: Any) -> httpx.Response:
        """A payment in dollars, unless `more` says otherwise."""
        return await self.transfer(caller, source, target, amount, **({"transaction_type": "payment"} | more))

    async def withdraw(self, caller: Person, wallet_id: str, amount: Any, **more: Any) -> httpx.Response:
        """A withdrawal to a bank account, unless `more` says otherwise."""
        body = {"amount": amount, "currency": "USD", "from_wallet_id": wallet_id, "payment_method": "bank_account"}
        return await self.create(caller, **({"transaction_type": "withdrawal"} | body | more))

    async def refund(
        self, caller: Person, transaction_id: str, key: str | None = None, **body: Any
    ) -> httpx.Response:
        """POST /transactions/{id}/refund."""
        headers = caller.headers | ({"Idempotency-Key": key} if key else {})
        return await self.client.post(f"/transactions/{transaction_id}/refund", json=body, headers=headers)

    async def cancel(self, caller: Person, transaction_id: str) -> httpx.Response:
        """POST /transactions/{id}/cancel."""
        return await self.client.post(f"/transactions/{transaction_id}/cancel", headers=caller.headers)

    async def internal(self, url: str, service: str, path: str, body: dict[str, Any]) -> None:
        """Call a neighbour as transaction-service does."""
        async with httpx.AsyncClient(verify=False) as client:  # noqa: S501 - without TLS there is nothing to load
            headers = service_headers("transaction-service", service)
            response = await client.post(url + path, json=body, headers=headers)
        assert response.status_code == 200, response.text

    async def sql(self, statement: str, *arguments: Any) -> list[tuple[Any, ...]]:
        """Run SQL as the owner of all schemas."""
        connection = await self._sandbox.connect()
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    async def balances(self, *wallet_ids: str) -> list[int]:
        """Minor units in each wallet, from the ledger itself."""
        rows = dict(await self.sql("select id::text, balance_minor from wallets.accounts"))
        return [rows[wallet_id] for wallet_id in wallet_ids]

    async def ledger(self) -> list[tuple[Any, ...]]:
        """Everything that money has ever done."""
        return await self.sql(
            "select account_id, version, posting_id, amount_minor, balance_minor from wallets.entries order by 1, 2"
        )

    async def ended(self, caller: Person, transaction_id: str, limit_seconds: float = 15.0) -> dict[str, Any]:
        """The transaction once it is no longer pending."""

        async def look() -> dict[str, Any] | None:
            response = await self.client.get(f"/transactions/{transaction_id}", headers=caller.headers)
            found: dict[str, Any] = response.json()
            return found if found["status"] != "pending" else None

        return await eventually(look, limit_seconds) or {}

    async def wake(self, *transaction_ids: str) -> None:
        """Have what is pending taken up by the next sweep, whoever is at work on it."""
        await self.sql(
            "update transactions.transactions set next_attempt_at = now() "
            "where id = any($1::uuid[]) and status = 'pending'",
            transaction_ids,
        )

    async def leave_alone(self, *transaction_ids: str) -> None:
        """Have no sweep take up what is pending."""
        await self.sql(
            "update transactions.transactions set next_attempt_at = now() + interval '1 hour' "
            "where id = any($1::uuid[]) and status = 'pending'",
            transaction_ids,
        )

    async def all_ended(self, *transaction_ids: str, leases: bool = False) -> None:
        """Wait until none of the transactions is pending, without waiting for their time to come.

        With `leases` nobody is at work on them any more, although it looks like it.
        """
        if leases:
            await self.wake(*transaction_ids)

        async def look() -> bool:
            waiting = await self.sql(
                "update transactions.transactions "
                "set next_attempt_at = least(next_attempt_at, case when next_attempt_at < now() + interval '20 s' "
                "  then now() else next_attempt_at end) "
                "where id = any($1::uuid[]) and status = 'pending' returning id",
                transaction_ids,
            )
            return not waiting

        await eventually(look)

    async def transactions_of(self, owner: Person, kind: str) -> list[str]:
        """The ids of the person's transactions of one type, oldest first."""
        rows = await self.sql(
            "select id::text from transactions.transactions where user_id = $1 and type = $2 order by created_at, id",
            owner.id,
            kind,
        )
        return [id_ for (id_,) in rows]

    async def watch(self) -> None:
        """Keep a copy of each event from now on; the relay may carry the original away at any time."""
        await self.sql("create table transactions.seen (like transactions.outbox)")
        await self.sql(
            "create function transactions.note() returns trigger language plpgsql security definer as "
            "$$ begin insert into transactions.seen select new.*; return null; end $$"
        )
        await self.sql(
            "create trigger note after insert on transactions.outbox "
            "for each row execute function transactions.note()"
        )

    async def effects(self, *transaction_ids: str) -> dict[str, Effect]:
        """All that each transaction has left behind; only with `watch`."""
        return {row[0]: _effect(*row) for row in await self.sql(_EFFECTS, transaction_ids)}

    async def audited(self, *transaction_ids: str) -> dict[str, list[str]]:
        """What the audit says of each transaction, in the order of the sequence, once the outbox is empty."""
        told: dict[str, list[str]] = {id_: [] for id_ in transaction_ids}
        for document in await self.documents(*transaction_ids):
            told[document["subject"]].append(document["type"].split(".")[1])
        return told

    async def documents(self, *transaction_ids: str, schema: str = "transactions") -> list[dict[str, Any]]:
        """What is in an audit of the transactions, in the order of the sequence, once its outbox is empty."""

        async def drained() -> bool:
            return not await self.sql(f"select 1 from {schema}.outbox limit 1")  # noqa: S608 - a literal

        await eventually(drained, 30.0)
        found = await asyncio.to_thread(self._audit, schema, transaction_ids)
        return sorted(found, key=lambda document: int(document["sequence"]))

    def _audit(self, schema: str, transaction_ids: Collection[str]) -> list[dict[str, Any]]:
        with self._sandbox.mongo() as mongo:
            collection = mongo[self._sandbox.environment["MONGO_DB"]][f"{schema}_audit"]
            return list(collection.find({"subject": {"$in": list(transaction_ids)}}))

    async def assert_consistent(self, *, in_flight: bool = False) -> None:
        """What must always hold of the ledger, the transactions and the payments together.

        With `in_flight` the ledger may be ahead of a transaction that is pending.
        """
        assert await self.sql(_VIOLATIONS, in_flight) == []


# ------------------------------------------------------------------------------------------- the gateway's bundles

_TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def parcel(
    person: Person,
    source: str,
    target: str,
    amount: str,
    *,
    key: str | None = None,
    request_id: str = "request-1",
    content_type: str = "application/json",
    authorization: str | None = None,
    ip: str | None = None,
    **more: object,
) -> Parcel:
    """A transfer as the gateway hands it on, together with others."""
    wish = {
        "transaction_type": "transfer",
        "amount": amount,
        "currency": "USD",
        "from_wallet_id": source,
        "to_wallet_id": target,
    }
    return Parcel(
        json.dumps(wish | more).encode(),
        content_type,
        person.headers["Authorization"] if authorization is None else authorization,
        key,
        request_id,
        _TRACEPARENT,
        ip,
    )
