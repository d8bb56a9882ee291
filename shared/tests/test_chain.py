"""The bytes and hashes of the audit's chain, by another hand: anybody can check them with a standard library."""

import hashlib
import json
from typing import Any

import pytest
from bson.int64 import Int64
from bson.objectid import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from shared.chain import canonical, event_of, genesis, link, linked

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


def by_the_standard_library(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES))
def test_the_bytes_of_a_document_are_json_with_sorted_keys(document: dict[str, Any]) -> None:
    document.pop("chain", None)
    expected = by_the_standard_library(document)

    assert canonical(document) == expected
    assert canonical(dict(reversed(document.items()))) == expected
    assert canonical(document | {"chain": {"position": 1}}) == expected


def test_a_hash_covers_what_is_before_the_position_and_the_document_each_after_its_length() -> None:
    document = {"_id": "1", "subject": "Zoë", "data": {"b": 1, "a": [True, None]}}
    encoded = '{"_id":"1","data":{"a":[true,null],"b":1},"subject":"Zoë"}'.encode()
    before = genesis("wallets")
    parts = [before, (7).to_bytes(8, "big"), encoded]
    expected = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()

    assert before == hashlib.sha256(b"audit of wallets").digest()
    assert link(before, 7, document) == expected
    assert link(genesis("users"), 7, document) != expected
    assert link(before, 8, document) != expected
    assert link(before, 7, document | {"subject": "Zoe"}) != expected


def test_where_a_request_came_from_is_part_of_the_hash_and_missing_where_it_came_from_nowhere() -> None:
    rows: Any = [
        {"payload": '{"id":"1","data":{}}', "ip": ip} for ip in ("203.0.113.7", "203.0.113.8", "2001:db8::7", None)
    ]

    documents, _ = linked(rows[:1], genesis("users"), 1)
    assert [name for name in documents[0] if name != "chain"] == ["_id", "id", "data", "ip"]
    assert documents[0]["chain"]["hash"] == link(genesis("users"), 1, documents[0]).hex()
    assert event_of(documents[0]) == b'{"id":"1","data":{}}'
    assert len({linked([row], genesis("users"), 1)[1] for row in rows}) == 4
    [nobodys], last = linked(rows[3:], genesis("users"), 1)
    assert "ip" not in nobodys
    assert linked(rows[:1], genesis("users"), 1, addresses=False) == ([nobodys], last)


def test_a_large_number_is_the_same_whoever_read_it() -> None:
    assert canonical({"amount": Int64(2**40)}) == canonical({"amount": 2**40})
    assert canonical({"amount": 1}) != canonical({"amount": 1.0}) != canonical({"amount": True})


def test_what_no_event_can_hold_has_no_bytes() -> None:
    with pytest.raises(TypeError, match="ObjectId"):
        canonical({"_id": ObjectId()})
