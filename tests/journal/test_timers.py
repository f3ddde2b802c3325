"""Timers on disk: the last word on each stands, and they go with the effects of their turn or not at all."""

import math

import msgspec

from agentd.journal.storage import StatePut, TimerGone, TimerSet

TIMER = TimerSet("agentd-1-t0", "p", "me", 3, "conv_3", "", 9.5, b'{"x":1}')


async def test_a_timer_is_read_back_as_it_was_set_until_it_is_gone(journal):
    other = msgspec.structs.replace(TIMER, id="early", due_at=1.0, conversation=0, conversation_id="", name="beat")
    never = msgspec.structs.replace(TIMER, id="never", due_at=math.inf, failures=2, error="ValueError")
    await journal.commit(TIMER, other, never)
    assert await journal.timers("p") == [other, TIMER, never]
    assert await journal.timers("q") == []
    await journal.commit(TimerGone(TIMER.id), StatePut("p", 3, "k", b"1"))
    assert await journal.timers("p") == [other, never]


async def test_a_later_time_replaces_an_earlier_one_and_within_a_group_the_last_word_stands(journal):
    again = msgspec.structs.replace(TIMER, due_at=20.0, failures=1, error="ValueError")
    journal.commit(TIMER)
    await journal.commit(again)
    assert await journal.timers("p") == [again]
    journal.commit(TimerGone(TIMER.id))
    journal.commit(TIMER)
    await journal.commit(TimerGone(TIMER.id))
    assert await journal.timers("p") == []
