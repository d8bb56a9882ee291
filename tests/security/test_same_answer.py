"""Two ways to one operation: creations that travel together and those that go alone are answered alike.

The gateway bundles requests to `/transactions/create`, and sends one with a query by itself. Where the two ways read
a request differently, a check on one of them is a check that can be walked around.
"""

import json
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.ids import new_id
from tests.security.people import Actor, Books, newcomer

TOGETHER: Final = "/transactions/create"
ALONE: Final = "/transactions/create?alone"
JSON: Final = {"Content-Type": "application/json"}
EXAMPLES: Final = 150
DIFFERENT_EACH_TIME: Final = frozenset(
    {"id", "request_id", "transaction_id", "created_at", "completed_at", "available"}
)
OF_EACH_ANSWER: Final = frozenset(
    {"date", "content-length", "ratelimit-remaining", "ratelimit-reset", "x-request-id"}
)

Body = dict[str, Any]


class Sender:
    """Somebody with money, who sends each request both ways."""

    def __init__(self, actor: Actor, source: str, target: str, foreign: str, euros: str) -> None:
        self.actor = actor
        self.source, self.target, self.foreign, self.euros = source, target, foreign, euros

    def body(self, **changes: Any) -> Body:
        """A plain transfer, with changes; `...` leaves a field out."""
        plain = {
            "transaction_type": "transfer",
            "amount": "0.01",
            "currency": "USD",
            "from_wallet_id": self.source,
            "to_wallet_id": self.target,
        }
        return {name: value for name, value in (plain | changes).items() if value is not ...}

    async def send(self, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        """One request as it is."""
        return await self.actor.client.post(path, content=content, headers=self.actor.headers | JSON | headers)

    async def both(self, content: bytes, headers: dict[str, str] | None = None) -> tuple[Any, Any]:
        """What is the same in each answer to the same request."""
        together = await self.send(TOGETHER, content, headers or {})
        alone = await self.send(ALONE, content, headers or {})
        assert together.status_code < 500, together.text
        return essence(together), essence(alone)


def essence(response: httpx.Response) -> tuple[int, dict[str, str], dict[str, Any]]:
    """An answer without what is another each time."""
    document = {name: value for name, value in response.json().items() if name not in DIFFERENT_EACH_TIME}
    headers = {name: value for name, value in response.headers.items() if name not in OF_EACH_ANSWER}
    return response.status_code, headers, document


@pytest.fixture(scope="module")
async def sender(client: httpx.AsyncClient) -> Sender:
    alice, bob = await newcomer(client), await newcomer(client)
    source, euros = await alice.wallet(), await alice.wallet("EUR")
    target, foreign = await bob.wallet(), await bob.wallet("EUR")
    await alice.deposit(source, "10000.00")
    await bob.deposit(foreign, "100.00", "EUR")
    return Sender(alice, source, target, foreign, euros)


CHANGES: Final[dict[str, Callable[[Sender], Body]]] = {
    "plain": lambda _: {},
    "number": lambda _: {"amount": 0.01},
    "whole number": lambda _: {"amount": 1},
    "payment to no merchant": lambda _: {"transaction_type": "payment"},
    "description": lambda _: {"description": "rent"},
    "empty description": lambda _: {"description": ""},
    "no description": lambda _: {"description": None},
    "description of 500": lambda _: {"description": "é" * 500},
    "description of 501": lambda _: {"description": "é" * 501},
    "description with a line end": lambda _: {"description": "a\r\nb"},
    "description with an escape": lambda _: {"description": "\x1b[31m"},
    "description with NUL": lambda _: {"description": "\x00"},
    "description with a separator": lambda _: {"description": "a\u2028b"},
    "description with a blank that is none": lambda _: {"description": "a\u00a0b\u200bc\u202e"},
    "description with private letters": lambda _: {"description": "\ue000\U0010ffff"},
    "description as a number": lambda _: {"description": 1},
    "description with quotes": lambda _: {"description": 'a"b\\c'},
    "metadata": lambda _: {"metadata": {"order": "1"}},
    "empty metadata": lambda _: {"metadata": {}},
    "no metadata": lambda _: {"metadata": None},
    "unknown field": lambda _: {"status": "completed"},
    "fee": lambda _: {"fee": "0.00"},
    "somebody's id": lambda _: {"user_id": str(new_id())},
    "payment method": lambda _: {"payment_method": "credit_card"},
    "self": lambda s: {"to_wallet_id": s.source},
    "foreign source": lambda s: {"from_wallet_id": s.target, "to_wallet_id": s.source},
    "foreign source of another currency": lambda s: {"from_wallet_id": s.foreign},
    "missing source": lambda _: {"from_wallet_id": "01980000-0000-7000-8000-000000000001"},
    "missing target": lambda _: {"to_wallet_id": "01980000-0000-7000-8000-000000000001"},
    "another currency": lambda s: {"to_wallet_id": s.foreign},
    "own other currency": lambda s: {"to_wallet_id": s.euros},
    "too much": lambda _: {"amount": "999999.00"},
    "unknown currency": lambda _: {"currency": "XXX"},
    "lower currency": lambda _: {"currency": "usd"},
    "currency with a blank": lambda _: {"currency": "USD "},
    "upper id": lambda s: {"to_wallet_id": s.target.upper()},
    "id without hyphens": lambda s: {"to_wallet_id": s.target.replace("-", "")},
    "id in braces": lambda s: {"to_wallet_id": f"{{{s.target}}}"},
    "id as urn": lambda s: {"to_wallet_id": f"urn:uuid:{s.target}"},
    "id with a blank": lambda s: {"to_wallet_id": f" {s.target}"},
    "id as list": lambda s: {"to_wallet_id": [s.target]},
    "id null": lambda _: {"to_wallet_id": None},
    "no id": lambda _: {"to_wallet_id": ...},
    "no amount": lambda _: {"amount": ...},
    "no type": lambda _: {"transaction_type": ...},
    "no currency": lambda _: {"currency": ...},
    "type in capitals": lambda _: {"transaction_type": "TRANSFER"},
    "refund": lambda _: {"transaction_type": "refund"},
    "dispute": lambda _: {"transaction_type": "dispute"},
    "type as list": lambda _: {"transaction_type": ["transfer"]},
    "deposit": lambda s: (
        {"transaction_type": "deposit", "from_wallet_id": ..., "to_wallet_id": s.source}
        | {"payment_method": "credit_card"}
    ),
}
RAW_AMOUNTS: Final = (
    "0", "0.0", "-0", "-1", "-0.01", "1.001", "0.001", "0.010", "0.0100", "1e2", "1E-2", "1e400", "1e-400", "1.0e0",
    "NaN", "Infinity", "-Infinity", "true", "false", "null", "[]", "{}", '""', '"0"', '"-1"', '"+5"', '" 5 "',
    '"5 "', '"1_000"', '"1,00"', '"１００"', '"1e3"', '"1e-2"', '"NaN"', '"Infinity"', '"0x10"', '".5"', '"5."',
    '"00.01"', '"007"', "007", "1.", ".5", "+1", '"0.01"', '"\\u0030.01"', "0.01", "1", "999999999999999",
    "9999999999999.99", "99999999999999.99", "10000000000000000", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "0.1e1", '"1.0"', '"٣"', '"1\\u0000"', "1 ", " 1",
)  # fmt: skip
RAW_BODIES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "blanks around": lambda body: b" \r\n\t" + body + b"\n ",
    "byte order mark": lambda body: b"\xef\xbb\xbf" + body,
    "more after it": lambda body: body + b"x",
    "twice": lambda body: body + body,
    "truncated": lambda body: body[:-1],
    "comma at the end": lambda body: body[:-1] + b",}",
    "comment": lambda body: body[:-1] + b"/**/}",
    "a field twice": lambda body: body[:-1] + b',"currency":"USD"}',
    "a field twice, other value": lambda body: body[:-1] + b',"amount":"5.00"}',
    "a field twice, escaped": lambda body: body[:-1] + b',"\\u0061mount":"5.00"}',
    "escaped name": lambda body: body.replace(b'"amount"', b'"\\u0061mount"'),
    "escaped value": lambda body: body.replace(b"transfer", b"\\u0074ransfer"),
    "unknown null": lambda body: body[:-1] + b',"x":null}',
    "empty name": lambda body: body[:-1] + b',"":1}',
    "single quotes": lambda body: body.replace(b'"', b"'"),
    "in a list": lambda body: b"[" + body + b"]",
    "as text": lambda body: json.dumps(body.decode()).encode(),
    "latin-1": lambda body: body[:-1] + b',"description":"\xe9"}',
    "lone surrogate": lambda body: body[:-1] + b',"description":"\\ud800"}',
    "lone surrogate in bytes": lambda body: body[:-1] + b',"description":"\xed\xa0\x80"}',
    "overlong": lambda body: body[:-1] + b',"description":"\xc0\xaf"}',
    "UTF-16": lambda body: body.decode().encode("utf-16"),
    "deep": lambda body: body[:-1] + b',"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "empty": lambda _: b"",
    "null": lambda _: b"null",
}
HEADERS: Final[dict[str, dict[str, str]]] = {
    "charset": {"Content-Type": "application/json; charset=utf-8"},
    "other charset": {"Content-Type": "application/json; charset=utf-16"},
    "capitals": {"Content-Type": "Application/JSON"},
    "text": {"Content-Type": "text/plain"},
    "form": {"Content-Type": "application/x-www-form-urlencoded"},
    "problem": {"Content-Type": "application/problem+json"},
    "empty type": {"Content-Type": ""},
    "msgpack": {"Content-Type": "application/msgpack"},
    "empty key": {"Idempotency-Key": ""},
    "long key": {"Idempotency-Key": "k" * 256},
    "key with a tab": {"Idempotency-Key": "a\tb"},
    "another deadline": {"X-Deadline-Ms": "1"},
    "another user": {"X-User-Id": "01980000-0000-7000-8000-000000000001"},
    "no token": {"Authorization": ""},
    "bad token": {"Authorization": "Bearer x.y.z"},
    "compressed": {"Content-Encoding": "gzip"},
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_request_is_answered_alike(sender: Sender, change: str) -> None:
    together, alone = await sender.both(json.dumps(sender.body(**CHANGES[change](sender))).encode())

    assert together == alone


@pytest.mark.parametrize("ensure_ascii", [True, False], ids=["escaped", "in UTF-8"])
async def test_what_is_written_in_another_way_is_answered_alike(sender: Sender, ensure_ascii: bool) -> None:
    for text in (
        "é",
        "😀",
        "\u2028",
        "\x7f",
        "\x85",
        "\u200b",
        "\ufeff",
        "\ufffe",
        '"',
        "\\",
        "/",
        "\u0301",
        "\U000e0001",
    ):
        body = json.dumps(sender.body(description=text), ensure_ascii=ensure_ascii).encode()
        together, alone = await sender.both(body)
        assert together == alone, repr(text)


@pytest.mark.parametrize("amount", RAW_AMOUNTS)
async def test_an_amount_is_read_alike(sender: Sender, amount: str) -> None:
    body = json.dumps(sender.body(amount="AMOUNT")).replace('"AMOUNT"', amount)

    together, alone = await sender.both(body.encode())

    assert together == alone


@pytest.mark.parametrize("way", RAW_BODIES)
async def test_a_spoiled_body_is_refused_alike(sender: Sender, way: str) -> None:
    together, alone = await sender.both(RAW_BODIES[way](json.dumps(sender.body()).encode()))

    assert together == alone


@pytest.mark.parametrize("headers", HEADERS)
async def test_other_headers_are_answered_alike(sender: Sender, headers: str) -> None:
    together, alone = await sender.both(json.dumps(sender.body()).encode(), HEADERS[headers])

    assert together == alone


@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_any_damage_to_a_body_is_answered_alike(sender: Sender, data: st.DataObject) -> None:
    """A few bytes of a good body are replaced, left out or put in."""
    body = bytearray(json.dumps(sender.body(description="rent")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(body) - 1))
        end = data.draw(st.integers(start, min(len(body), start + 3)))
        piece = data.draw(
            st.sampled_from([b"", b'"', b"\\", b",", b"}", b"0", b"-", b".", b" ", b"\xff", b"e", b"null"])
        )
        body[start:end] = piece

    together, alone = await sender.both(bytes(body))

    assert together == alone


async def test_a_key_of_one_way_is_known_on_the_other(sender: Sender, books: Books) -> None:
    body = json.dumps(sender.body()).encode()
    refused = json.dumps(sender.body(amount="999999.00")).encode()
    for number, (first, second) in enumerate([(TOGETHER, ALONE), (ALONE, TOGETHER)]):
        for content, status in ((body, 201), (refused, 402)):
            key = {"Idempotency-Key": f"key-{number}-{status}"}
            done = await sender.send(first, content, key)
            before = await books.state()
            again = await sender.send(second, content, key)
            other = await sender.send(second, json.dumps(sender.body(amount="0.02")).encode(), key)

            assert (done.status_code, again.status_code, again.content) == (status, status, done.content)
            assert again.headers["idempotent-replayed"] == "true"
            assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
            assert await books.state() == before
