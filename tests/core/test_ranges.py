"""Ranges against a plain set of ints."""

import itertools
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.ranges import Ranges

_BOUND = st.integers(min_value=0, max_value=40)
_STEP = st.tuples(st.sampled_from(["add", "remove"]), _BOUND, _BOUND)


@given(st.lists(_STEP, max_size=40))
def test_ranges_hold_what_a_set_of_ints_would_hold(steps: list[tuple[str, int, int]]) -> None:
    ranges, model = Ranges(), set[int]()
    for verb, start, stop in steps:
        getattr(ranges, verb)(start, stop)
        if verb == "add":
            model |= set(range(start, stop))
        else:
            model -= set(range(start, stop))
        assert {value for value in range(42) if value in ranges} == model
        assert sum(stop - start for start, stop in ranges) == len(model)
        assert bool(ranges) == bool(model)
        found = list(ranges)
        assert all(a < b for a, b in found)
        assert all(left[1] < right[0] for left, right in itertools.pairwise(found))


def test_touching_ranges_become_one() -> None:
    ranges = Ranges([(1, 3), (5, 8)])
    ranges.add(3, 5)
    assert ranges.as_tuple() == ((1, 8),)


def test_equal_sets_are_equal_however_they_were_built() -> None:
    assert Ranges([(1, 5)]) == Ranges([(3, 5), (1, 3)])


def test_a_range_costs_the_same_however_wide_it_is() -> None:
    tracemalloc.start()
    try:
        assert Ranges([(1, 2**53)]).as_tuple() == ((1, 2**53),)
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()
