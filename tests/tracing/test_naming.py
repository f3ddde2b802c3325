"""The ids of a trace follow from what it is about, and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentd.core import events
from agentd.core.events import Content, Send
from agentd.tracing.naming import Name, cause_of, name_of, name_of_send

IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


def send(cause: str, identity: str = "alice") -> Send:
    return Send(identity=identity, target="@bob", content=Content(text="hi"), client_msg_id="key-1", cause=cause)


def test_a_name_is_the_same_in_every_version() -> None:
    assert name_of("alice", "msg_1") == Name(0x6C6AFAA9A14C355D33FCA3C31C835509, 0x08C69716B6E1CA9B)


@given(IDS, IDS, IDS, IDS)
def test_no_two_events_share_a_name(identity: str, about: str, other_identity: str, other: str) -> None:
    if (identity, about) == (other_identity, other):
        return
    one, two = name_of(identity, about), name_of(other_identity, other)
    assert one.trace != two.trace
    assert one.root != two.root


@given(IDS, st.integers(0, 99))
def test_a_send_on_disk_tells_the_event_that_it_answers_whatever_its_id_is(about: str, ordinal: int) -> None:
    assume(not (isinstance(kind := vars(events).get(about), type) and issubclass(kind, events.Signal)))
    answer = send(f"greeter {about} {ordinal}")
    assert cause_of(answer) == about
    assert name_of_send(answer) == name_of("alice", about)


@pytest.mark.parametrize("cause", ["", "control socket", "greeter Typing 0", "greeter Presence 3", "greeter"])
def test_a_send_that_no_event_caused_is_a_trace_of_its_own(cause: str) -> None:
    assert cause_of(send(cause)) == ""
    assert name_of_send(send(cause)) == name_of("alice", "key-1")
