"""Deposits and transfers, as callers see them."""

import re

import httpx
import pytest

from shared.ids import new_id
from shared.testing.problems import text_without_ids
from shared.testing.tokens import Person
from transaction_service.testing import Bank

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def told(response: httpx.Response) -> dict[str, object]:
    """What a problem says, less what differs from call to call."""
    body = response.json()
    return {name: body[name] for name in body if name not in {"request_id", "transaction_id"}}


async def test_a_deposit_charges_the_method_and_credits_the_wallet(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    response = await bank.deposit(alice, wallet, 100.00, description="Initial deposit")

    assert response.status_code == 201
    body = response.json()
    assert RFC_3339.fullmatch(body.pop("created_at"))
    assert RFC_3339.fullmatch(body.pop("completed_at"))
    assert body == {
        "id": body["id"],
        "transaction_type": "deposit",
        "status": "completed",
        "amount": "100.00",
        "currency": "USD",
        "from_wallet_id": None,
        "to_wallet_id": wallet,
        "payment_method": "credit_card",
        "description": "Initial deposit",
        "metadata": {},
        "failure_code": None,
        "fee": None,
        "refunded_amount": "0.00",
        "original_transaction_id": None,
    }
    assert await bank.balances(wallet) == [10_000]
    assert await bank.sql(
        "select kind, provider, amount_minor, status from payments.payments where transaction_id = $1::uuid",
        body["id"],
    ) == [("charge", "stripe", 10_000, "succeeded")]


async def test_a_transfer_moves_money_between_two_people(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    response = await bank.transfer(alice, source, target, 50.00, metadata={"order": "6735"})

    assert (response.status_code, response.json()["status"]) == (201, "completed")
    assert response.json()["metadata"] == {"order": "6735"}
    assert await bank.balances(source, target) == [5_000, 5_000]


async def test_two_equal_transfers_without_a_key_are_two(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "100.00"), await bank.wallet(bob)

    for _ in range(2):
        assert (await bank.transfer(alice, source, target, "10.00")).status_code == 201

    assert await bank.balances(source, target) == [8_000, 2_000]


async def test_only_payer_payee_and_admin_see_a_transaction(bank: Bank) -> None:
    alice, bob, carol = Person(), Person(), Person()
    source, target = await bank.wallet(alice, "10.00"), await bank.wallet(bob)
    done = (await bank.transfer(alice, source, target, "4.00")).json()["id"]
    refused = (await bank.transfer(alice, source, target, "40.00")).json()["transaction_id"]

    async def seen(person: Person, transaction_id: str) -> int:
        return (await bank.client.get(f"/transactions/{transaction_id}", headers=person.headers)).status_code

    assert [await seen(person, done) for person in (alice, bob, carol, Person("admin"))] == [200, 200, 404, 200]
    assert [await seen(person, refused) for person in (alice, bob, carol, Person("admin"))] == [200, 404, 404, 200]
    assert (await bank.client.get(f"/transactions/{done}")).status_code == 401


async def test_the_list_is_newest_first_in_pages_and_holds_what_was_received(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "10.00"), await bank.wallet(bob)
    ids = [(await bank.transfer(alice, source, target, f"{n}.00")).json()["id"] for n in (1, 2, 3)]

    async def page(person: Person, **query: object) -> tuple[list[str], bool]:
        response = await bank.client.get("/transactions", params=dict(query), headers=person.headers)  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        return [item["id"] for item in response.json()["data"]], response.json()["has_more"]

    assert await page(bob) == (ids[::-1], False)
    assert await page(bob, limit=2) == ([ids[2], ids[1]], True)
    assert await page(bob, limit=2, starting_after=ids[1]) == ([ids[0]], False)
    assert await page(bob, limit=1, ending_before=ids[0]) == ([ids[1]], True)
    assert await page(bob, limit=2, ending_before=ids[0]) == ([ids[2], ids[1]], False)
    assert await page(Person("admin"), limit=1, ending_before=ids[1]) == ([ids[2]], False)
    assert (await page(Person()))[0] == []


@pytest.mark.parametrize(
    "query", ["limit=1000000000", "limit=0", "limit=101", "starting_after=$gt", "starting_after=1%20or%201=1"]
)
async def test_a_page_out_of_bounds_is_refused(bank: Bank, query: str) -> None:
    response = await bank.client.get(f"/transactions?{query}", headers=Person().headers)

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_a_page_after_somebody_elses_transaction_is_not_found(bank: Bank) -> None:
    alice, bob = Person(), Person()
    wallet = await bank.wallet(alice)
    theirs = (await bank.deposit(alice, wallet, "1.00")).json()["id"]

    response = await bank.client.get(f"/transactions?starting_after={theirs}", headers=bob.headers)

    assert (response.status_code, response.json()["code"]) == (404, "transaction_not_found")


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("pm_card_chargeDeclined", "card_declined"),
        ("pm_card_chargeDeclinedInsufficientFunds", "insufficient_funds"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card"),
        ("pm_card_nobodyKnows", "payment_method_unknown"),
    ],
)
async def test_a_declined_card_moves_nothing(bank: Bank, method: str, code: str) -> None:
    alice = Person()
    wallet = await bank.wallet(alice)

    response = await bank.deposit(alice, wallet, "10.00", payment_method=method)

    assert (response.status_code, response.json()["code"]) == (402, code)
    assert response.json()["detail"] == "The payment method was declined."
    transaction = await bank.ended(alice, response.json()["transaction_id"])
    assert (transaction["status"], transaction["failure_code"]) == ("failed", code)
    assert await bank.balances(wallet) == [0]


async def test_too_little_money_is_said_with_the_figures(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target = await bank.wallet(alice, "10.00"), await bank.wallet(bob)

    response = await bank.transfer(alice, source, target, "10.01")

    assert response.status_code == 402
    assert response.headers["content-type"] == "application/problem+json"
    assert told(response) == {
        "type": "urn:payment-system:error:insufficient_funds",
        "title": "Payment Required",
        "status": 402,
        "detail": "There is not enough money in the wallet.",
        "instance": "/transactions/create",
        "code": "insufficient_funds",
        "available": "10.00",
        "required": "10.01",
        "currency": "USD",
    }
    assert await bank.balances(source, target) == [1_000, 0]


async def test_somebody_elses_wallet_cannot_be_debited_and_looks_like_none(bank: Bank) -> None:
    alice, bob = Person(), Person()
    theirs, mine = await bank.wallet(alice, "10.00"), await bank.wallet(bob)
    before = await bank.ledger()

    foreign = await bank.transfer(bob, theirs, mine, "1.00")
    missing = await bank.transfer(bob, str(new_id()), mine, "1.00")
    into_nothing = await bank.transfer(alice, theirs, str(new_id()), "1.00")
    for_another = await bank.deposit(bob, theirs, "1.00")

    assert foreign.status_code == 404
    assert told(foreign) == told(missing) == told(into_nothing) == told(for_another)
    assert told(foreign)["code"] == "wallet_not_found"
    assert await bank.ledger() == before
    charges = await bank.sql("select status, decline_code from payments.payments where user_id = $1", bob.id)
    assert charges == [("declined", "voided")]


async def test_money_cannot_be_taken_from_nowhere(bank: Bank) -> None:
    """The id of a system account is no secret; as a wallet it does not exist."""
    alice = Person()
    wallet = await bank.wallet(alice, "10.00")
    [(external,)] = await bank.sql("select id::text from wallets.accounts where name = 'external:stripe:USD'")
    before = await bank.ledger()

    created = await bank.transfer(alice, external, wallet, "1000000.00")
    destroyed = await bank.transfer(alice, wallet, external, "1.00")
    deposited = await bank.deposit(alice, external, "1.00")

    for response in (created, destroyed, deposited):
        assert (response.status_code, response.json()["code"]) == (404, "wallet_not_found")
    assert await bank.ledger() == before


async def test_frozen_and_closed_wallets_and_other_currencies_are_refused(bank: Bank) -> None:
    alice, bob = Person(), Person()
    source, target, euros = (
        await bank.wallet(alice, "10.00"),
        await bank.wallet(bob),
        await bank.wallet(bob, "0.00", "EUR"),
    )
    frozen, closed = Person(), Person()
    iced, gone = await bank.wallet(frozen, "10.00"), await bank.wallet(closed)
    await bank.sql("update wallets.accounts set status = 'frozen' where id = $1::uuid", iced)
    await bank.sql("update wallets.accounts set status = 'closed' where id = $1::uuid", gone)
    before = await bank.ledger()

    refusals = [
        await bank.transfer(frozen, iced, target, "1.00"),
        await bank.transfer(alice, source, gone, "1.00"),
        await bank.deposit(closed, gone, "1.00"),
        await bank.transfer(alice, source, euros, "1.00"),
        await bank.transfer(alice, source, target, "1.00", currency="EUR"),
    ]

    assert [(response.status_code, response.json()["code"]) for response in refusals] == [
        (402, "wallet_frozen"),
        (402, "wallet_closed"),
        (402, "wallet_closed"),
        (422, "currency_mismatch"),
        (422, "currency_mismatch"),
    ]
    assert await bank.ledger() == before
    assert (await bank.transfer(alice, source, iced, "1.00")).status_code == 201


AMOUNTS = {
    "NaN": 400,
    "Infinity": 400,
    "-Infinity": 400,
    "1e400": 422,
    "true": 422,
    "null": 422,
    "[]": 422,
    "{}": 422,
    '""': 422,
    '"NaN"': 422,
    '"1_000"': 422,
    '"１００"': 422,
    '" 5 "': 422,
    '"+5"': 422,
    '"-5"': 422,
    '"1e3"': 422,
    '"0x10"': 422,
    '"5."': 422,
    '".5"': 422,
    '"5,00"': 422,
    "0": 422,
    '"0.00"': 422,
    "-0.0": 422,
    "-1": 422,
    "0.001": 422,
    "1.000": 422,
    "9223372036854775808": 422,
    "1234567890123456": 422,
    "12345678901234.567": 422,
    "9" * 5000: 422,
}


@pytest.mark.parametrize(("literal", "status"), AMOUNTS.items(), ids=lambda value: str(value)[:24])
async def test_what_is_no_amount_is_refused_without_an_echo(bank: Bank, literal: str, status: int) -> None:
    alice = Person()
    before = await bank.ledger()
    body = (
        f'{{"transaction_type": "deposit", "amount": {literal}, "currency": "USD", '
        f'"to_wallet_id": "{new_id()}", "payment_method": "credit_card"}}'
    )

    response = await bank.client.post(
        "/transactions/create", content=body.encode(), headers=alice.headers | {"Content-Type": "application/json"}
    )

    assert response.status_code == status
    if status == 422:
        [error] = response.json()["errors"]
        assert error["field"] == "amount"
        if len(literal.strip('"')) > 3:
            assert literal.strip('"') not in text_without_ids(response)
    assert await bank.ledger() == before
    assert await bank.sql("select 1 from transactions.transactions where user_id = $1", alice.id) == []


@pytest.mark.parametrize(
    ("currency", "amount", "minor"),
    [
        ("USD", "0.01", 1),
        ("JPY", "7", 7),
        ("KWD", "0.001", 1),
        ("USD", 9007199254740.93, 900719925474093),
        ("USD", "9999999999999.99", 999999999999999),
        ("KWD", "999999999999.999", 999999999999999),
    ],
)
async def test_amounts_are_exact_in_every_currency(bank: Bank, currency: str, amount: object, minor: int) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, currency=currency)

    response = await bank.deposit(alice, wallet, amount, currency=currency)

    assert response.status_code == 201, response.text
    assert await bank.balances(wallet) == [minor]


@pytest.mark.parametrize(
    ("currency", "amount"), [("USD", "10000000000000.00"), ("KWD", "999999999999999"), ("CLF", "999999999999999")]
)
async def test_more_than_the_largest_amount_is_refused(bank: Bank, currency: str, amount: str) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, currency=currency)

    response = await bank.deposit(alice, wallet, amount, currency=currency)

    assert response.status_code == 422
    assert [(error["field"], error["code"]) for error in response.json()["errors"]] == [("amount", "amount_too_long")]
    assert await bank.sql("select 1 from transactions.transactions where user_id = $1", alice.id) == []


async def test_a_wallet_that_is_full_gives_the_charge_back(bank: Bank) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, "9999999999999.00")

    response = await bank.deposit(alice, wallet, "1.00")

    assert (response.status_code, response.json()["code"]) == (402, "balance_limit")
    assert await bank.sql(
        "select kind, status from payments.payments where transaction_id = $1::uuid order by kind",
        response.json()["transaction_id"],
    ) == [("charge", "succeeded"), ("refund", "succeeded")]
    assert await bank.balances(wallet) == [999_999_999_999_900]


@pytest.mark.parametrize("amount", ["1.5", 1.5])
async def test_yen_have_no_decimals(bank: Bank, amount: object) -> None:
    alice = Person()
    wallet = await bank.wallet(alice, currency="JPY")

    response = await bank.deposit(alice, wallet, amount, currency="JPY")

    assert response.status_code == 422
    assert [error["code"] for error in response.json()["errors"]] == ["amount_too_precise"]


WALLET = "01980000-0000-7000-8000-000000000001"
TRANSFER = {
    "transaction_type": "transfer",
    "amount": "1.00",
    "currency": "USD",
    "from_wallet_id": WALLET,
    "to_wallet_id": "01980000-0000-7000-8000-000000000002",
}


@pytest.mark.parametrize(
    ("change", "field", "code"),
    [
        ({"transaction_type": "withdraw"}, "transaction_type", "choice_invalid"),
        ({"transaction_type": None}, "transaction_type", "choice_invalid"),
        ({"transaction_type": ["transfer"]}, "transaction_type", "choice_invalid"),
        ({"to_wallet_id": WALLET}, "to_wallet_id", "same_wallet"),
        ({"from_wallet_id": "external:stripe:USD"}, "from_wallet_id", "uuid_parsing"),
        ({"from_wallet_id": {"$ne": ""}}, "from_wallet_id", "uuid_type"),
        ({"status": "completed"}, "status", "extra_forbidden"),
        ({"payment_method": "credit_card"}, "payment_method", "extra_forbidden"),
        ({"currency": "BTC"}, "currency", "currency_unknown"),
        ({"description": "a\r\nb"}, "description", "text_invalid"),
        ({"description": "\x1b[31m"}, "description", "text_invalid"),
        ({"description": "x" * 501}, "description", "string_too_long"),
        ({"description": 5}, "description", "string_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "string_type"),
        ({"metadata": {str(n): "" for n in range(51)}}, "metadata", "too_many_keys"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_wrong_field_is_named_and_nothing_is_recorded(
    bank: Bank, change: dict[str, object], field: str, code: str
) -> None:
    alice = Person()

    response = await bank.create(alice, None, **(TRANSFER | change))

    assert response.status_code == 422
    assert [(error["field"], error["code"]) for error in response.json()["errors"]] == [(field, code)]
    assert await bank.sql("select 1 from transactions.transactions where user_id = $1", alice.id) == []


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"", "application/json", 400, "json_invalid"),
        (b"[", "application/json", 400, "json_invalid"),
        (b'{"amount": 1, "amount": 2}', "application/json", 400, "json_invalid"),
        (b"[" * 30_000, "application/json", 400, "json_invalid"),
        (b"\xff\xfe", "application/json", 400, "json_invalid"),
        (b"[]", "application/json", 422, "validation_failed"),
        (b"null", "application/json", 422, "validation_failed"),
        (b'"text"', "application/json", 422, "validation_failed"),
        (b'{"description": "\\ud800"}', "application/json", 422, "validation_failed"),
        (b'{"description": "\\u0000"}', "application/json", 422, "validation_failed"),
        (b"amount=1", "application/x-www-form-urlencoded", 415, "content_type_unsupported"),
        (b"<a/>", "", 415, "content_type_unsupported"),
        (b" " * 65_537, "application/json", 413, "body_too_large"),
    ],
    ids=range(13),
)
async def test_a_body_that_cannot_be_read_is_refused(
    bank: Bank, body: bytes, media_type: str, status: int, code: str
) -> None:
    headers = Person().headers | ({"Content-Type": media_type} if media_type else {})

    response = await bank.client.post("/transactions/create", content=body, headers=headers)

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
