"""The standing of an exported conversation, from its events alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.adopted import Adopted
from agentd.core.events import Event, Message
from agentd.core.sequencer import Deliver, Limits, Line, Sequencer


def event(seq: int, **fields: Any) -> Message:
    epoch = fields.get("epoch", 1)
    return Message(identity="me", conversation="c", seq=seq, id=f"m{epoch}.{seq}", sender="bob", **fields)


def adopted(*events: Event) -> Adopted:
    standing = Adopted()
    for each in events:
        standing.take(each)
    return standing


def test_a_whole_conversation_lacks_nothing() -> None:
    standing = adopted(event(1), event(2), event(3))
    assert (standing.epoch, standing.anchor, standing.mark, standing.mark_id) == (1, 1, 3, "m1.3")
    assert not standing.absent


def test_what_lies_before_the_first_event_and_between_is_absent_and_only_the_latter_a_hole() -> None:
    standing = adopted(event(5), event(6), event(9))
    assert (standing.anchor, standing.mark) == (5, 9)
    assert list(standing.absent) == [(1, 5), (7, 9)]
    assert list(standing.holes) == [(7, 9)]


def test_a_late_event_below_the_anchor_moves_nothing_but_is_not_absent() -> None:
    standing = adopted(event(5), event(6), event(3, late=True))
    assert (standing.anchor, standing.mark, standing.mark_id) == (5, 6, "m1.6")
    assert list(standing.absent) == [(1, 3), (4, 5)]


def test_a_file_of_late_events_only_has_an_anchor_all_the_same() -> None:
    standing = adopted(event(3, late=True), event(2, late=True))
    assert (standing.anchor, standing.mark) == (2, 3)
    assert list(standing.absent) == [(1, 2)]


def test_a_new_epoch_begins_anew() -> None:
    standing = adopted(event(7), event(8), event(1, epoch=2))
    assert (standing.epoch, standing.anchor, standing.mark, standing.mark_id) == (2, 1, 1, "m2.1")
    assert not standing.absent


def test_answers_go_where_the_last_peer_of_a_talk_is_answered() -> None:
    peer, own = event(1, answer_to="@bob"), event(2, own=True, answer_to="")
    assert adopted(peer, own).address == "@bob"
    assert adopted(event(1, direct=False, answer_to="c")).address == ""


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((event(1), event(1)), "seq 1 of epoch 1 is in the file twice"),
        ((event(4), event(2)), "seq 2 comes behind seq 4 and is not marked late"),
        ((event(1, epoch=2), event(2)), "its epoch 1 was over: a line before it is of epoch 2"),
        ((event(0),), "seq 0 is none"),
    ],
)
def test_what_cannot_have_happened_so_is_refused_with_the_reason(events: tuple[Event, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        adopted(*events)


@given(st.lists(st.integers(1, 12), min_size=1, unique=True), st.data())
def test_the_standing_is_the_one_that_the_journal_had_which_saw_it_happen(order: list[int], data: Any) -> None:
    """Whatever came in whatever order: what was delivered tells where the conversation stood, as far as it goes."""
    sequencer = Sequencer(Limits(grace_s=0.5))
    line = Line("c")
    line.anchor, line.mark, line.top = 1, 0, 0
    sequencer.restore(line, 0.0)
    delivered: list[Event] = []
    for seq in order:
        delivered += [each.event for each in sequencer.offer(event(seq), 0.0) if isinstance(each, Deliver)]
    if line.mark < line.top and data.draw(st.booleans(), label="the server has nothing at the holes"):
        for ask in sequencer.wake(10.0):
            if type(ask).__name__ == "Refetch":
                decisions = sequencer.refetched(ask, [], max(order) + 1, 10.0)
                delivered += [each.event for each in decisions if isinstance(each, Deliver)]
    if delivered:
        standing = adopted(*delivered)
        assert (standing.mark, standing.mark_id) == (line.mark, line.mark_id)
        assert standing.absent == line.absent
