"""Hashing: what is stored, and that nobody waits for it who need not."""

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest

from user_service.passwords import THREADS, Passwords


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    passwords = Passwords(rounds=4)
    yield passwords
    passwords.close()


async def test_the_same_password_has_another_hash_each_time_and_both_are_right(passwords: Passwords) -> None:
    first, second = await passwords.hash("SecurePass123"), await passwords.hash("SecurePass123")

    assert first != second
    assert "SecurePass123" not in first
    for stored in (first, second):
        assert await passwords.verify("SecurePass123", stored) is True
        assert await passwords.verify("SecurePass124", stored) is False


async def test_without_a_stored_hash_no_password_is_right(passwords: Passwords) -> None:
    for password in ("SecurePass123", "nobody has this password", ""):
        assert await passwords.verify(password, None) is False


async def test_the_cost_is_the_one_that_was_asked_for_and_older_hashes_still_count(passwords: Passwords) -> None:
    earlier = Passwords(rounds=5)
    older = await earlier.hash("SecurePass123")
    earlier.close()

    assert older.startswith("$bcrypt-sha256$v=2,t=2b,r=5$")
    assert (await passwords.hash("SecurePass123")).startswith("$bcrypt-sha256$v=2,t=2b,r=4$")
    assert await passwords.verify("SecurePass123", older) is True


async def test_many_hashes_at_once_use_two_threads(passwords: Passwords) -> None:
    hashes = await asyncio.gather(*(passwords.hash("SecurePass123") for _ in range(30)))

    assert len(set(hashes)) == 30
    assert THREADS == 2
    assert len([thread for thread in threading.enumerate() if thread.name.startswith("bcrypt")]) == THREADS


async def test_other_requests_are_answered_while_hashes_are_computed(client: httpx.AsyncClient) -> None:
    slow = Passwords(rounds=12)
    order: list[str] = []

    async def hash_one() -> None:
        await slow.hash("SecurePass123")
        order.append("hashed")

    hashing = [asyncio.create_task(hash_one()) for _ in range(6)]
    await asyncio.sleep(0)  # all of them have begun
    for _ in range(5):
        response = await client.get("/health/live")
        assert response.status_code == 200
        order.append("answered")
    await asyncio.gather(*hashing)
    slow.close()

    assert order == ["answered"] * 5 + ["hashed"] * 6
