"""The drain's cumulative cursor never passes a row that is not on disk."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.acks import DrainCursor


@given(st.permutations(range(8)), st.lists(st.integers(0, 8), max_size=8))
def test_the_cursor_stands_behind_the_settled_prefix_whatever_the_order(order: list[int], checks: list[int]) -> None:
    cursor = DrainCursor()
    for row in range(8):
        cursor.row(("c", row), f"del_{row}")
    settled: set[int] = set()
    furthest = -1
    for step, row in enumerate(order):
        cursor.settle(("c", row))
        settled.add(row)
        if step in checks or step == 7:
            taken = cursor.take()
            prefix = next((at for at in range(8) if at not in settled), 8) - 1
            assert taken == (f"del_{prefix}" if prefix > furthest else None)
            furthest = prefix
    assert not cursor


def test_a_row_without_a_delivery_id_is_passed_but_cannot_be_named() -> None:
    cursor = DrainCursor()
    cursor.row(("c", 1), "del_1")
    cursor.row(("c", 2), None)
    cursor.settle(("c", 1))
    cursor.settle(("c", 2))
    assert cursor.take() == "del_1"
    assert cursor.take() is None


def test_a_row_that_comes_twice_in_one_drain_does_not_stop_it() -> None:
    cursor = DrainCursor()
    cursor.row(("c", 1), "del_1")
    cursor.row(("c", 1), "del_1b")
    cursor.settle(("c", 1))
    assert cursor.take() == "del_1b"


def test_what_is_no_row_of_this_drain_changes_nothing() -> None:
    cursor = DrainCursor()
    cursor.settle(("c", 9))
    assert cursor.take() is None
