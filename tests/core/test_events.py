"""The vocabulary as JSON can hold it."""

import json

import msgspec
import pytest

from agentd.core.events import Context, Event, Gap, Message, Presence, Signal, Source, portable


@pytest.mark.parametrize(
    "event",
    [
        Message(
            identity="me",
            conversation="conv_1",
            seq=3,
            id="msg_3",
            sender="bob",
            source=Source.DRAIN,
            payload=b"as it came",
            data={"n": [1]},
            context=Context(mentions=("me",)),
        ),
        Event(identity="me", conversation="conv_1", seq=4, id="x", sender="bob"),
        Gap(identity="me", conversation="c", epoch=1, start=3, stop=5, absent=2),
        Presence(identity="me", handle="bob", status="online"),
    ],
)
def test_an_event_told_as_json_is_the_same_event_but_for_its_bytes(event: Event | Signal) -> None:
    told = json.loads(json.dumps(portable(event)))
    assert told.pop("type") == type(event).__name__
    assert "payload" not in told
    bare = msgspec.structs.replace(event, payload=b"") if isinstance(event, Event) else event
    assert msgspec.convert(told, type(event)) == bare
