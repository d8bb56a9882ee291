"""What the ledger tells of what it did: each change once, in the subject's order, and nothing else."""

from typing import Any

import httpx

from shared.ids import new_id
from shared.testing.tokens import Person
from wallet_service.testing import LedgerClient, OpenWallet, Outbox, Rows, Told, posting

OUTSIDE = "external:stripe:USD"
TRACE = ("request-0123456789", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


def brief(events: list[Told]) -> list[tuple[int, str]]:
    return [(event.sequence, event.type) for event in events]


def side(wallet_id: str, owner: Person, amount: int, balance: int, version: int) -> dict[str, Any]:
    return {
        "wallet_id": wallet_id,
        "user_id": str(owner.id),
        "amount_minor": amount,
        "balance_minor": balance,
        "version": version,
    }


async def test_a_move_tells_both_wallets_and_no_system_account(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(bob)
    transfer = posting(alice, source, target, 60, fee_minor=4)

    await ledger.send(transfer, posting(alice, source, target, 60))
    await ledger.send(transfer)

    [event] = await outbox.of(transfer["id"])
    assert (event.type, event.sequence, event.actor) == ("wallets.posted.v1", 1, str(alice.id))
    assert event.data == {
        "posting_id": transfer["id"],
        "currency": "USD",
        "entries": [side(source, alice, -60, 40, 2), side(target, bob, 56, 56, 1)],
    }


async def test_money_from_outside_tells_of_the_wallet_alone(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    deposit = posting(alice, OUTSIDE, wallet_id, 60)

    await ledger.send(deposit)

    [event] = await outbox.of(deposit["id"])
    assert event.data["entries"] == [side(wallet_id, alice, 60, 60, 1)]


async def test_a_hold_is_the_first_event_and_its_end_the_second(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=100)
    paid, failed = posting(alice, wallet_id, OUTSIDE, 60), posting(alice, wallet_id, OUTSIDE, 30)

    for action in ("hold", "capture", "capture", "hold"):
        await ledger.send(paid | {"action": action})
    for action in ("hold", "release", "release", "capture", "hold"):
        await ledger.send(failed | {"action": action})

    held, posted = await outbox.of(paid["id"])
    kept, released = await outbox.of(failed["id"])
    assert brief([held, posted]) == [(1, "wallets.held.v1"), (2, "wallets.posted.v1")]
    assert brief([kept, released]) == [(1, "wallets.held.v1"), (2, "wallets.released.v1")]
    assert held.data == {
        "hold_id": paid["id"],
        "wallet_id": wallet_id,
        "user_id": str(alice.id),
        "currency": "USD",
        "amount_minor": 60,
        "balance_minor": 100,
        "held_minor": 60,
    }
    assert posted.data["entries"] == [side(wallet_id, alice, -60, 40, 2)]
    assert (kept.data["balance_minor"], kept.data["held_minor"]) == (40, 30)
    assert (released.data["amount_minor"], released.data["balance_minor"], released.data["held_minor"]) == (30, 40, 0)


async def test_a_hold_that_begins_and_ends_in_one_batch_tells_of_both(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=100)
    paid, failed = posting(alice, wallet_id, OUTSIDE, 60), posting(alice, wallet_id, OUTSIDE, 30)

    await ledger.send(
        *(item | {"action": action} for action in ("hold", "capture") for item in (paid,)),
        *(failed | {"action": action} for action in ("hold", "release")),
    )

    assert brief(await outbox.of(paid["id"])) == [(1, "wallets.held.v1"), (2, "wallets.posted.v1")]
    assert brief(await outbox.of(failed["id"])) == [(1, "wallets.held.v1"), (2, "wallets.released.v1")]


async def test_a_dispute_tells_of_the_money_and_in_the_wallets_own_order_of_the_freeze(
    client: httpx.AsyncClient, ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, admin = Person(), Person("admin")
    wallet_id, other = await open_wallet(alice, minor=100), await open_wallet(alice, "EUR", minor=100)
    first, second, third = (posting(alice, wallet_id, OUTSIDE, minor, action="dispute") for minor in (60, 60, 10))
    europe = posting(alice, other, "external:stripe:EUR", 10, "EUR", action="dispute")

    await ledger.send(first, second, europe)
    await ledger.send(first)
    await client.post(f"/wallets/{wallet_id}/unfreeze", headers=admin.headers)
    await ledger.send(third)

    wallet_events = await outbox.of(wallet_id)
    assert brief(wallet_events) == [
        (1, "wallets.created.v1"),
        (2, "wallets.frozen.v1"),
        (3, "wallets.unfrozen.v1"),
        (4, "wallets.frozen.v1"),
    ]
    assert wallet_events[1].data == {
        "wallet_id": wallet_id,
        "user_id": str(alice.id),
        "currency": "USD",
        "before": {"status": "active"},
    }
    assert brief(await outbox.of(other)) == [(1, "wallets.created.v1"), (2, "wallets.frozen.v1")]
    [taken], [rest], [owed] = [await outbox.of(item["id"]) for item in (first, second, third)]
    assert [event.data["entries"] for event in (taken, rest, owed)] == [
        [side(wallet_id, alice, -60, 40, 2)],
        [side(wallet_id, alice, -40, 0, 3)],
        [],
    ]


async def test_a_return_into_suspense_tells_of_no_wallet(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox, rows: Rows
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice)
    await rows("update accounts set status = 'closed' where id = $1::uuid", wallet_id)
    returned = posting(alice, OUTSIDE, wallet_id, 60, action="return")

    await ledger.send(returned)

    [event] = await outbox.of(returned["id"])
    assert (event.type, event.sequence, event.data["entries"]) == ("wallets.posted.v1", 1, [])


async def test_each_event_carries_the_trace_and_the_address_of_its_own_posting(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice = Person()
    wallet_id = await open_wallet(alice, minor=1_000)
    traces = [(f"{TRACE[0]}-{number}", TRACE[1].replace("b7-", f"{number}0-")) for number in range(4)]
    moved, held, captured, disputed = (posting(alice, wallet_id, OUTSIDE, 10, trace=trace) for trace in traces)
    captured |= {"id": held["id"]}
    moved["trace"], disputed["trace"] = (*traces[0], "203.0.113.7"), (*traces[3], None)
    untraced = posting(alice, wallet_id, OUTSIDE, 10)

    await ledger.send(
        moved,
        held | {"action": "hold"},
        captured | {"action": "capture"},
        untraced,
        disputed | {"action": "dispute"},
    )

    found = await outbox.of(moved["id"], held["id"], disputed["id"], wallet_id)
    assert [event.trace for event in found[1:]] == [*traces, traces[3]]
    assert [event.ip for event in found[1:]] == ["203.0.113.7", None, None, None, None]
    [event] = await outbox.of(untraced["id"])
    assert event.trace not in traces
    assert all(event.trace)


async def test_what_changes_nothing_tells_nothing(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox, rows: Rows
) -> None:
    alice = Person()
    wallet_id, target = await open_wallet(alice, minor=100), await open_wallet(Person())
    tombstone, short = posting(alice, wallet_id, OUTSIDE, 60), posting(alice, wallet_id, OUTSIDE, 101)
    before = await outbox.count()

    outcomes = await ledger.send_units(
        [posting(alice, wallet_id, target, 101)],
        [posting(alice, OUTSIDE, wallet_id, 5, action="check")],
        [posting(alice, OUTSIDE, target, 5, action="check")],
        [tombstone | {"action": "release"}],
        [tombstone | {"action": "release"}],
        [tombstone | {"action": "hold"}],
        [short | {"action": "hold"}],
        [short | {"action": "capture"}],
        [short | {"action": "release"}],
        [posting(alice, OUTSIDE, str(new_id()), 5, action="return")],
        [posting(alice, target, OUTSIDE, 5, action="dispute")],
        [posting(alice, wallet_id, target, 10), posting(alice, wallet_id, target, 101)],
    )

    assert all(isinstance(unit, list) for unit in outcomes)
    assert await outbox.count() == before


async def test_a_unit_tells_of_each_of_its_postings(
    ledger: LedgerClient, open_wallet: OpenWallet, outbox: Outbox
) -> None:
    alice, bob = Person(), Person()
    source, target = await open_wallet(alice, minor=100), await open_wallet(bob)
    unit = [posting(alice, source, target, minor) for minor in (10, 20)]

    await ledger.send_units(unit)

    events = [await outbox.of(item["id"]) for item in unit]
    assert [brief(found) for found in events] == [[(1, "wallets.posted.v1")]] * 2
    assert [found[0].data["entries"][0] for found in events] == [
        side(source, alice, -10, 90, 2),
        side(source, alice, -20, 70, 3),
    ]
