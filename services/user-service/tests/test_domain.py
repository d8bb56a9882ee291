"""The rules about sessions and addresses, without anything around them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_service.domain import GRACE, Origin, Verdict, judge

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@given(current=st.integers(1, 2**40), since=st.timedeltas(timedelta(), timedelta(days=40)))
def test_the_current_token_is_always_rotated(current: int, since: timedelta) -> None:
    assert judge(current, current, NOW - since, NOW) is Verdict.ROTATE


@given(current=st.integers(2, 2**40), since=st.timedeltas(timedelta(), timedelta(days=40)))
def test_the_token_before_brings_its_successor_again_for_ten_seconds_and_is_a_copy_afterwards(
    current: int, since: timedelta
) -> None:
    expected = Verdict.REPEAT if since <= timedelta(seconds=10) else Verdict.REUSE

    assert judge(current - 1, current, NOW - since, NOW) is expected


@given(
    current=st.integers(3, 2**40), older=st.integers(2, 2**40), since=st.timedeltas(timedelta(), timedelta(days=40))
)
def test_an_older_token_is_a_copy_at_any_time(current: int, older: int, since: timedelta) -> None:
    assert judge(max(0, current - older), current, NOW - since, NOW) is Verdict.REUSE


@given(current=st.integers(1, 2**40), newer=st.integers(1, 2**20))
def test_a_token_from_beyond_the_database_counts_for_nothing_and_harms_nobody(current: int, newer: int) -> None:
    assert judge(current + newer, current, NOW, NOW) is Verdict.STALE


def test_the_grace_is_ten_seconds() -> None:
    assert timedelta(seconds=10) == GRACE


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_addresses_of_ipv6_count_by_their_network(address: str, network: str) -> None:
    assert Origin(address, "").network == network


@given(agent=st.text(max_size=400))
def test_a_user_agent_is_kept_as_two_hundred_printable_characters(agent: str) -> None:
    kept = Origin.of("", agent).user_agent

    assert len(kept) <= 200
    assert kept.isprintable()


def test_control_characters_of_a_user_agent_are_left_out() -> None:
    assert Origin.of("", "curl\x1b[31m/8\r\n\x00.11\u202e").user_agent == "curl[31m/8.11"
