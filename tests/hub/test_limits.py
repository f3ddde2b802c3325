"""How often somebody may do something: numbers in, numbers out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentd.hub.limits import RateLimit


def test_a_seconds_worth_goes_at_once_and_the_next_one_waits() -> None:
    limit = RateLimit(10)
    assert [limit.take("a", 0.0) for _ in range(10)] == [0.0] * 10
    assert limit.take("a", 0.0) == 0.1
    assert limit.take("b", 0.0) == 0.0
    assert limit.take("a", 0.11) == 0.0


def test_zero_sets_no_limit() -> None:
    limit = RateLimit(0)
    assert [limit.take("a", 0.0) for _ in range(1_000)] == [0.0] * 1_000


@given(st.lists(st.floats(min_value=0, max_value=0.2), max_size=200))
def test_never_more_than_the_rate_passes_and_the_wait_is_true(steps: list[float]) -> None:
    limit, now, passed = RateLimit(5), 0.0, 0
    for step in steps:
        now += step
        wait_s = limit.take("a", now)
        if wait_s == 0:
            passed += 1
        else:
            assert 0 < wait_s <= 0.2
    assert passed <= 5 + now * 5 + 1e-6
