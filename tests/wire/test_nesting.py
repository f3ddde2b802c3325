"""JSON from outside that is nested to hurt: cut to a depth that everything behind can follow, and nothing else lost."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.events import Message, Source
from agentd.wire.agentchat import AgentChat
from agentd.wire.nesting import DEPTH_MAX, cut
from agentd.wire.platform import Response

JSON = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=8) | st.sampled_from(['"', "\\", "[{", "}]", '\\"[']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=30,
)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def pruned(value: Any, left: int) -> Any:
    """What a cut should leave."""
    if not isinstance(value, dict | list):
        return value
    if not left:
        return None
    if isinstance(value, dict):
        return {name: pruned(each, left - 1) for name, each in value.items()}
    return [pruned(each, left - 1) for each in value]


@given(JSON, st.integers(1, 5), st.booleans())
def test_a_cut_leaves_what_is_not_too_deep_and_null_for_the_rest(value: Any, depth_max: int, spaced: bool) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1 if spaced else None).encode()
    got = cut(text, depth_max)
    assert json.loads(got) == pruned(value, depth_max)
    assert (got is text) == (depth(value) <= depth_max)


@given(st.binary(max_size=60), st.integers(1, 3))
def test_what_is_no_json_never_raises(rubbish: bytes, depth_max: int) -> None:
    cut(rubbish, depth_max)


@pytest.mark.parametrize("unit", [b'"', b'"\\', b'\\"', b'["'])
def test_quotes_that_never_end_are_looked_through_once(unit: bytes) -> None:
    rubbish = b"[" * 200 + unit * 200_000  # of which looking from each quote to the end would take hours
    assert cut(rubbish) == b"[" * DEPTH_MAX + b"null"


def test_a_million_levels_are_cut() -> None:
    assert json.loads(cut(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000, 3)) == {"a": {"a": {"a": None}}}
    cut(b"[" * 1_000_000)


PLATFORM = AgentChat("alice", "http://hub", lambda: "key", "alice")


def nested(levels: int, kind: str) -> str:
    return '{"a":' * levels + "1" + "}" * levels if kind == "objects" else "[" * levels + "]" * levels


def row(levels: int, kind: str, place: str) -> bytes:
    deep = nested(levels, kind)
    wrapped = deep if kind == "objects" else f'{{"list":{deep}}}'
    fields = {"data": '"content":{"text":"hi","data":%s}', "metadata": '"content":{"text":"hi"},"metadata":%s'}
    place_text = fields.get(place, '"content":{"text":"hi"},"unheard_of":%s') % wrapped
    head = '"id":"m1","conversation_id":"conv_1","seq":7,"sender":"bob","client_msg_id":"k","type":"text"'
    return f'{{{head},"created_at":"2026-01-01T00:00:00Z",{place_text}}}'.encode()


@pytest.mark.parametrize("place", ["data", "metadata", "unheard_of"])
@pytest.mark.parametrize("kind", ["objects", "arrays"])
@pytest.mark.parametrize("levels", [DEPTH_MAX + 1, 900, 990, 1_100, 20_000])
def test_a_hostile_message_is_read_by_every_way_in_and_again_from_the_disk(place: str, kind: str, levels: int) -> None:
    payload = row(levels, kind, place)
    page = Response(status=200, headers={}, body=b"[" + payload + b"," + payload + b"]")
    live = PLATFORM.decode(b'{"type":"message.new","payload":' + payload + b"}")
    pages = [PLATFORM.read_history(page), PLATFORM.read_drain(page)]
    events = [live, *(event for each in pages for event in each.events)]
    assert len(events) == 5
    for event in events:
        assert isinstance(event, Message)
        assert (event.text, event.seq) == ("hi", 7)
        assert depth(event.data or {}) <= DEPTH_MAX
        assert depth(event.metadata) <= DEPTH_MAX
        again = PLATFORM.revive(event.payload, epoch=1, late=False, source=Source.LIVE)
        assert isinstance(again, Message)
        assert (again.data, again.metadata) == (event.data, event.metadata)
    if place != "unheard_of":
        assert len({json.dumps([event.data, event.metadata]) for event in events if isinstance(event, Message)}) == 1


def test_a_message_of_ordinary_depth_is_kept_byte_for_byte() -> None:
    payload = row(DEPTH_MAX - 5, "objects", "data")
    event = PLATFORM.decode(b'{"type":"message.new","payload":' + payload + b"}")
    assert isinstance(event, Message)
    assert event.payload == payload


def test_many_brackets_side_by_side_are_not_deep() -> None:
    flat = json.dumps({"rows": [{"n": number, "in": [random.random()]} for number in range(500)]}).encode()
    assert cut(flat) is flat


def test_a_frame_that_is_deep_elsewhere_is_malformed_or_passed_over_and_never_raises() -> None:
    for levels in (500, 50_000):
        PLATFORM.decode(nested(levels, "arrays").encode())
        PLATFORM.decode(f'{{"type":"x","payload":{nested(levels, "objects")}}}'.encode())
        PLATFORM.decode(f'{{"type":{nested(levels, "arrays")}}}'.encode())
