"""Every type of event is published by the real services, and looks as its retained sample.

A new type gets its sample by `KEEP_EVENT_SAMPLES=1 make test ARGS=tests/integration/test_event_samples.py`; one that
is there is never written again: it is what consumers had to understand yesterday.
What was added since is missing there.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import httpx

from shared.events import KINDS, TOPICS
from shared.settings import ROOT
from shared.testing.topics import records_of
from shared.testing.waiting import eventually
from tests.platform import Platform
from tests.security.people import PASSWORD, Actor, new_admin, newcomer, signed_in
from user_service.settings import UserSettings

SAMPLES: Final = ROOT / "shared" / "tests" / "samples" / "events"
LIMIT_SECONDS: Final = 60.0


async def test_every_type_is_published_as_its_sample_has_it(client: httpx.AsyncClient, platform: Platform) -> None:
    admin = await new_admin(client, platform.sandbox)
    alice, shop = await newcomer(client), await newcomer(client, role="merchant")
    await _move_money(alice, shop)
    await _change_wallets(alice, admin)
    await _change_people(client, admin)
    found: dict[str, dict[str, Any]] = {}

    async def complete() -> bool:
        found.update(await _published(platform))
        return found.keys() >= KINDS.keys()

    await eventually(complete, LIMIT_SECONDS)

    if os.environ.get("KEEP_EVENT_SAMPLES"):
        _keep(found)
    for kind in KINDS:
        assert _unknown(found[kind]) == set()
        sample = json.loads(_file(kind).read_text())
        assert _differences(_of_then(found[kind], sample), sample, kind) == []


async def _move_money(alice: Actor, shop: Actor) -> None:
    wallet, till = await alice.wallet(), await shop.wallet()
    deposit = await alice.deposit(wallet)
    payment = await alice.try_to("payment", "20.00", from_wallet_id=wallet, to_wallet_id=till)
    refund = await alice.call("POST", f"/transactions/{deposit}/refund", {"amount": "5.00"})
    refused = await alice.try_to("transfer", "9999.00", from_wallet_id=wallet, to_wallet_id=till)
    waiting = await alice.try_to(
        "withdrawal", "4.00", from_wallet_id=wallet, payment_method="pm_usBankAccount_processing"
    )
    cancelled = await alice.call("POST", f"/transactions/{waiting.json()['id']}/cancel")
    declined = await alice.try_to("deposit", "3.00", to_wallet_id=wallet, payment_method="pm_card_chargeDeclined")
    returned = await alice.try_to(
        "withdrawal", "2.00", from_wallet_id=wallet, payment_method="pm_usBankAccount_payoutReturned"
    )
    disputed = await shop.try_to("deposit", "6.00", to_wallet_id=till, payment_method="pm_card_createDispute")
    answers = [payment, refund, refused, waiting, cancelled, declined, returned, disputed]
    assert [answer.status_code for answer in answers] == [201, 201, 402, 202, 200, 402, 201, 201]


async def _change_wallets(alice: Actor, admin: Actor) -> None:
    wallet = await alice.wallet("EUR")
    answers = [await admin.call("POST", f"/wallets/{wallet}/{verb}") for verb in ("freeze", "unfreeze")]
    answers.append(await alice.call("POST", f"/wallets/{wallet}/close"))
    answers.append(await alice.call("POST", "/wallets/create", {"user_id": alice.id, "currency": "EUR"}))
    assert [answer.is_success for answer in answers] == [True] * 4


async def _change_people(client: httpx.AsyncClient, admin: Actor) -> None:
    bob, new_password = await newcomer(client), "BetterPass456"
    answers = [await bob.call("PATCH", "/users/me", {"first_name": "Jane"})]
    first = bob.refresh
    second = (await client.post("/users/refresh", json={"refresh_token": first})).json()["refresh_token"]
    answers.append(await client.post("/users/refresh", json={"refresh_token": second}))
    reused = await client.post("/users/refresh", json={"refresh_token": first})
    assert reused.status_code == 401
    bob = await signed_in(client, bob.email)
    passwords = {"current_password": PASSWORD, "new_password": new_password}
    answers.append(await bob.call("POST", "/users/me/password", passwords))
    answers += [await admin.call("POST", f"/users/{bob.id}/{verb}") for verb in ("disable", "enable")]
    bob = await signed_in(client, bob.email, new_password)
    chosen = {"preferences": [{"kind": "deposit", "email": True, "sms": True}]}
    answers.append(await bob.call("PUT", "/notifications/preferences", chosen))
    answers.append(await bob.call("DELETE", "/users/me", {"password": new_password}))
    assert [answer.is_success for answer in answers] == [True] * 7


async def _published(platform: Platform) -> dict[str, dict[str, Any]]:
    """The first event of each type on the broker."""
    settings = platform.sandbox.settings(UserSettings)
    events: dict[str, dict[str, Any]] = {}
    for topic in TOPICS:
        for record in await records_of(settings, settings.kafka_topic_prefix + topic):
            event = json.loads(record.value)
            events.setdefault(event["type"], event)
    return events


def _unknown(event: dict[str, Any]) -> set[str]:
    """The fields of its data that no model knows."""
    return set(event["data"]) - set(KINDS[event["type"]].model_fields)


def _of_then(event: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
    """The event without fields that may be missing, and were not there yet when the sample was taken."""
    fields = KINDS[event["type"]].model_fields
    data = {
        name: value
        for name, value in event["data"].items()
        if name in sample["data"] or name not in fields or fields[name].is_required()
    }
    return event | {"data": data}


def _differences(event: Any, sample: Any, place: str = "") -> list[str]:
    """Where names or kinds of values differ, whatever they hold; a null says nothing of its kind."""
    if event is None or sample is None:
        return []
    if isinstance(event, dict) and isinstance(sample, dict) and event.keys() == sample.keys():
        return [each for name in event for each in _differences(event[name], sample[name], f"{place}.{name}")]
    if isinstance(event, list) and isinstance(sample, list):
        return [
            each for pair in zip(event[:1], sample[:1], strict=False) for each in _differences(*pair, f"{place}[]")
        ]
    return [] if type(event) is type(sample) and not isinstance(event, dict) else [place]


def _keep(found: dict[str, dict[str, Any]]) -> None:
    SAMPLES.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not _file(kind).exists():
            _file(kind).write_text(json.dumps(found[kind], indent=2) + "\n")


def _file(kind: str) -> Path:
    return SAMPLES / f"{kind}.json"


def test_a_name_or_kind_that_differs_is_seen() -> None:
    sample = {"id": "x", "entries": [{"version": 1}], "payee": None}

    assert _differences(sample | {"payee": "y"}, sample, "event") == []
    assert _differences({"id": "x"}, sample, "event") == ["event"]
    assert _differences(sample | {"id": 1}, sample, "event") == ["event.id"]
    assert _differences(sample | {"entries": [{"number": 1}]}, sample, "event") == ["event.entries[]"]
