"""Shares that move with what is free: nobody is left without, nobody has it all, who wants much has the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.shares import most

LIMIT = st.integers(1, 500)


def filled(limit: int, wanting: list[int]) -> list[int]:
    """What each has when all have taken, one at a time in turn, what they want and may."""
    having = [0] * len(wanting)
    while True:
        before = sum(having)
        for number, wants in enumerate(wanting):
            free = limit - sum(having)
            if having[number] < wants and having[number] < most(free):
                having[number] += 1
        if sum(having) == before:
            return having


@given(LIMIT)
def test_whoever_has_nothing_may_take_while_anything_is_free(free: int) -> None:
    assert most(free) > 0
    assert most(0) == 0


@given(LIMIT)
def test_one_that_wants_everything_gets_three_quarters_and_not_more(limit: int) -> None:
    (has,) = filled(limit, [10 * limit])
    assert abs(has - 3 * limit / 4) < 1


@given(LIMIT, st.lists(st.integers(0, 1_000), min_size=1, max_size=20))
def test_never_more_than_there_is_and_never_more_than_wanted(limit: int, wanting: list[int]) -> None:
    having = filled(limit, wanting)
    assert sum(having) <= limit
    assert all(has <= wants for has, wants in zip(having, wanting, strict=True))


@given(st.integers(20, 500), st.integers(2, 10))
def test_those_who_want_everything_end_with_the_same(limit: int, count: int) -> None:
    having = filled(limit, [10 * limit] * count)
    assert max(having) - min(having) <= 1


@given(LIMIT, st.integers(1, 500))
def test_a_late_one_finds_three_quarters_of_what_a_greedy_one_left(limit: int, wants: int) -> None:
    (greedy,) = filled(limit, [10 * limit])
    left = limit - greedy
    (late,) = filled(left, [wants])
    assert abs(late - min(wants, 3 * left / 4)) < 1
    assert late or not left
