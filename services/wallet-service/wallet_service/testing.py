"""The ledger as tests call it, in the way transaction-service does, and what must always hold of its tables."""

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import httpx

from shared.ids import new_id
from shared.testing.tokens import Person, service_headers

Rows = Callable[..., Coroutine[Any, Any, list[tuple[Any, ...]]]]
OpenWallet = Callable[..., Coroutine[Any, Any, str]]

EVERYTHING: Final = """
select 'account', id::text, balance_minor, held_minor, version, status from accounts
union all select 'entry', account_id::text || posting_id::text, amount_minor, balance_minor, version, '' from entries
union all select 'hold', id::text, amount_minor, null, null, status from holds where account_id is not null
order by 1, 2
"""
"""Where money is, moves and is set aside. What is only remembered about a refusal is not in it."""

_VIOLATIONS: Final = """
with moved as (
    select e.*, a.currency,
        sum(e.amount_minor) over w as running, lag(e.created_at) over w as previous, row_number() over w as number
    from entries e left join accounts a on a.id = e.account_id
    window w as (partition by e.account_id order by e.version)
), sums as (
    select account_id, sum(amount_minor) as balance_minor, max(version) as version, max(created_at) as last_entry_at
    from entries group by account_id
), open_holds as (
    select account_id, sum(amount_minor) as held_minor from holds where status = 'open' group by account_id
)
select 'a currency does not sum to zero', currency from moved group by currency having sum(amount_minor) <> 0
union all
select 'a posting does not balance', posting_id::text from moved
    group by posting_id having sum(amount_minor) <> 0 or count(distinct currency) <> 1 or bool_or(currency is null)
union all
select 'a balance after an entry is not the sum so far', posting_id::text from moved where running <> balance_minor
union all
select 'versions have a gap', posting_id::text from moved where number <> version
union all
select 'time runs backwards', posting_id::text from moved where created_at < previous
union all
select 'a balance is not the sum of the entries', a.id::text from accounts a left join sums s on s.account_id = a.id
    where (a.balance_minor, a.version) <> (coalesce(s.balance_minor, 0), coalesce(s.version, 0))
        or a.last_entry_at is distinct from s.last_entry_at
union all
select 'held is not the sum of the open holds', a.id::text
    from accounts a left join open_holds h on h.account_id = a.id
    where a.held_minor <> coalesce(h.held_minor, 0)
union all
select 'a wallet is overdrawn', id::text from accounts
    where user_id is not null and (balance_minor < 0 or held_minor < 0 or balance_minor < held_minor)
union all
select 'a closed wallet is not empty', id::text from accounts
    where user_id is not null and status = 'closed' and (balance_minor <> 0 or held_minor <> 0)
union all
select 'a posting is applied without entries, or refused with them', coalesce(p.id, e.posting_id)::text
    from postings p full join (select distinct posting_id from entries) e on e.posting_id = p.id
    where p.id is null or (p.refusal is null) <> (e.posting_id is not null)
union all
select 'a captured hold has no entries', h.id::text from holds h
    where status = 'captured' and not exists (select from entries e where e.posting_id = h.id)
"""


async def assert_sound(rows: Rows) -> None:
    """The ledger's invariants hold, of all that there is."""
    violations = await rows(_VIOLATIONS)
    assert violations == []


class LedgerClient:
    """Calls the ledger as transaction-service does."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def send(self, *postings: dict[str, Any]) -> list[dict[str, Any]]:
        """The outcomes of one batch of postings that stand each for itself."""
        return [outcome for [outcome] in await self.send_units(*([posting] for posting in postings))]

    async def send_units(self, *units: list[dict[str, Any]]) -> list[Any]:
        """For each unit its outcomes, or its trouble."""
        response = await self._client.post(
            "/internal/postings",
            json={"units": units},
            headers=service_headers("transaction-service", "wallet-service"),
        )
        assert response.status_code == 200, response.text
        outcomes: list[Any] = response.json()["outcomes"]
        return outcomes

    async def fund(self, owner: Person, wallet_id: str, minor: int, currency: str = "USD") -> None:
        """Put money from outside into a wallet."""
        [outcome] = await self.send(posting(owner, f"external:stripe:{currency}", wallet_id, minor, currency))
        assert outcome["status"] == "applied"


def posting(
    caller: Person,
    source: str,
    target: str,
    minor: int,
    currency: str = "USD",
    posting_id: UUID | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A posting as it goes over the wire; a move, unless `more` says otherwise."""
    return {
        "id": str(posting_id or new_id()),
        "action": "move",
        "user_id": str(caller.id),
        "source": source,
        "target": target,
        "amount_minor": minor,
        "currency": currency,
    } | more


@dataclass(frozen=True)
class Told:
    """An event as it was put into the outbox."""

    type: str
    subject: str
    sequence: int
    data: dict[str, Any]
    actor: str
    trace: tuple[str, str]
    ip: str | None


class Outbox:
    """Everything that ever was put into the outbox; the relay may carry a row away at any time."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def watch(self) -> None:
        """Keep a copy of each row that is written from now on."""
        for statement in (
            "create table seen (number bigint generated always as identity, payload jsonb not null, ip text)",
            "create function note() returns trigger language plpgsql security definer as "
            "$$ begin insert into wallets.seen (payload, ip) values (new.payload::jsonb, new.ip); "
            "return null; end $$",
            "create trigger note after insert on outbox for each row execute function note()",
        ):
            await self._rows(statement)

    async def of(self, *subjects: str) -> list[Told]:
        """The events of these subjects, in the order in which they were written."""
        found = await self._rows(
            "select payload::text, ip from seen where payload ->> 'subject' = any($1) order by number", list(subjects)
        )
        events = [(json.loads(payload), ip) for payload, ip in found]
        return [
            Told(
                event["type"],
                event["subject"],
                event["sequence"],
                event["data"],
                event["actor"],
                (event["requestid"], event["traceparent"]),
                ip,
            )
            for event, ip in events
        ]

    async def count(self) -> int:
        """How many events there were."""
        [(count,)] = await self._rows("select count(*) from seen")
        return int(count)
