"""Money from nowhere: system accounts have ids that anybody can compute, and are nobody's wallets all the same."""

import itertools
import uuid
from typing import Final

import pytest

from shared.testing.problems import without_ids
from tests.security.people import Actor, Books, newcomer
from wallet_service.domain import system_account

NAMES: Final = ("external:stripe:USD", "external:paypal:USD", "fees:USD", "suspense:USD", "receivable:USD")


def id_of(name: str) -> str:
    """A system account's id, as whoever reads the source knows it."""
    kind, _, rest = name.partition(":")
    return str(system_account(kind, rest).id)


@pytest.fixture(autouse=True)
async def money_has_come_from_outside(alice: Actor) -> None:
    """So that the account that stands for outside exists."""
    await alice.deposit(await alice.wallet())


@pytest.mark.parametrize("query", ["", "?x=1"], ids=["together", "alone"])
@pytest.mark.parametrize("kind", ["transfer", "payment"])
async def test_nobody_pays_themself_from_a_system_account(alice: Actor, books: Books, kind: str, query: str) -> None:
    mallory = await newcomer(alice.client, role="merchant")
    own = await mallory.wallet()
    before = await books.state(mallory)
    body = {"transaction_type": kind, "amount": "1000000.00", "currency": "USD", "to_wallet_id": own}

    stolen = [
        await mallory.call("POST", f"/transactions/create{query}", body | {"from_wallet_id": id_of(name)})
        for name in NAMES
    ]
    missing = await mallory.call("POST", f"/transactions/create{query}", body | {"from_wallet_id": str(uuid.uuid4())})

    assert missing.status_code == 404
    assert [without_ids(response) for response in stolen] == [without_ids(missing)] * len(NAMES)
    assert await books.state(mallory) == before


async def test_nobody_pays_into_a_system_account(alice: Actor, books: Books) -> None:
    [wallet] = (await alice.call("GET", "/wallets")).json()["data"]
    before = await books.state(alice)
    for name in NAMES:
        refused = [
            await alice.try_to("transfer", "1.00", from_wallet_id=wallet["id"], to_wallet_id=id_of(name)),
            await alice.try_to("payment", "1.00", from_wallet_id=wallet["id"], to_wallet_id=id_of(name)),
            await alice.try_to("deposit", "1.00", to_wallet_id=id_of(name), payment_method="credit_card"),
            await alice.try_to("withdrawal", "1.00", from_wallet_id=id_of(name), payment_method="bank_account"),
        ]
        assert [response.status_code for response in refused] == [404] * 4

    assert await books.state(alice) == before


async def test_a_system_account_is_nobodys_wallet_not_even_an_admins(
    alice: Actor, admin: Actor, books: Books
) -> None:
    """Frozen or closed it would stop everybody's money."""
    before = await books.state()
    for actor, name in itertools.product((alice, admin), NAMES):
        for method, path in (
            ("GET", ""),
            ("GET", "/balance"),
            ("GET", "/balance?at=2026-01-01T00:00:00Z"),
            ("GET", "/entries"),
            ("POST", "/freeze"),
            ("POST", "/unfreeze"),
            ("POST", "/close"),
        ):
            response = await actor.call(method, f"/wallets/{id_of(name)}{path}")
            assert (response.status_code, response.json()["code"]) == (404, "wallet_not_found"), path

    assert await books.state() == before


async def test_a_name_of_a_system_account_is_no_id(alice: Actor, books: Books) -> None:
    [wallet] = (await alice.call("GET", "/wallets")).json()["data"]
    before = await books.state()
    for name in (*NAMES, "external:any:USD", "EXTERNAL:STRIPE:USD"):
        for query in ("", "?x=1"):
            body = {"transaction_type": "transfer", "amount": "1.00", "currency": "USD"}
            wallets = {"from_wallet_id": name, "to_wallet_id": wallet["id"]}
            response = await alice.call("POST", f"/transactions/create{query}", body | wallets)
            assert response.status_code == 422

    assert await books.state() == before
