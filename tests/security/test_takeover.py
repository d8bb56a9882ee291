"""Taking over: accounts by the look of an address, sessions by their tokens, and things by naming them in a body."""

import asyncio
import base64
import secrets
from typing import Any, Final
from uuid import UUID

import httpx
import pytest

from shared.ids import new_id
from shared.testing.problems import without_ids
from shared.testing.waiting import eventually
from tests.platform import Platform
from tests.security.people import PASSWORD, Actor, Books, newcomer, registration, signed_in

# -------------------------------------------------------------------------------------------------------- addresses

SAME: Final = {
    "capitals": "{0}.KING@EXAMPLE.COM",
    "Kelvin sign": "{0}.\u212aing@example.com",
    "full stop of another width in the domain": "{0}.king@example\uff0ecom",
    "domain of another width": "{0}.king@\uff45xample.com",
}
NOT_THE_SAME: Final = {
    "soft hyphen in the domain": "{0}.king@exam\u00adple.com",
    "Cyrillic letter": "{0}.kin\u0261@example.com",
    "dotless i": "{0}.k\u0131ng@example.com",
    "dotted I": "{0}.k\u0130ng@example.com",
    "full width": "{0}.\uff4bing@example.com",
    "tag": "{0}.king+x@example.com",
    "no dot": "{0}king@example.com",
    "combining letter": "{0}.king\u0301@example.com",
    "ligature": "{0}.\ufb01ng@example.com",
    "long s": "{0}.king\u017f@example.com",
    "zero width": "{0}.ki\u200bng@example.com",
    "other direction": "{0}.ki\u202eng@example.com",
    "blank before": " {0}.king@example.com",
    "blank after": "{0}.king@example.com ",
    "line end": "{0}.king@example.com\n",
    "NUL": "{0}.king@example.com\u0000",
    "comment": "{0}.king(x)@example.com",
    "quoted": '"{0}.king"@example.com',
    "name": "King <{0}.king@example.com>",
    "dot at the end": "{0}.king@example.com.",
    "two": "{0}.king@example.com,x@example.com",
    "source route": "@evil.example:{0}.king@example.com",
    "percent": "{0}.king%example.com@evil.example",
    "address literal": "{0}.king@[127.0.0.1]",
}


@pytest.fixture(scope="module")
async def king(client: httpx.AsyncClient) -> Actor:
    return await newcomer(client, email=f"{secrets.token_hex(6)}.king@example.com")


def variant(king: Actor, template: str) -> str:
    return template.format(king.email.split(".")[0])


@pytest.mark.parametrize("spelling", SAME)
async def test_another_spelling_of_an_address_is_the_same_account(king: Actor, books: Books, spelling: str) -> None:
    email = variant(king, SAME[spelling])
    before = await books.state()

    taken = await king.client.post("/users/register", json=registration(email=email))

    assert (taken.status_code, taken.json()["code"]) == (409, "email_taken")
    assert await books.state() == before
    assert (await signed_in(king.client, email)).id == king.id


@pytest.mark.parametrize("spelling", NOT_THE_SAME)
async def test_an_address_that_only_looks_alike_is_another_account_or_none(
    king: Actor, books: Books, spelling: str
) -> None:
    email = variant(king, NOT_THE_SAME[spelling])
    before = await books.state()

    response = await king.client.post("/users/register", json=registration(email=email, password="MallorysPass1"))

    if response.status_code == 422:
        assert [error["field"] for error in response.json()["errors"]] == ["email"]
        assert await books.state() == before
        return
    assert response.status_code == 201
    assert response.json()["email"] != king.email
    mallory = await signed_in(king.client, email, "MallorysPass1")
    assert mallory.id == response.json()["id"] != king.id
    assert (await signed_in(king.client, king.email)).id == king.id
    stored = response.json()["email"]
    assert (await signed_in(king.client, stored, "MallorysPass1")).id == mallory.id


async def test_one_address_registered_at_once_is_one_account(client: httpx.AsyncClient, books: Books) -> None:
    wanted = registration()

    answers = await asyncio.gather(*(client.post("/users/register", json=wanted) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert await books.sql("select count(*) from users.users where email = $1", wanted["email"]) == [(1,)]


# --------------------------------------------------------------------------------------------------------- sessions


async def refresh(actor: Actor, token: str) -> httpx.Response:
    return await actor.client.post("/users/refresh", json={"refresh_token": token})


async def live_sessions(books: Books, actor: Actor) -> int:
    [(count,)] = await books.sql(
        "select count(*) from users.sessions where user_id = $1::uuid and ended_at is null", actor.id
    )
    return int(count)


async def test_a_refresh_token_used_by_many_at_once_has_one_successor(alice: Actor, books: Books) -> None:
    answers = await asyncio.gather(*(refresh(alice, alice.refresh) for _ in range(12)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["refresh_token"] for answer in answers}) == 1
    assert await books.sql("select generation from users.sessions where user_id = $1::uuid", alice.id) == [(2,)]
    assert await live_sessions(books, alice) == 1


async def test_the_grace_ends_with_the_successors_first_use(alice: Actor, books: Books) -> None:
    """Whoever copied a token does not get on board within the ten seconds once its owner has gone on."""
    successor = (await refresh(alice, alice.refresh)).json()["refresh_token"]
    assert (await refresh(alice, alice.refresh)).json()["refresh_token"] == successor
    latest = (await refresh(alice, successor)).json()

    copied = await refresh(alice, alice.refresh)

    assert (copied.status_code, copied.json()["code"]) == (401, "invalid_refresh_token")
    assert await live_sessions(books, alice) == 0
    assert (await refresh(alice, latest["refresh_token"])).status_code == 401


@pytest.mark.parametrize("generation", [0, 1, 2, 2**63, 2**64 - 1])
async def test_nobody_ends_a_session_by_a_token_that_is_made_up(alice: Actor, books: Books, generation: int) -> None:
    """A made-up old token would be a way to log anybody out whose session's id is known."""
    await refresh(alice, alice.refresh)
    before = await books.state()
    made_up = UUID(alice.session_id).bytes + generation.to_bytes(8) + secrets.token_bytes(32)

    response = await refresh(alice, base64.urlsafe_b64encode(made_up).rstrip(b"=").decode())

    assert (response.status_code, response.json()["code"]) == (401, "invalid_refresh_token")
    assert await books.state() == before


async def test_a_refresh_token_bent_anywhere_is_none(alice: Actor, mallory: Actor, books: Books) -> None:
    before = await books.state()
    token = alice.refresh
    bent = [token[:n] + ("B" if token[n] == "A" else "A") + token[n + 1 :] for n in range(0, len(token), 7)]
    others = [
        mallory.refresh[:22] + token[22:],
        token[:22] + mallory.refresh[22:],
        token + "A",
        token[:-1],
        alice.access,
    ]
    for made_up in (*bent, *others, "", "A" * 200):
        assert (await refresh(alice, made_up)).status_code in {401, 422}

    assert await books.state() == before


async def test_a_login_is_a_session_of_its_own_whatever_comes_with_it(alice: Actor, mallory: Actor) -> None:
    """Nobody is given a session that somebody else knows."""
    body = {"email": alice.email, "password": PASSWORD}
    for more in (
        {"session_id": mallory.session_id},
        {"refresh_token": mallory.refresh},
        {"user": {"id": mallory.id}},
    ):
        assert (await alice.client.post("/users/login", json=body | more)).status_code == 422
    headers = mallory.headers | {"Cookie": f"session={mallory.session_id}", "X-Session-Id": mallory.session_id}
    response = await alice.client.post("/users/login", json=body, headers=headers)
    answer = response.json()
    again = Actor(alice.client, answer["user"]["id"], alice.email, answer["access_token"], answer["refresh_token"])

    assert again.id == alice.id
    assert len({alice.session_id, again.session_id, mallory.session_id}) == 3


async def test_what_ended_by_disabling_does_not_come_back_by_enabling(
    alice: Actor, admin: Actor, platform: Platform
) -> None:
    assert (await admin.call("POST", f"/users/{alice.id}/disable")).status_code == 200

    async def is_out() -> bool:
        return (await alice.call("GET", "/wallets")).status_code == 401

    await eventually(is_out, 1.0)
    assert (await admin.call("POST", f"/users/{alice.id}/enable")).status_code == 200

    for url in (platform.gateway, platform.direct("user-service"), platform.direct("wallet-service")):
        path = "/users/me" if url == platform.direct("user-service") else "/wallets"
        assert (await alice.client.get(url + path, headers=alice.headers)).status_code == 401
    assert (await refresh(alice, alice.refresh)).status_code == 401
    await signed_in(alice.client, alice.email)


async def test_after_a_change_the_old_password_is_none(alice: Actor, books: Books) -> None:
    body = {"current_password": PASSWORD, "new_password": "BetterPass456"}
    assert (await alice.call("POST", "/users/me/password", body)).status_code == 204
    before = await books.state()

    old = await alice.client.post("/users/login", json={"email": alice.email, "password": PASSWORD})

    assert old.status_code == 401
    assert await books.state() == before
    await signed_in(alice.client, alice.email, "BetterPass456")


async def test_two_changes_of_a_password_at_once_are_one(alice: Actor) -> None:
    """Who loses the race is not told that it is set."""
    other = await signed_in(alice.client, alice.email)
    changes = [
        actor.call("POST", "/users/me/password", {"current_password": PASSWORD, "new_password": password})
        for actor, password in ((alice, "FirstNewPass1"), (other, "SecondNewPass2"))
    ]

    statuses = [answer.status_code for answer in await asyncio.gather(*changes)]

    assert statuses.count(204) == 1
    right, wrong = ("FirstNewPass1", "SecondNewPass2")[:: 1 if statuses[0] == 204 else -1]
    await signed_in(alice.client, alice.email, right)
    refused = await alice.client.post("/users/login", json={"email": alice.email, "password": wrong})
    assert refused.status_code == 401


# -------------------------------------------------------------------------------------- others' things, by their ids


async def test_a_key_is_its_owners(alice: Actor, client: httpx.AsyncClient, books: Books) -> None:
    """The key that somebody else has used says nothing, and gives nothing away."""
    bob = await newcomer(client)
    hers, his = await alice.wallet(), await bob.wallet()
    await alice.deposit(hers)
    await bob.deposit(his)
    key = {"Idempotency-Key": "rent"}
    body: dict[str, Any] = {"transaction_type": "transfer", "amount": "1.00", "currency": "USD"}
    first = await alice.call(
        "POST", "/transactions/create", body | {"from_wallet_id": hers, "to_wallet_id": his}, **key
    )
    stolen = await bob.call(
        "POST", "/transactions/create", body | {"from_wallet_id": hers, "to_wallet_id": his}, **key
    )
    own = {"Idempotency-Key": "rent-2"}
    second = await bob.call(
        "POST", "/transactions/create", body | {"from_wallet_id": his, "to_wallet_id": hers}, **own
    )
    refund = await bob.call("POST", f"/transactions/{first.json()['id']}/refund", {}, **own)

    assert (first.status_code, stolen.status_code, second.status_code, refund.status_code) == (201, 404, 201, 201)
    assert "idempotent-replayed" not in {name for answer in (stolen, second, refund) for name in answer.headers}
    assert len({answer.json().get("id") for answer in (first, second, refund)}) == 3


async def test_what_somebody_tries_with_my_wallet_is_neither_mine_nor_told(
    alice: Actor, client: httpx.AsyncClient
) -> None:
    """A refused attempt on another's wallet does not show in that person's list, nor her wallet's state in his."""
    mallory = await newcomer(client)
    poor, rich, empty = await mallory.wallet(), await alice.wallet(), await alice.wallet("EUR")
    await alice.deposit(rich)
    attempts = [
        await mallory.try_to("transfer", amount, currency, from_wallet_id=source, to_wallet_id=poor)
        for source in (rich, empty, str(new_id()))
        for amount, currency in (("1.00", "USD"), ("1000000.00", "USD"), ("1.00", "EUR"))
    ]

    assert {attempt.status_code for attempt in attempts} == {404}
    assert len({str(without_ids(attempt)) for attempt in attempts}) == 1
    listed = [entry["id"] for entry in (await alice.call("GET", "/transactions")).json()["data"]]
    assert not {attempt.json()["transaction_id"] for attempt in attempts} & set(listed)
    assert len((await alice.call("GET", f"/wallets/{rich}/entries")).json()["data"]) == 1


async def test_a_frozen_wallet_looks_to_others_as_none(alice: Actor, admin: Actor, client: httpx.AsyncClient) -> None:
    mallory = await newcomer(client)
    frozen, own = await alice.wallet(), await mallory.wallet()
    await alice.deposit(frozen)
    assert (await admin.call("POST", f"/wallets/{frozen}/freeze")).status_code == 200

    attempt = await mallory.try_to("transfer", "1.00", from_wallet_id=frozen, to_wallet_id=own)
    missing = await mallory.try_to("transfer", "1.00", from_wallet_id=str(new_id()), to_wallet_id=own)

    assert attempt.status_code == 404
    assert without_ids(attempt) == without_ids(missing)


async def test_a_payee_sees_nothing_before_it_is_theirs(alice: Actor, client: httpx.AsyncClient) -> None:
    bob = await newcomer(client)
    hers, his = await alice.wallet(), await bob.wallet()
    await alice.deposit(hers)
    refused = await alice.try_to("transfer", "500.00", from_wallet_id=hers, to_wallet_id=his)
    done = await alice.transfer(hers, his)

    assert refused.status_code == 402
    assert (await bob.call("GET", f"/transactions/{refused.json()['transaction_id']}")).status_code == 404
    assert [entry["id"] for entry in (await bob.call("GET", "/transactions")).json()["data"]] == [done]


async def test_a_filter_finds_nothing_of_others(alice: Actor, client: httpx.AsyncClient) -> None:
    mallory = await newcomer(client)
    wallet_id = await alice.wallet()
    deposit = await alice.deposit(wallet_id)
    for query in (
        f"wallet_id={wallet_id}",
        "currency=USD",
        "status=completed",
        "limit=100",
        "min_amount=0.01&currency=USD",
    ):
        response = await mallory.call("GET", f"/transactions?{query}")
        assert (response.status_code, response.json()) == (200, {"data": [], "has_more": False})
    foreign = await mallory.call("GET", f"/transactions?starting_after={deposit}")
    missing = await mallory.call("GET", f"/transactions?starting_after={new_id()}")
    assert foreign.status_code == 404
    assert without_ids(foreign) == without_ids(missing)
    for user in (alice.id, mallory.id):
        assert (await mallory.call("GET", f"/transactions?user_id={user}")).status_code == 422


@pytest.mark.parametrize("path", ["", "/balance", "/entries", "/stream", "/statement"])
async def test_readers_do_not_see_what_was_read_for_others(
    alice: Actor, mallory: Actor, admin: Actor, platform: Platform, path: str
) -> None:
    """Whoever comes first, and however warm a cache is: the owner gets hers, a stranger what is missing."""
    wallet_id = await alice.wallet()
    target = f"/wallets/{wallet_id}{path}"
    missing = await mallory.call("GET", f"/wallets/{new_id()}{path}")
    known = (await alice.client.get("/openapi.json")).json()["paths"]
    readable = f"/wallets/{{wallet_id}}{path}" in known and path != "/stream"
    for _ in range(2):
        for url in (platform.gateway, platform.direct("wallet-service")):
            stranger = await alice.client.get(url + target, headers=mallory.headers)
            assert stranger.status_code == missing.status_code == 404
            assert without_ids(stranger) == without_ids(missing)
            if readable:
                for reader in (alice, admin):
                    own = await alice.client.get(url + target, headers=reader.headers)
                    assert own.status_code == 200
                    assert own.headers["cache-control"] == "no-store"


async def test_money_is_given_back_by_whom_it_was_given_to(
    alice: Actor, client: httpx.AsyncClient, books: Books
) -> None:
    shop, mallory = await newcomer(client, role="merchant"), await newcomer(client)
    hers, theirs = await alice.wallet(), await shop.wallet()
    await alice.deposit(hers)
    paid = await alice.try_to("payment", "20.00", from_wallet_id=hers, to_wallet_id=theirs)
    payment = paid.json()["id"]
    before = await books.state()

    by_payer = await alice.call("POST", f"/transactions/{payment}/refund", {})
    by_stranger = await mallory.call("POST", f"/transactions/{payment}/refund", {})
    elsewhere = [
        await shop.call("POST", f"/transactions/{payment}/refund", {name: hers})
        for name in ("to_wallet_id", "from_wallet_id", "user_id", "payment_method")
    ]
    too_much = await shop.call("POST", f"/transactions/{payment}/refund", {"amount": "20.01"})

    assert (by_payer.status_code, by_stranger.status_code, too_much.status_code) == (403, 404, 409)
    assert {answer.status_code for answer in elsewhere} == {422}
    assert await books.state() == before


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(f"pm_{new_id().hex}", id="another's"),
        "pm_card_visa'--",
        "pm_",
        "PM_card_visa",
        "credit_card ",
        "acct_1",
    ],
)
async def test_a_payment_method_that_is_not_mine_pays_nothing(alice: Actor, books: Books, method: str) -> None:
    wallet_id = await alice.wallet()
    before = await books.state(alice)

    response = await alice.try_to("deposit", "5.00", to_wallet_id=wallet_id, payment_method=method)

    assert response.status_code in {402, 422}
    assert await books.state(alice) == before


async def test_a_wallet_asked_for_at_once_is_one(alice: Actor, books: Books) -> None:
    body = {"user_id": alice.id, "currency": "USD"}

    answers = await asyncio.gather(*(alice.call("POST", "/wallets/create", body) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert await books.sql("select count(*) from wallets.accounts where user_id = $1::uuid", alice.id) == [(1,)]
