"""Books that add up, written row by row as the services would have, for tests to falsify."""

from __future__ import annotations

import json
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import asyncpg

from shared.ids import new_id

USD: Final = "USD"
STRIPE: Final = "external:stripe:USD"
FEES: Final = "fees:USD"
PAYER_LOST: Final = "receivable:USD"


def ident(name: str) -> UUID:
    """The id of whatever is called so in these books."""
    return uuid5(NAMESPACE_URL, name)


class Books:
    """Writes accounts, transactions, postings, holds, payments and events, all of them two hours old and a second
    apart."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._seconds = 0
        self._accounts: dict[str, list[int]] = {}

    async def account(self, name: str) -> None:
        """A wallet, or a system account where the name has a colon."""
        system = ":" in name
        await self._execute(
            "insert into wallets.accounts (id, name, user_id, currency, created_at) values ($1, $2, $3, $4, {at})",
            ident(name),
            name if system else None,
            None if system else ident(f"{name}'s owner"),
            USD,
        )
        self._accounts[name] = [0, 0]
        if not system:
            await self.event("wallets", ident(name), "wallets.created.v1", 1)

    async def transaction(
        self,
        name: str,
        kind: str,
        amount: int,
        moves: dict[str, int] | None = None,
        *,
        status: str = "completed",
        source: str | None = None,
        target: str | None = None,
        fee: int = 0,
        original: str | None = None,
        original_kind: str | None = None,
        refusal: str | None = None,
        posted_as: int = 1,
    ) -> None:
        """A transaction with its posting (`moves`, or a refusal) and the events of both."""
        ended = status != "pending"
        await self._execute(
            "insert into transactions.transactions (id, type, status, user_id, from_wallet_id, to_wallet_id, "
            "amount_minor, currency, fee_minor, original_id, original_type, metadata, failure_code, event_sequence, "
            "created_at, completed_at) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, '{{}}', $12, 1, {at}, "
            + ("{at})" if ended else "null)"),
            ident(name),
            kind,
            status,
            ident(f"{source or target}'s owner"),
            ident(source) if source else None,
            ident(target) if target else None,
            amount,
            USD,
            fee,
            ident(original) if original else None,
            original_kind,
            "insufficient_funds" if status == "failed" else None,
        )
        await self.event("transactions", ident(name), f"transactions.{status}.v1", 1)
        if moves or refusal:
            await self._post(name, moves or {}, refusal, posted_as)

    async def hold(self, name: str, account: str, amount: int, status: str) -> None:
        """Money held for the transaction of this name, and the events of that."""
        ended_at = "null" if status == "open" else "{at}"
        await self._execute(
            "insert into wallets.holds (id, account_id, amount_minor, status, created_at, ended_at) "
            f"values ($1, $2, $3, $4, {{at}}, {ended_at})",
            ident(name),
            ident(account),
            amount,
            status,
        )
        await self.event("wallets", ident(name), "wallets.held.v1", 1)
        if status == "released":
            await self.event("wallets", ident(name), "wallets.released.v1", 2)
        if status == "open":
            await self._execute(
                "update wallets.accounts set held_minor = held_minor + $2 where id = $1", ident(account), amount
            )

    async def payment(
        self,
        name: str,
        kind: str,
        amount: int,
        status: str,
        *,
        original: str | None = None,
        reversal: str | None = None,
    ) -> None:
        """What a provider did for the transaction of this name; its own name is `charge of …`, and so on."""
        events = [] if status == "pending" else [status, *([reversal] if reversal else [])]
        await self._execute(
            "insert into payments.payments (id, transaction_id, kind, user_id, provider, method, amount_minor, "
            "currency, status, provider_reference, decline_code, original_id, event_sequence, reversal, "
            "reversed_minor, reversed_at, created_at, updated_at) "
            "values ($1, $2, $3, $2, 'stripe', 'pm_card_visa', $4, $5, $6, $7, $8, $9, $10, $11, $12, "
            + ("{at}" if reversal else "null")
            + ", {at}, {at})",
            ident(f"{kind} of {name}"),
            ident(name),
            kind,
            amount,
            USD,
            status,
            "reference" if status == "succeeded" else None,
            "card_declined" if status == "declined" else None,
            ident(original) if original else None,
            len(events),
            reversal,
            amount if reversal else None,
        )
        for sequence, event in enumerate(events, 1):
            await self.event("payments", ident(f"{kind} of {name}"), f"payments.{event}.v1", sequence)

    async def give_back(self, name: str, amount: int) -> None:
        """Say on the transaction that so much of it was given back."""
        await self._execute(
            "update transactions.transactions set refunded_minor = $2 where id = $1", ident(name), amount
        )

    async def key(self, name: str, user: str) -> None:
        """An idempotency key of the transaction."""
        await self._execute(
            "insert into transactions.idempotency_keys "
            "(user_id, operation, key, fingerprint, transaction_id, created_at) "
            "values ($1, 'transactions.create', $2, '', $3, {at})",
            ident(f"{user}'s owner"),
            name,
            ident(name),
        )

    async def event(self, schema: str, subject: UUID, kind: str, sequence: int) -> None:
        """An event that waits in the outbox."""
        payload = json.dumps({"id": str(new_id()), "type": kind, "subject": str(subject), "sequence": sequence})
        await self._execute(
            f"insert into {schema}.outbox (event_id, topic, key, payload) values ($1, $2, $3, $4)",
            UUID(json.loads(payload)["id"]),
            f"{schema}.events",
            str(subject),
            payload,
        )

    async def _post(self, name: str, moves: dict[str, int], refusal: str | None, sequence: int) -> None:
        await self._execute(
            "insert into wallets.postings (id, refusal, created_at) values ($1, $2, {at})", ident(name), refusal
        )
        if not moves:
            return
        rows = []
        for account, amount in moves.items():
            state = self._accounts[account]
            state[0] += amount
            state[1] += 1
            rows.append((ident(account), state[1], amount, state[0]))
        accounts, versions, amounts, balances = zip(*rows, strict=True)
        await self._execute(
            "insert into wallets.entries select a, v, $1, m, b, {at} "
            "from unnest($2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[]) as n (a, v, m, b)",
            ident(name),
            accounts,
            versions,
            amounts,
            balances,
        )
        await self._execute(
            "update wallets.accounts a set balance_minor = n.b, version = n.v, last_entry_at = {at} "
            "from unnest($1::uuid[], $2::bigint[], $3::bigint[]) as n (a, v, b) where a.id = n.a",
            accounts,
            versions,
            balances,
        )
        await self.event("wallets", ident(name), "wallets.posted.v1", sequence)

    async def _execute(self, sql: str, *arguments: Any) -> None:
        self._seconds += 1
        at = f"now() - interval '2 hours' + interval '{self._seconds} seconds'"
        await self._connection.execute(sql.format(at=at), *arguments)


async def write_books(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """A little of everything: each type of transaction, completed, failed and pending, and what comes back."""
    books = Books(connection)
    for name in ("alice", "bob", "carol", STRIPE, FEES, PAYER_LOST):
        await books.account(name)
    await _movements(books)
    await _outside(books)
    await _undone(books)
    await books.key("transfer", "alice")


async def _movements(books: Books) -> None:
    await books.transaction("deposit", "deposit", 10_000, {STRIPE: -10_000, "alice": 10_000}, target="alice")
    await books.payment("deposit", "charge", 10_000, "succeeded")
    await books.transaction("carol's", "deposit", 500, {STRIPE: -500, "carol": 500}, target="carol")
    await books.payment("carol's", "charge", 500, "succeeded")
    await books.transaction(
        "transfer", "transfer", 3_000, {"alice": -3_000, "bob": 3_000}, source="alice", target="bob"
    )
    await books.transaction("again", "transfer", 100, {"alice": -100, "bob": 100}, source="alice", target="bob")
    await books.transaction(
        "payment", "payment", 2_000, {"alice": -2_000, "bob": 1_950, FEES: 50}, source="alice", target="bob", fee=50
    )
    await books.transaction(
        "refund",
        "refund",
        700,
        {"bob": -700, "alice": 700},
        source="bob",
        target="alice",
        original="payment",
        original_kind="payment",
    )
    await books.transaction(
        "too much", "transfer", 9_999, status="failed", source="carol", target="bob", refusal="insufficient_funds"
    )


async def _outside(books: Books) -> None:
    await books.hold("withdrawal", "alice", 1_000, "captured")
    await books.transaction(
        "withdrawal", "withdrawal", 1_000, {"alice": -1_000, STRIPE: 1_000}, source="alice", posted_as=2
    )
    await books.payment("withdrawal", "payout", 1_000, "succeeded", reversal="returned")
    await books.hold("card refund", "alice", 400, "captured")
    await books.transaction(
        "card refund",
        "refund",
        400,
        {"alice": -400, STRIPE: 400},
        source="alice",
        original="deposit",
        original_kind="deposit",
        posted_as=2,
    )
    await books.payment("card refund", "refund", 400, "succeeded", original="deposit")
    await books.transaction("no card", "deposit", 800, status="failed", target="bob")
    await books.payment("no card", "charge", 800, "declined")
    await books.hold("no bank", "bob", 200, "released")
    await books.transaction("no bank", "withdrawal", 200, status="failed", source="bob")
    await books.payment("no bank", "payout", 200, "declined")
    await books.hold("waiting", "bob", 300, "open")
    await books.transaction("waiting", "withdrawal", 300, status="pending", source="bob")
    await books.payment("waiting", "payout", 300, "pending")


async def _undone(books: Books) -> None:
    await books.transaction("stolen", "deposit", 600, {STRIPE: -600, "carol": 600}, target="carol")
    await books.payment("stolen", "charge", 600, "succeeded", reversal="disputed")
    await books.transaction(
        "dispute",
        "dispute",
        600,
        {"carol": -500, PAYER_LOST: -100, STRIPE: 600},
        source="carol",
        original="stolen",
        original_kind="deposit",
    )
    await books.transaction(
        "return",
        "payout_return",
        1_000,
        {STRIPE: -1_000, "alice": 1_000},
        target="alice",
        original="withdrawal",
        original_kind="withdrawal",
    )
    await _undone_early(books)
    for name, minor in (("payment", 700), ("deposit", 400), ("stolen", 600), ("undecided", 250), ("lost", 350)):
        await books.give_back(name, minor)


async def _undone_early(books: Books) -> None:
    """Charges that were disputed before their deposits were decided: one still waits, one has failed since."""
    for name, amount, status in (("undecided", 250, "pending"), ("lost", 350, "failed")):
        refusal = "closed" if status == "failed" else None
        await books.transaction(name, "deposit", amount, status=status, target="carol", refusal=refusal)
        await books.payment(name, "charge", amount, "succeeded", reversal="disputed")
        await books.transaction(
            f"dispute of {name}",
            "dispute",
            amount,
            status=status,
            source="carol",
            original=name,
            original_kind="deposit",
        )
    await books.payment("lost", "refund", 350, "declined")
