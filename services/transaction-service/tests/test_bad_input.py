"""What is not in the contract is refused with the right status and code, says which field, and moves nothing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest

from shared.testing.problems import text_without_ids
from shared.testing.sandbox import Sandbox
from shared.testing.servers import in_process
from shared.testing.tokens import Person
from shared.testing.waiting import eventually
from transaction_service.app import create_app
from transaction_service.settings import TransactionSettings
from transaction_service.testing import Bank, Neighbour

NEVER = "pm_usBankAccount_processing"
Told = tuple[int, str, tuple[tuple[str, str], ...]]


@pytest.fixture(scope="module")
def provider_times() -> dict[str, float]:
    return {"sandbox_settle_seconds": 0.2, "sandbox_reversal_seconds": 0.2}


@pytest.fixture(scope="module")
async def bank(sandbox: Sandbox, wallet_service: Neighbour, payment_gateway: Neighbour) -> AsyncIterator[Bank]:
    settings = sandbox.settings(
        TransactionSettings,
        wallet_service_url=wallet_service.url,
        payment_gateway_url=payment_gateway.url,
        payment_fee_bps=250,
    )
    async with in_process(create_app(settings)) as client:
        yield Bank(client, wallet_service.url, sandbox)


def told(answer: httpx.Response) -> Told:
    body = answer.json()
    return answer.status_code, body["code"], tuple((e["field"], e["code"]) for e in body.get("errors", ()))


def wrong(field: str, code: str) -> Told:
    return 422, "validation_failed", ((field, code),)


# ----------------------------------------------------------------------------------------------- what must not change


ON_RECORD = ("transactions.transactions", "transactions.idempotency_keys", "wallets.postings", "wallets.holds")
MONEY = ("wallets.accounts", "wallets.entries")


async def rows(bank: Bank, *queries: str) -> list[list[tuple[Any, ...]]]:
    return [await bank.sql(f"select t::text from {query} t order by 1") for query in queries]


@asynccontextmanager
async def nothing_on_record(bank: Bank) -> AsyncIterator[None]:
    """Not a byte in any table changes."""
    # The provider of what waits is asked again and again, whoever calls.
    payments = "(select to_jsonb(p) - 'next_check_at' as payment from payments.payments p)"
    tables = (*MONEY, *ON_RECORD, payments)
    before = await rows(bank, *tables)
    yield
    assert await rows(bank, *tables) == before


@asynccontextmanager
async def nothing_moved(bank: Bank) -> AsyncIterator[None]:
    """Refusals may be remembered; no byte of what is anybody's money changes."""
    tables = (
        *MONEY,
        "(select * from wallets.postings where refusal is null)",
        "(select * from wallets.holds where account_id is not null)",
        "(select * from payments.payments where status <> 'declined')",
        "(select id, refunded_minor from transactions.transactions where status = 'completed')",
    )
    before = await rows(bank, *tables)
    yield
    assert await rows(bank, *tables) == before


# --------------------------------------------------------------------------------------------------------- the people


@dataclass(frozen=True)
class People:
    """Alice with 100 dollars and some euros, Bob, a shop, and what they have done with each other."""

    alice: Person
    bob: Person
    shop: Person
    hers: str
    euros: str
    his: str
    till: str
    deposit: str
    payment: str
    transfer: str

    def body(self, kind: str) -> dict[str, Any]:
        """A create of Alice's that would do."""
        common = {"transaction_type": kind, "amount": "1.00", "currency": "USD"}
        return common | {
            "deposit": {"to_wallet_id": self.hers, "payment_method": "credit_card"},
            "withdrawal": {"from_wallet_id": self.hers, "payment_method": "bank_account"},
            "transfer": {"from_wallet_id": self.hers, "to_wallet_id": self.his},
            "payment": {"from_wallet_id": self.hers, "to_wallet_id": self.till},
        }.get(kind, {})


@pytest.fixture(scope="module")
async def people(bank: Bank) -> People:
    alice, bob, shop = Person(), Person(), Person("merchant")
    hers, euros = await bank.wallet(alice), await bank.wallet(alice, "50.00", "EUR")
    his, till = await bank.wallet(bob, "5.00"), await bank.wallet(shop, "5.00")
    deposit = (await bank.deposit(alice, hers, "120.00")).json()["id"]
    payment = (await bank.payment(alice, hers, till, "10.00")).json()["id"]
    transfer = (await bank.transfer(alice, hers, his, "10.00")).json()["id"]
    return People(alice, bob, shop, hers, euros, his, till, deposit, payment, transfer)


# ------------------------------------------------------------------------------------------------------------- fields

JSON_INVALID: Told = (400, "json_invalid", ())
AMOUNTS: dict[str, Told] = {
    "NaN": JSON_INVALID,
    "Infinity": JSON_INVALID,
    "-Infinity": JSON_INVALID,
    "1.": JSON_INVALID,
    ".5": JSON_INVALID,
    "01": JSON_INVALID,
    "0x10": JSON_INVALID,
    "1_000": JSON_INVALID,
    "1e400": wrong("amount", "amount_too_long"),
    "1e2": wrong("amount", "amount_too_long"),
    "true": wrong("amount", "amount_invalid"),
    "[1]": wrong("amount", "amount_invalid"),
    '{"minor": 1}': wrong("amount", "amount_invalid"),
    '""': wrong("amount", "amount_invalid"),
    '"NaN"': wrong("amount", "amount_invalid"),
    '"Infinity"': wrong("amount", "amount_invalid"),
    '"1_000"': wrong("amount", "amount_invalid"),
    '"１００"': wrong("amount", "amount_invalid"),
    '" 5 "': wrong("amount", "amount_invalid"),
    '"5\\n"': wrong("amount", "amount_invalid"),
    '"+5"': wrong("amount", "amount_invalid"),
    '"-5"': wrong("amount", "amount_invalid"),
    '"1e3"': wrong("amount", "amount_invalid"),
    '"1,00"': wrong("amount", "amount_invalid"),
    '"$1"': wrong("amount", "amount_invalid"),
    "0": wrong("amount", "amount_not_positive"),
    "0.00": wrong("amount", "amount_not_positive"),
    '"0.00"': wrong("amount", "amount_not_positive"),
    "-0.0": wrong("amount", "amount_not_positive"),
    "-1": wrong("amount", "amount_not_positive"),
    "0.001": wrong("amount", "amount_too_precise"),
    '"1.000"': wrong("amount", "amount_too_precise"),
    "9223372036854775808": wrong("amount", "amount_too_long"),
    "10000000000000.00": wrong("amount", "amount_too_long"),
    "9" * 5000: wrong("amount", "amount_too_long"),
}


@pytest.mark.parametrize("kind", ["deposit", "withdrawal", "transfer", "payment", "refund"])
async def test_an_amount_that_is_none_is_refused_by_every_operation(bank: Bank, people: People, kind: str) -> None:
    path = f"/transactions/{people.deposit}/refund" if kind == "refund" else "/transactions/create"
    body = {name: value for name, value in people.body(kind).items() if name != "amount"} if kind != "refund" else {}
    rest = json.dumps(body)[1:-1]
    headers = people.alice.headers | {"Content-Type": "application/json", "Idempotency-Key": "k"}
    expected = AMOUNTS if kind == "refund" else AMOUNTS | {"null": wrong("amount", "amount_invalid")}

    async with nothing_on_record(bank):
        found = {}
        for literal in expected:
            content = f'{{"amount": {literal}{", " if rest else ""}{rest}}}'.encode()
            answer = await bank.client.post(path, content=content, headers=headers)
            found[literal] = told(answer)
            assert len(literal.strip('"')) < 4 or literal.strip('"') not in text_without_ids(answer), (
                "the value is echoed"
            )

    assert found == expected


ODD_UUIDS = {"": "uuid_parsing", "external:stripe:USD": "uuid_parsing", "1": "uuid_parsing"}
METADATA: list[tuple[Any, str, str]] = [
    ({str(n): "" for n in range(51)}, "metadata", "too_many_keys"),
    ({"k" * 41: ""}, f"metadata.{'k' * 41}.[key]", "string_too_long"),
    ({"": ""}, "metadata..[key]", "string_too_short"),
    ({"k": "v" * 501}, "metadata.k", "string_too_long"),
    ({"k": 5}, "metadata.k", "string_type"),
    ({"k": None}, "metadata.k", "string_type"),
    ({"k": {"deep": ""}}, "metadata.k", "string_type"),
    ({"k": "a\r\nb"}, "metadata.k", "text_invalid"),
    ([], "metadata", "dict_type"),
    (None, "metadata", "dict_type"),
]
ANY_TYPE: list[tuple[dict[str, Any], Told]] = [
    *(({"metadata": value}, wrong(field, code)) for value, field, code in METADATA),
    ({"description": "x" * 501}, wrong("description", "string_too_long")),
    ({"description": "a\nb"}, wrong("description", "text_invalid")),
    ({"description": "\u001b[31m"}, wrong("description", "text_invalid")),
    ({"description": ["x"]}, wrong("description", "string_type")),
    ({"status": "completed"}, wrong("status", "extra_forbidden")),
    ({"user_id": str(uuid4())}, wrong("user_id", "extra_forbidden")),
    ({"id": str(uuid4())}, wrong("id", "extra_forbidden")),
    ({"fee": "0.00"}, wrong("fee", "extra_forbidden")),
    ({"fee_minor": 0}, wrong("fee_minor", "extra_forbidden")),
    ({"original_transaction_id": None}, wrong("original_transaction_id", "extra_forbidden")),
]
CREATE: list[tuple[dict[str, Any], Told]] = [
    *ANY_TYPE,
    ({"currency": "usd"}, wrong("currency", "currency_unknown")),
    ({"currency": "BTC"}, wrong("currency", "currency_unknown")),
    ({"currency": "XAU"}, wrong("currency", "currency_unknown")),
    ({"currency": None}, wrong("currency", "string_type")),
    ({"currency": ...}, wrong("currency", "missing")),
    ({"amount": ...}, wrong("amount", "missing")),
    ({"transaction_type": ...}, wrong("transaction_type", "choice_invalid")),
    *(
        ({"transaction_type": kind}, wrong("transaction_type", "choice_invalid"))
        for kind in ("refund", "payout_return", "dispute", "Transfer", "", None, 1)
    ),
]
METHOD: list[tuple[dict[str, Any], Told]] = [
    ({"payment_method": ...}, wrong("payment_method", "missing")),
    ({"payment_method": None}, wrong("payment_method", "string_type")),
    *(
        ({"payment_method": method}, wrong("payment_method", "string_pattern_mismatch"))
        for method in ("", "cash", "pm_", "pm_" + "x" * 61, "credit_card\n", "4242424242424242", "pm_\u00e9")
    ),
]


def wallet_field(field: str) -> list[tuple[dict[str, Any], Told]]:
    return [
        ({field: ...}, wrong(field, "missing")),
        ({field: None}, wrong(field, "uuid_type")),
        ({field: 1}, wrong(field, "uuid_type")),
        *(({field: value}, wrong(field, code)) for value, code in ODD_UUIDS.items()),
    ]


def unknown_field(field: str) -> tuple[dict[str, Any], Told]:
    return {field: str(uuid4())}, wrong(field, "extra_forbidden")


FIELDS: dict[str, list[tuple[dict[str, Any], Told]]] = {
    "deposit": [*CREATE, *METHOD, *wallet_field("to_wallet_id"), unknown_field("from_wallet_id")],
    "withdrawal": [*CREATE, *METHOD, *wallet_field("from_wallet_id"), unknown_field("to_wallet_id")],
    "transfer": [
        *CREATE,
        *wallet_field("from_wallet_id"),
        *wallet_field("to_wallet_id"),
        unknown_field("payment_method"),
    ],
    "payment": [
        *CREATE,
        *wallet_field("from_wallet_id"),
        *wallet_field("to_wallet_id"),
        unknown_field("payment_method"),
    ],
    "refund": [
        *ANY_TYPE,
        *map(unknown_field, ("from_wallet_id", "to_wallet_id", "payment_method", "currency", "transaction_type")),
    ],
}


@pytest.mark.parametrize("kind", FIELDS)
async def test_a_wrong_field_is_named_by_every_operation(bank: Bank, people: People, kind: str) -> None:
    found, expected = [], []

    async with nothing_on_record(bank):
        for change, answer in FIELDS[kind]:
            body = {n: v for n, v in (people.body(kind) | change).items() if v is not ...}
            if kind == "refund":
                body = change
                said = await bank.refund(people.alice, people.deposit, "k", **body)
            else:
                said = await bank.create(people.alice, "k", **body)
            found.append((str(change)[:60], told(said)))
            expected.append((str(change)[:60], answer))

    assert found == expected


async def test_a_wallet_cannot_pay_itself_however_its_id_is_written(bank: Bank, people: People) -> None:
    async with nothing_on_record(bank):
        for kind in ("transfer", "payment"):
            for same in (people.hers, people.hers.upper(), people.hers.replace("-", "")):
                body = people.body(kind) | {"to_wallet_id": same}
                assert told(await bank.create(people.alice, **body)) == wrong("to_wallet_id", "same_wallet")


# ------------------------------------------------------------------------------------------------------------ wallets


async def set_status(bank: Bank, wallet: str, status: str) -> None:
    await bank.sql("update wallets.accounts set status = $2 where id = $1::uuid", wallet, status)


REFUSED_WALLETS: list[tuple[str, dict[str, str], int, str]] = [
    # operation, which wallets (a name of a field of People, or `nobody`), status, code
    ("deposit", {"to_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("deposit", {"to_wallet_id": "his"}, 404, "wallet_not_found"),
    ("deposit", {"to_wallet_id": "euros"}, 422, "currency_mismatch"),
    ("withdrawal", {"from_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("withdrawal", {"from_wallet_id": "his"}, 404, "wallet_not_found"),
    ("withdrawal", {"from_wallet_id": "euros"}, 422, "currency_mismatch"),
    ("transfer", {"from_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("transfer", {"from_wallet_id": "his", "to_wallet_id": "hers"}, 404, "wallet_not_found"),
    ("transfer", {"from_wallet_id": "euros"}, 422, "currency_mismatch"),
    ("transfer", {"to_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("transfer", {"to_wallet_id": "euros"}, 422, "currency_mismatch"),
    ("payment", {"from_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("payment", {"from_wallet_id": "his"}, 404, "wallet_not_found"),
    ("payment", {"from_wallet_id": "euros"}, 422, "currency_mismatch"),
    ("payment", {"to_wallet_id": "nobody"}, 404, "wallet_not_found"),
    ("payment", {"to_wallet_id": "his"}, 422, "not_a_merchant"),
    ("payment", {"to_wallet_id": "euros"}, 422, "not_a_merchant"),
]


async def test_wallets_that_are_unknown_foreign_or_in_another_currency_are_refused(
    bank: Bank, people: People
) -> None:
    found = []

    async with nothing_moved(bank):
        for kind, wallets, _, _ in REFUSED_WALLETS:
            change = {field: getattr(people, name, str(uuid4())) for field, name in wallets.items()}
            answer = await bank.create(people.alice, **(people.body(kind) | change))
            found.append((kind, wallets, answer.status_code, answer.json()["code"]))

    assert found == REFUSED_WALLETS


@pytest.mark.parametrize(
    ("kind", "wallet", "frozen", "closed"),
    [
        ("deposit", "hers", None, "wallet_closed"),
        ("withdrawal", "hers", "wallet_frozen", "wallet_closed"),
        ("transfer", "hers", "wallet_frozen", "wallet_closed"),
        ("transfer", "his", None, "wallet_closed"),
        ("payment", "hers", "wallet_frozen", "wallet_closed"),
        ("payment", "till", None, "wallet_closed"),
        ("refund", "till", "wallet_frozen", "wallet_closed"),
        ("refund", "hers", None, "wallet_closed"),
    ],
)
async def test_a_frozen_wallet_only_receives_and_a_closed_one_does_nothing(
    bank: Bank, people: People, kind: str, wallet: str, frozen: str | None, closed: str
) -> None:
    async def ask() -> httpx.Response:
        if kind == "refund":
            return await bank.refund(people.shop, people.payment, amount="0.10")
        return await bank.create(people.alice, **people.body(kind))

    wallet_id = getattr(people, wallet)
    try:
        for status, code in (("frozen", frozen), ("closed", closed)):
            await set_status(bank, wallet_id, status)
            if code is None:
                assert (await ask()).status_code == 201
            else:
                async with nothing_moved(bank):
                    assert told(await ask()) == (402, code, ())
    finally:
        await set_status(bank, wallet_id, "active")


async def test_more_than_there_is_is_refused_with_the_figures(bank: Bank, people: People) -> None:
    [(balance,)] = await bank.sql("select balance_minor from wallets.accounts where id = $1::uuid", people.hers)
    too_much = f"{(balance + 1) // 100}.{(balance + 1) % 100:02d}"

    async with nothing_moved(bank):
        for kind in ("withdrawal", "transfer", "payment"):
            answer = await bank.create(people.alice, **(people.body(kind) | {"amount": too_much}))
            assert told(answer) == (402, "insufficient_funds", ())
            assert (answer.json()["required"], answer.json()["currency"]) == (too_much, "USD")
            assert answer.json()["available"] == f"{balance // 100}.{balance % 100:02d}"


# --------------------------------------------------------------------------------- what cannot be refunded or stopped


async def test_what_cannot_be_given_back_or_stopped_is_refused(bank: Bank, people: People) -> None:
    alice, bob, shop, admin = people.alice, people.bob, people.shop, Person("admin")
    refund = (await bank.refund(shop, people.payment, amount="1.00")).json()["id"]
    withdrawal = (await bank.withdraw(alice, people.hers, "1.00")).json()["id"]
    waiting = (await bank.withdraw(alice, people.hers, "1.00", payment_method=NEVER)).json()["id"]
    due = (await bank.deposit(alice, people.hers, "1.00", payment_method=NEVER)).json()["id"]
    declined = await bank.deposit(alice, people.hers, "1.00", payment_method="pm_card_chargeDeclined")
    failed = declined.json()["transaction_id"]
    await bank.leave_alone(waiting, due)
    missing = str(uuid4())
    not_found = (404, "transaction_not_found", ())
    not_refundable = (409, "transaction_not_refundable", ())
    not_cancellable = (409, "transaction_not_cancellable", ())
    exceeds = (409, "refund_exceeds_remaining", ())
    refunds: list[tuple[Person, str, dict[str, Any], Told]] = [
        (alice, missing, {}, not_found),
        (bob, people.payment, {}, not_found),
        (bob, people.deposit, {}, not_found),
        (alice, people.payment, {}, (403, "forbidden", ())),
        (alice, people.transfer, {}, (403, "forbidden", ())),
        (admin, people.payment, {}, (403, "forbidden", ())),
        (admin, people.deposit, {}, (403, "forbidden", ())),
        (shop, refund, {}, not_refundable),
        (alice, refund, {}, not_refundable),
        (alice, withdrawal, {}, not_refundable),
        (alice, due, {}, not_refundable),
        (alice, failed, {}, not_refundable),
        (bob, people.transfer, {"amount": "10.01"}, exceeds),
        (shop, people.payment, {"amount": "10.00"}, exceeds),
        (alice, people.deposit, {"amount": "9999999999999.99"}, exceeds),
        (alice, "not-an-id", {}, wrong("transaction_id", "uuid_parsing")),
    ]
    cancels: list[tuple[Person, str, Told]] = [
        (alice, missing, not_found),
        (bob, waiting, not_found),
        (admin, waiting, not_found),
        (shop, people.payment, not_found),
        (alice, people.payment, not_cancellable),
        (alice, people.transfer, not_cancellable),
        (alice, people.deposit, not_cancellable),
        (alice, withdrawal, not_cancellable),
        (alice, failed, not_cancellable),
        (shop, refund, not_cancellable),
        (alice, "1 or 1=1", wrong("transaction_id", "uuid_parsing")),
    ]

    async with nothing_on_record(bank):
        for index, (caller, id_, body, expected) in enumerate(refunds):
            assert told(await bank.refund(caller, id_, "k", **body)) == expected, index
        for index, (caller, id_, expected) in enumerate(cancels):
            assert told(await bank.cancel(caller, id_)) == expected, index
        assert (await bank.refund(bob, people.transfer, amount="10.01")).json()["remaining"] == "10.00"
    for pending in (waiting, due):
        assert (await bank.cancel(alice, pending)).status_code == 200


async def test_without_a_token_nothing_is_told_or_done(bank: Bank, people: People) -> None:
    async with nothing_on_record(bank):
        for call in (
            bank.client.post("/transactions/create", json=people.body("transfer")),
            bank.client.post(f"/transactions/{people.deposit}/refund", json={}),
            bank.client.post(f"/transactions/{people.deposit}/cancel"),
            bank.client.get("/transactions"),
            bank.client.get(f"/transactions/{people.deposit}"),
        ):
            assert told(await call) == (401, "unauthorized", ())


# ----------------------------------------------------------------------------------------------------------- the list

FILTERS: dict[str, Told] = {
    "min_amount=1": wrong("min_amount", "currency_missing"),
    "max_amount=1": wrong("max_amount", "currency_missing"),
    "currency=usd": wrong("currency", "currency_unknown"),
    "currency=": wrong("currency", "currency_unknown"),
    "currency=USD&min_amount=NaN": wrong("min_amount", "amount_invalid"),
    "currency=USD&max_amount=Infinity": wrong("max_amount", "amount_invalid"),
    "currency=USD&min_amount=-1": wrong("min_amount", "amount_invalid"),
    "currency=USD&min_amount=1e3": wrong("min_amount", "amount_invalid"),
    "currency=USD&min_amount=0": wrong("min_amount", "amount_not_positive"),
    "currency=USD&min_amount=1.001": wrong("min_amount", "amount_too_precise"),
    "currency=JPY&max_amount=1.5": wrong("max_amount", "amount_too_precise"),
    "currency=USD&max_amount=10000000000000.00": wrong("max_amount", "amount_too_long"),
    "created_from=2026-01-01T00:00:00": wrong("created_from", "instant_invalid"),
    "created_from=2026-01-01": wrong("created_from", "instant_invalid"),
    "created_to=1700000000": wrong("created_to", "instant_invalid"),
    "created_to=NaN": wrong("created_to", "instant_invalid"),
    "created_from=0001-01-01T00:00:00%2B14:00": wrong("created_from", "instant_invalid"),
    "created_to=9999-12-31T23:59:59-14:00": wrong("created_to", "instant_invalid"),
    "limit=0": wrong("limit", "greater_than_equal"),
    "limit=-1": wrong("limit", "greater_than_equal"),
    "limit=101": wrong("limit", "less_than_equal"),
    "limit=1.5": wrong("limit", "int_parsing"),
    "limit=": wrong("limit", "int_parsing"),
    "transaction_type=charge": wrong("transaction_type", "literal_error"),
    "transaction_type=DEPOSIT": wrong("transaction_type", "literal_error"),
    "transaction_type[$ne]=deposit": wrong("transaction_type[$ne]", "extra_forbidden"),
    "status=done": wrong("status", "literal_error"),
    "wallet_id=1": wrong("wallet_id", "uuid_parsing"),
    "starting_after=1": wrong("starting_after", "uuid_parsing"),
    "ending_before=1": wrong("ending_before", "uuid_parsing"),
    "starting_after=01a20f1e-f899-7221-bc93-c532fbbe2a93&ending_before=01a20f1e-f899-7221-bc93-c532fbbe2a93": wrong(
        "ending_before", "two_cursors"
    ),
    "user_id=1": wrong("user_id", "extra_forbidden"),
    "offset=1": wrong("offset", "extra_forbidden"),
    "status=%00": (400, "url_invalid", ()),
}


async def test_a_filter_that_is_none_is_refused(bank: Bank) -> None:
    headers = Person().headers

    found = {query: told(await bank.client.get(f"/transactions?{query}", headers=headers)) for query in FILTERS}

    assert found == FILTERS


async def listed(bank: Bank, caller: Person, **query: Any) -> list[str]:
    answer = await bank.client.get("/transactions", params=query, headers=caller.headers)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["data"]]


async def test_the_filters_find_what_they_name_and_nothing_else(bank: Bank) -> None:
    alice, bob = Person(), Person()
    hers, yen, his = await bank.wallet(alice), await bank.wallet(alice, currency="JPY"), await bank.wallet(bob)
    hundred = (await bank.deposit(alice, hers, "100.00")).json()
    yens = (await bank.deposit(alice, yen, "1000", currency="JPY")).json()
    ten = (await bank.transfer(alice, hers, his, "10.00")).json()
    more = (await bank.transfer(alice, hers, his, "10.01")).json()
    refused = (await bank.transfer(alice, hers, his, "5000.00")).json()["transaction_id"]
    waiting = (await bank.withdraw(alice, hers, "1.00", payment_method=NEVER)).json()["id"]
    all_of_them = [waiting, refused, more["id"], ten["id"], yens["id"], hundred["id"]]
    queries: list[tuple[dict[str, Any], list[str]]] = [
        ({}, all_of_them),
        ({"transaction_type": "deposit"}, [yens["id"], hundred["id"]]),
        ({"transaction_type": "refund"}, []),
        ({"status": "pending"}, [waiting]),
        ({"status": "failed"}, [refused]),
        ({"status": "completed", "transaction_type": "transfer"}, [more["id"], ten["id"]]),
        ({"currency": "JPY"}, [yens["id"]]),
        ({"currency": "EUR"}, []),
        ({"wallet_id": his}, [refused, more["id"], ten["id"]]),
        ({"wallet_id": yen}, [yens["id"]]),
        ({"wallet_id": str(uuid4())}, []),
        ({"currency": "USD", "min_amount": "10.01"}, [refused, more["id"], hundred["id"]]),
        ({"currency": "USD", "max_amount": "10.00"}, [waiting, ten["id"]]),
        ({"currency": "USD", "min_amount": "10.00", "max_amount": "10.00"}, [ten["id"]]),
        ({"currency": "USD", "min_amount": "10.00", "max_amount": "9.99"}, []),
        ({"created_from": ten["created_at"]}, [waiting, refused, more["id"], ten["id"]]),
        ({"created_to": ten["created_at"]}, [yens["id"], hundred["id"]]),
        ({"created_from": ten["created_at"], "created_to": ten["created_at"]}, []),
        ({"limit": 2}, [waiting, refused]),
        ({"limit": 2, "starting_after": refused}, [more["id"], ten["id"]]),
        ({"transaction_type": "transfer", "starting_after": refused, "limit": 1}, [more["id"]]),
        ({"starting_after": hundred["id"]}, []),
        ({"ending_before": more["id"]}, [waiting, refused]),
        ({"limit": 2, "ending_before": yens["id"]}, [more["id"], ten["id"]]),
        ({"transaction_type": "deposit", "ending_before": hundred["id"]}, [yens["id"]]),
        ({"ending_before": waiting}, []),
    ]

    found = [(query, await listed(bank, alice, **query)) for query, _ in queries]

    assert found == queries
    assert await listed(bank, bob) == [more["id"], ten["id"]]
    assert await listed(bank, bob, status="failed") == []
    assert await listed(bank, bob, wallet_id=hers) == [more["id"], ten["id"]]
    for cursor in ("starting_after", "ending_before"):
        page = await bank.client.get("/transactions", params={cursor: waiting}, headers=bob.headers)
        assert told(page) == (404, "transaction_not_found", ())
    assert (await bank.cancel(alice, waiting)).status_code == 200


# ------------------------------------------------------------------------------------------------------ who sees what


async def test_the_payee_sees_what_is_completed_and_alone_the_fee(bank: Bank) -> None:
    alice, shop, carol, admin = Person(), Person("merchant"), Person(), Person("admin")
    hers, till = await bank.wallet(alice, "100.00"), await bank.wallet(shop)
    paid = (await bank.payment(alice, hers, till, "20.00")).json()["id"]
    refused = (await bank.payment(alice, hers, till, "200.00")).json()["transaction_id"]
    # Even where it is known already who would have been paid.
    trigger = "trigger transactions_end_once"
    await bank.sql(f"alter table transactions.transactions disable {trigger}")
    await bank.sql("update transactions.transactions set payee_user_id = $2 where id = $1::uuid", refused, shop.id)
    await bank.sql(f"alter table transactions.transactions enable {trigger}")
    sent = (await bank.transfer(alice, hers, till, "20.00")).json()["id"]
    back = (await bank.refund(shop, paid, amount="5.00")).json()["id"]

    async def seen(person: Person, id_: str) -> tuple[int, str | None]:
        answer = await bank.client.get(f"/transactions/{id_}", headers=person.headers)
        return answer.status_code, answer.json().get("fee")

    everybody = (alice, shop, carol, admin)
    assert [await seen(person, paid) for person in everybody] == [
        (200, None),
        (200, "0.50"),
        (404, None),
        (200, None),
    ]
    assert [await seen(person, refused) for person in everybody] == [
        (200, None),
        (404, None),
        (404, None),
        (200, None),
    ]
    assert [await seen(person, sent) for person in everybody] == [(200, None), (200, None), (404, None), (200, None)]
    assert [await seen(person, back) for person in everybody] == [(200, None), (200, None), (404, None), (200, None)]
    fees = {
        item["id"]: item["fee"]
        for item in (await bank.client.get("/transactions", headers=shop.headers)).json()["data"]
    }
    assert fees == {paid: "0.50", sent: None, back: None}


async def test_what_comes_back_from_outside_is_shown_to_its_owner_alone(bank: Bank) -> None:
    alice, bob = Person(), Person()
    hers, his = await bank.wallet(alice), await bank.wallet(bob, "50.00")
    disputed = await bank.deposit(alice, hers, "30.00", payment_method="pm_card_createDispute")
    returned = await bank.withdraw(bob, his, "20.00", payment_method="pm_usBankAccount_payoutReturned")

    async def both() -> bool:
        pair = (
            await listed(bank, alice, transaction_type="dispute"),
            await listed(bank, bob, transaction_type="payout_return"),
        )
        return all(pair)

    await eventually(both)
    for owner, other, kind, original in (
        (alice, bob, "dispute", disputed.json()["id"]),
        (bob, alice, "payout_return", returned.json()["id"]),
    ):
        [id_] = await listed(bank, owner, transaction_type=kind)
        shown = await bank.ended(owner, id_)
        assert (shown["transaction_type"], shown["original_transaction_id"]) == (kind, original)
        assert (shown["status"], shown["fee"]) == ("completed", None)
        assert (await bank.client.get(f"/transactions/{id_}", headers=other.headers)).status_code == 404
        assert id_ not in await listed(bank, other)
        async with nothing_on_record(bank):
            assert told(await bank.cancel(owner, id_)) == (409, "transaction_not_cancellable", ())
            assert told(await bank.refund(owner, id_)) == (409, "transaction_not_refundable", ())
    async with nothing_on_record(bank):
        assert told(await bank.refund(alice, disputed.json()["id"])) == (409, "refund_exceeds_remaining", ())
