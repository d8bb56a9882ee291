"""Tokens that were verified are remembered, and no longer than they are valid."""

import time

import pytest

from api_gateway.tokens import RememberedTokens
from shared.auth import Principal, UserTokens
from shared.errors import UnauthorizedError
from shared.ids import new_id

SECRET = "a-secret-of-thirty-two-bytes-or-more"


class CountedTokens(UserTokens):
    """Counts what costs cryptography."""

    verified = 0

    def verify(self, token: str) -> Principal:
        self.verified += 1
        return super().verify(token)


def bearer(seconds: int = 900) -> str:
    return f"Bearer {UserTokens(SECRET, seconds).issue(new_id(), 'user')}"


def test_a_token_is_verified_once_however_often_it_comes() -> None:
    tokens = CountedTokens(SECRET)
    remembered = RememberedTokens(tokens)
    authorization = bearer()

    callers = {remembered.verify(authorization).user_id for _ in range(100)}

    assert (len(callers), tokens.verified) == (1, 1)


def test_each_token_speaks_for_its_own_person() -> None:
    remembered = RememberedTokens(UserTokens(SECRET))
    people = [new_id() for _ in range(3)]
    headers = [f"Bearer {UserTokens(SECRET).issue(person, 'user')}" for person in people]

    for _ in range(2):
        assert [remembered.verify(header).user_id for header in headers] == people


def test_a_token_within_the_leeway_counts_and_is_not_remembered() -> None:
    tokens = CountedTokens(SECRET)
    remembered = RememberedTokens(tokens)
    expired = bearer(-5)

    for _ in range(3):
        remembered.verify(expired)

    assert tokens.verified == 3


def test_a_remembered_token_is_verified_again_once_it_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = CountedTokens(SECRET)
    remembered = RememberedTokens(tokens)
    authorization = bearer(60)
    remembered.verify(authorization)
    now = time.time()

    monkeypatch.setattr(time, "time", lambda: now + 58)
    remembered.verify(authorization)
    assert tokens.verified == 1

    monkeypatch.setattr(time, "time", lambda: now + 61)
    remembered.verify(authorization)
    assert tokens.verified == 2


def test_a_token_that_does_not_count_is_never_remembered() -> None:
    tokens = CountedTokens(SECRET)
    remembered = RememberedTokens(tokens)
    forged = bearer()[:-2]

    for _ in range(3):
        with pytest.raises(UnauthorizedError):
            remembered.verify(forged)

    assert tokens.verified == 3


def test_no_more_than_the_limit_are_remembered_and_the_oldest_go_first() -> None:
    tokens = CountedTokens(SECRET)
    remembered = RememberedTokens(tokens, size=2)
    first, second, third = (bearer() for _ in range(3))
    for authorization in (first, second, third, third, second):
        remembered.verify(authorization)
    assert tokens.verified == 3

    remembered.verify(first)

    assert tokens.verified == 4
