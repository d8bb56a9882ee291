"""Others' things: every operation, called by everybody, on what is somebody's.

The operations come from the gateway's OpenAPI document, the rules from `rules.py`; what is in one and not in the
other fails, so that no operation is ever added without a word on who may call it.
"""

import re
from typing import Any, Final

import httpx
import pytest

from api_gateway.routes import owner_of
from shared.ids import new_id
from shared.testing.problems import without_ids
from shared.testing.waiting import eventually
from tests.platform import Platform
from tests.security.people import Actor, Books, newcomer, signed_in
from tests.security.rules import RULES, Cast, Rule

METHODS: Final = ("get", "post", "put", "patch", "delete", "head", "options", "trace")
OF_EACH_ANSWER: Final = frozenset({"date", "ratelimit-remaining", "ratelimit-reset", "x-request-id"})
NOBODY: Final[dict[str, str]] = {}

Operation = tuple[str, str]


async def operations(client: httpx.AsyncClient) -> dict[Operation, dict[str, Any]]:
    document = (await client.get("/openapi.json")).json()
    return {
        (method.upper(), path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in METHODS
    }


async def new_cast(client: httpx.AsyncClient, books: Books, stranger: Actor, strangers_wallet_id: str) -> Cast:
    owner = await newcomer(client)
    wallet_id, empty_wallet_id = await owner.wallet(), await owner.wallet("EUR")
    transaction_id = await owner.deposit(wallet_id)
    pending = await owner.try_to(
        "withdrawal", "5.00", from_wallet_id=wallet_id, payment_method="pm_usBankAccount_processing"
    )
    assert pending.status_code == 202, pending.text
    [(payment_id,)] = await books.sql(
        "select id::text from payments.payments where transaction_id = $1::uuid", transaction_id
    )
    things = {
        "notification_id": await welcome_of(owner, books),
        "user_id": owner.id,
        "session_id": owner.session_id,
        "wallet_id": wallet_id,
        "empty_wallet_id": empty_wallet_id,
        "transaction_id": transaction_id,
        "pending_transaction_id": pending.json()["id"],
        "payment_id": payment_id,
    }
    return Cast(owner, stranger, things, strangers_wallet_id)


async def welcome_of(owner: Actor, books: Books) -> str:
    """The owner's first notification, once it has come of their registration."""

    async def look() -> list[Any]:
        return await books.sql(
            "select id::text from notifications.notifications where user_id = $1::uuid and kind = 'welcome'", owner.id
        )

    [(notification_id,)] = await eventually(look)
    return str(notification_id)


def path_of(path: str, things: dict[str, str], rule: Rule) -> str:
    """The path with the owner's things in it; a parameter that names none of them needs one in the cast."""
    return re.sub(r"{(\w+)}", lambda match: things[(rule.things or {}).get(match[1], match[1])], path)


def missing_path_of(path: str) -> str:
    return re.sub(r"{\w+}", lambda _: str(new_id()), path)


async def test_every_operation_has_a_rule_and_every_rule_an_operation(client: httpx.AsyncClient) -> None:
    assert set(await operations(client)) == set(RULES)


async def test_the_document_says_which_operations_need_a_token(client: httpx.AsyncClient) -> None:
    unprotected = {key for key, operation in (await operations(client)).items() if not operation.get("security")}

    assert unprotected == {key for key, rule in RULES.items() if rule.anonymous == rule.owner}


@pytest.fixture(scope="module")
async def mallorys_wallet_id(mallory: Actor) -> str:
    return await mallory.wallet()


@pytest.mark.parametrize("operation", RULES, ids=" ".join)
async def test_everybody_gets_what_the_rule_says(
    client: httpx.AsyncClient,
    platform: Platform,
    books: Books,
    operation: Operation,
    mallory: Actor,
    merchant: Actor,
    admin: Actor,
    mallorys_wallet_id: str,
) -> None:
    """A refusal is the same through the gateway and around it, and changes nothing."""
    method, path = operation
    rule = RULES[operation]
    strangers = {
        name: await signed_in(client, actor.email)  # one of these operations is to log out
        for name, actor in (("other", mallory), ("merchant", merchant), ("admin", admin))
    }
    people = await new_cast(client, books, strangers["other"], mallorys_wallet_id)
    roles = strangers | {"owner": people.owner}
    target = path_of(path, people.things, rule)
    before = await books.state(*strangers.values())
    for role, expected in rule.statuses.items():
        headers = roles[role].headers if role in roles else NOBODY
        for url in urls_of(platform, path) if expected >= 400 else [platform.gateway]:
            response = await client.request(
                method, url + target, headers=headers, json=rule.body and rule.body(people)
            )

            assert response.status_code == expected, f"{role}: {response.text}"
            if expected >= 400:
                assert_tells_nothing(response, role, people.owner)
                assert await books.state(*strangers.values()) == before, role
            elif role in {"other", "merchant"}:
                assert not names(response, people), role
            if rule.as_missing and role in {"other", "merchant"}:
                body = (rule.missing_body or rule.body or no_body)(people)
                missing = await client.request(method, url + missing_path_of(path), headers=headers, json=body)
                assert_alike(response, missing)


def urls_of(platform: Platform, path: str) -> list[str]:
    """The gateway, and the service that a path belongs to."""
    direct = platform.direct(owner_of(path))
    return [platform.gateway, *([direct] if direct else [])]


def assert_tells_nothing(response: httpx.Response, role: str, owner: Actor) -> None:
    """A problem document, and nothing of the owner's in it beside the path."""
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    problem = without_ids(response)
    assert problem["status"] == response.status_code
    if role == "anonymous":
        assert response.headers["www-authenticate"] == "Bearer"
    assert owner.email not in response.text
    assert "balance" not in problem
    assert "available" not in problem


def names(response: httpx.Response, people: Cast) -> set[str]:
    """The owner's things that an answer speaks of."""
    return {thing for thing in (people.owner.email, *people.things.values()) if thing in response.text}


def no_body(_: Cast) -> None:
    return None


def assert_alike(foreign: httpx.Response, missing: httpx.Response) -> None:
    """Nobody can tell what is somebody else's from what is nowhere."""
    assert without_ids(foreign) == without_ids(missing)
    assert headers_of(foreign) == headers_of(missing)
    assert len(foreign.content) == len(missing.content)


def headers_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name not in OF_EACH_ANSWER}
