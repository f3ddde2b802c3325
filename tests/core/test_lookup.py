"""What a look at a history says of a send whose answer never came."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.events import Event
from agentd.core.lookup import Found, NotThere, TooEarly, Undecided, judge

SECONDS = st.floats(0, 1_000)


def event(seq: int) -> Event:
    return Event(identity="me", conversation="conv_1", seq=seq, id=f"msg_{seq}", sender="me", own=True)


@given(SECONDS, SECONDS)
def test_what_is_there_once_was_sent_however_early_one_looks(silent_s: float, settle_s: float) -> None:
    assert judge([event(4)], silent_s=silent_s, settle_s=settle_s) == Found(event(4))


@given(st.integers(2, 5), SECONDS, SECONDS)
def test_of_several_equal_ones_nobody_can_tell_which_it_is(count: int, silent_s: float, settle_s: float) -> None:
    verdict = judge([event(seq) for seq in range(count)], silent_s=silent_s, settle_s=settle_s)
    assert isinstance(verdict, Undecided)
    assert str(count) in verdict.why


@given(SECONDS, SECONDS)
def test_what_is_missing_leaves_again_only_when_it_cannot_arrive_any_more(silent_s: float, settle_s: float) -> None:
    verdict = judge([], silent_s=silent_s, settle_s=settle_s)
    if silent_s < settle_s:
        assert verdict == TooEarly(settle_s - silent_s)
    else:
        assert verdict == NotThere()
