"""A line is an event, and the event is the line."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core import exported
from agentd.core.events import LAST_SEQ, Context, Event, Message, Record, Source
from agentd.errors import ExportUnreadable

WORDS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(WORDS, VALUES, max_size=3)
PLACES = {
    "identity": WORDS,
    "conversation": WORDS,
    "seq": st.integers(1, LAST_SEQ),
    "id": WORDS,
    "sender": WORDS,
    "own": st.booleans(),
    "late": st.booleans(),
    "epoch": st.integers(1, 99),
    "source": st.sampled_from(Source),
    "delivery_id": st.none() | WORDS,
    "payload": OBJECTS.map(lambda value: msgspec.json.encode(value)),
}
MESSAGES = st.builds(
    Message,
    **PLACES,
    kind=st.sampled_from(["text", "structured", "file", "system"]),
    text=st.none() | WORDS,
    data=st.none() | OBJECTS,
    metadata=OBJECTS,
    context=st.builds(Context, mentions=st.lists(WORDS, max_size=3).map(tuple), direct=st.none() | st.booleans()),
    direct=st.booleans(),
    mentioned=st.booleans(),
)


def plain(**changes: Any) -> Message:
    fields = {"identity": "me", "conversation": "conv_1", "seq": 3, "id": "msg_3", "sender": "bob", "text": "hi"}
    return Message(**{**fields, "payload": b'{"id": "msg_3"}', **changes})


def line(event: Event, received_at: float = 1_767_225_600.0) -> bytes:
    return exported.line(Record(7, 1, event, received_at))


@given(st.lists(MESSAGES | st.builds(Event, **PLACES), max_size=4))
def test_every_event_comes_back_as_it_was_one_on_a_line(events: list[Event]) -> None:
    text = b"".join(map(line, events))
    assert text.count(b"\n") == len(events)
    read = list(exported.read(text.splitlines()))
    assert [each.event for each in read] == events
    assert [each.received_at for each in read] == [1_767_225_600.0] * len(events)


def test_a_line_tells_the_place_the_payload_as_an_object_and_the_words() -> None:
    told = json.loads(line(plain(source=Source.DRAIN, epoch=2, late=True)))
    event = told.pop("event")
    assert told == {
        "position": 7,
        "identity": "me",
        "conversation": "conv_1",
        "epoch": 2,
        "seq": 3,
        "id": "msg_3",
        "source": "drain",
        "own": False,
        "late": True,
        "received_at": "2026-01-01T00:00:00.000Z",
        "payload": {"id": "msg_3"},
    }
    assert (event["type"], event["sender"], event["text"]) == ("Message", "bob", "hi")


def test_a_payload_of_several_lines_keeps_its_words_and_loses_its_breaks() -> None:
    text = line(plain(payload=b'{\n  "n": 1.50e3,\n  "big": 123456789012345678901234567890\n}'))
    assert text.count(b"\n") == 1
    assert b'"payload":{"n":1.50e3,"big":123456789012345678901234567890}' in text


def test_a_line_of_a_later_version_is_read_for_what_is_known() -> None:
    told = json.loads(line(plain()))
    told["mood"] = told["event"]["mood"] = "fine"
    (read,) = exported.read([json.dumps(told)])
    assert read.event == plain(payload=b'{"id": "msg_3"}')


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"{", "truncated"),
        (b"{}", "missing required field `identity`"),
        (line(plain()).replace(b'"Message"', b'"Miracle"'), "type 'Miracle' is not known"),
        (line(plain()).replace(b'"text":"hi"', b'"text":5'), "Expected `str | null`, got `int`"),
        (line(plain()).replace(b"2026-", b"now-"), "isoformat"),
        (line(plain()).replace(b'"epoch":1', b'"epoch":9223372036854775808'), "`int` <= 9007199254740991"),
        (line(plain()).replace(b'"seq":3', b'"seq":0'), "`int` >= 1"),
        (line(plain()).replace(b'{"id":"msg_3"}', b'{"a":' * 9_000 + b"1" + b"}" * 9_000), "recursion"),
    ],
)
def test_a_line_that_is_no_event_is_named(broken: bytes, why: str) -> None:
    with pytest.raises(ExportUnreadable, match="line 3 is no event") as told:
        list(exported.read([line(plain()), b"\n", broken]))
    assert told.value.line == 3
    assert why in str(told.value)
