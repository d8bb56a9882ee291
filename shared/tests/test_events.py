"""Events on their way out are what their models say."""

from uuid import UUID

import pytest

from shared.events import Envelope, EventData, OutgoingEvent, PostedEntry, UserRegistered, WalletsPosted, data_of
from shared.http.context import Trace
from shared.ids import new_id

TRACE = Trace("request-0123456789", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "203.0.113.7")
ENTRY = PostedEntry(wallet_id=new_id(), user_id=new_id(), amount_minor=-5, balance_minor=10**15 - 1, version=2)
DATA: list[EventData] = [
    WalletsPosted(posting_id=new_id(), currency="USD", entries=[ENTRY]),
    UserRegistered(
        user_id=new_id(),
        email='"quoted\\"@example.com',
        phone="+1\t5550100",
        first_name="Zoë\x00\x7f\u2028",
        last_name="名前 🙂 </script>",
        role="user",
    ),
]


@pytest.mark.parametrize("data", DATA, ids=["nested", "odd-text"])
@pytest.mark.parametrize("checked", [True, False])
def test_the_payload_is_what_the_envelope_itself_would_write(data: EventData, checked: bool) -> None:
    subject = new_id()
    if checked:
        event = OutgoingEvent.of(data, subject=subject, sequence=3, actor='"me"', trace=TRACE)
    else:
        fields = data.model_dump()
        event = OutgoingEvent.unchecked(type(data), fields, subject=subject, sequence=3, actor='"me"', trace=TRACE)

    envelope = Envelope.model_validate_json(event.payload)

    assert envelope.model_dump_json() == event.payload
    assert data_of(envelope) == data
    assert (event.id, event.topic, event.key) == (envelope.id, data.topic, str(subject))
    assert (envelope.type, envelope.subject, envelope.sequence) == (data.type, str(subject), 3)
    assert (envelope.actor, envelope.requestid, envelope.traceparent, event.ip) == ('"me"', *TRACE)
    assert "203.0.113.7" not in event.payload
    assert UUID(int=event.id.int).version == 7
