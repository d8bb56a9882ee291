"""Whatever is sent to any operation, as its own document describes it or not, the answer is one that it describes.

Schemathesis makes the requests from the gateway's OpenAPI document, so an operation is covered the day it exists. The
same ones each time: what fails here fails again.
"""

import json
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode, openapi

from shared.ids import new_id
from tests.security.people import Actor, Books, newcomer, signed_in
from tests.security.rules import RULES
from wallet_service.testing import assert_sound

EXAMPLES: Final = 10  # for each operation, of requests that fit and as many that do not
NOTHING_TO_SEND: Final = ("GET", "/health")
OUR_OWN: Final = frozenset(
    {"authorization", "connection", "accept-encoding", "user-agent", "x-schemathesis-testcaseid"}
)
# What any request may get before it has come to an operation; bodies and paths alone decide about it.
BY_THE_EDGE: Final = frozenset({400, 404, 405, 413, 415, 431})

Operations = dict[tuple[str, str], Any]


@pytest.fixture(scope="module")
async def described(client: httpx.AsyncClient) -> Operations:
    document = (await client.get("/openapi.json")).json()
    schema = openapi.from_dict(document)
    return {(method, path): schema[path][method] for method, path in RULES}


@pytest.fixture(scope="module")
async def things(client: httpx.AsyncClient) -> dict[str, str]:
    """What the caller owns, by the names of parameters and fields."""
    owner, other = await newcomer(client), await newcomer(client)
    wallet_id = await owner.wallet()
    transaction_id = await owner.deposit(wallet_id, "5000.00")
    return {
        "email": owner.email,
        "wallet_id": wallet_id,
        "from_wallet_id": wallet_id,
        "to_wallet_id": await other.wallet(),
        "transaction_id": transaction_id,
        "session_id": str(new_id()),
        "user_id": owner.id,
        "starting_after": transaction_id,
    }


def with_real_ids(value: Any, things: dict[str, str]) -> Any:
    """The object with the caller's own things where it names some; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {name: things.get(name, member) if isinstance(member, str) else member for name, member in value.items()}


async def send(actor: Actor, case: Case[Any]) -> httpx.Response:
    """The request that Schemathesis has made up, byte by byte, with the caller's token."""
    made = case.as_transport_kwargs(base_url=str(actor.client.base_url).rstrip("/"))
    headers = {name: value for name, value in (made.get("headers") or {}).items() if name.lower() not in OUR_OWN}
    content = json.dumps(made["json"]).encode() if "json" in made else made.get("data")
    if not isinstance(content, bytes | str | None):
        content = str(httpx.QueryParams(content))
    try:
        request = actor.client.build_request(
            made["method"],
            made["url"],
            params=made.get("params") or None,
            content=content,
            headers=[(name.encode(), value.encode()) for name, value in (headers | actor.headers).items()],
        )
        return await actor.client.send(request)
    except (httpx.LocalProtocolError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        assume(False)
        raise


def assert_described(operation: Any, response: httpx.Response) -> None:
    what = f"{operation.method} {operation.path}: {response.status_code} {response.text[:500]}"
    assert response.status_code < 500, what
    described = {int(status) for status in operation.definition.raw["responses"]}
    assert response.status_code in described | BY_THE_EDGE, what
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json", what
        assert response.json()["status"] == response.status_code
    assert "Traceback" not in response.text


@pytest.fixture(scope="module")
def callers() -> dict[tuple[str, str], Actor]:
    """Who calls each operation, in a session of its own: one of the operations is to log out."""
    return {}


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("operation", [key for key in RULES if key != NOTHING_TO_SEND], ids=" ".join)
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
async def test_no_request_gets_another_answer_than_those_described(
    operation: tuple[str, str],
    mode: GenerationMode,
    described: Operations,
    things: dict[str, str],
    callers: dict[tuple[str, str], Actor],
    admin: Actor,
    data: st.DataObject,
) -> None:
    target, rule = described[operation], RULES[operation]
    if operation not in callers:
        email = admin.email if rule.owner == 403 and rule.admin == 200 else things["email"]
        callers[operation] = await signed_in(admin.client, email)
    case = data.draw(target.as_strategy(generation_mode=mode))
    if data.draw(st.booleans()):
        case.path_parameters = with_real_ids(case.path_parameters, things)
        case.body = with_real_ids(case.body, things)

    assert_described(target, await send(callers[operation], case))


async def test_after_all_of_it_the_books_add_up(books: Books) -> None:
    await books.sql("set search_path = wallets")
    await assert_sound(books.sql)
    await books.sql("reset search_path")
