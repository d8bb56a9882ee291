"""Yesterday's events, one of each type as the services wrote it, are still what they were."""

import json
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import ValidationError, create_model

from shared.events import KINDS, Envelope, EventData, PaymentEvent, PaymentSucceeded, WalletsPosted, data_of

SAMPLES: Final = {
    path.name.removesuffix(".json"): path for path in (Path(__file__).parent / "samples" / "events").glob("*.json")
}


def read(kind: str) -> dict[str, Any]:
    sample: dict[str, Any] = json.loads(SAMPLES[kind].read_text())
    return sample


def lost(sample: Any, now: Any, place: str = "data") -> list[str]:
    """What the sample says and today's model does not hand on as it is."""
    if isinstance(sample, dict) and isinstance(now, dict):
        return [each for name in sample for each in lost(sample[name], now.get(name, ...), f"{place}.{name}")]
    if isinstance(sample, list) and isinstance(now, list) and len(sample) == len(now):
        pairs = zip(sample, now, strict=True)
        return [each for number, pair in enumerate(pairs) for each in lost(*pair, f"{place}.{number}")]
    return [] if sample == now else [place]


def test_every_type_has_a_sample_and_every_sample_a_type() -> None:
    assert sorted(SAMPLES) == sorted(KINDS)


@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_a_sample_still_says_all_that_it_said(kind: str) -> None:
    sample = read(kind)
    envelope = Envelope.model_validate(sample)
    data = data_of(envelope)

    assert data is not None
    assert (envelope.type, type(data), data.topic) == (kind, KINDS[kind], f"{kind.partition('.')[0]}.events")
    assert str(getattr(data, data.subject)) == envelope.subject
    assert lost(sample, json.loads(envelope.model_dump_json()), "event") == []
    assert lost(sample["data"], data.model_dump(mode="json")) == []


def test_a_field_that_is_renamed_or_removed_is_noticed() -> None:
    sample = read("payments.succeeded.v1")["data"]
    others: dict[str, Any] = {
        name: (field.annotation, field)
        for name, field in PaymentSucceeded.model_fields.items()
        if name != "provider_reference"
    }
    removed = create_model("Removed", __base__=EventData, **others)
    optional: Any = (str, "")
    renamed = create_model("Renamed", __base__=EventData, **others, reference=optional)
    required: Any = (str, ...)
    strict = create_model("Strict", __base__=PaymentEvent, reference=required)

    for model in (removed, renamed):
        assert lost(sample, model.model_validate(sample).model_dump(mode="json")) == ["data.provider_reference"]
    with pytest.raises(ValidationError):
        strict.model_validate(sample)


def test_a_field_inside_a_list_is_noticed_too() -> None:
    sample = read(WalletsPosted.type)["data"]
    [entry, *_] = sample["entries"]

    now = sample | {"entries": [{name: entry[name] for name in entry if name != "version"}, *sample["entries"][1:]]}

    assert lost(sample, now) == ["data.entries.0.version"]
