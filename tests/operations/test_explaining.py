"""What became of an event in a lane, from what the journal holds."""

from __future__ import annotations

import math

from agentd.journal.storage import Attempt, DeadRow
from agentd.operations.explaining import STATES, Fate, fate_of


def failed(position: int, not_before: float = 20.0) -> Attempt:
    return Attempt("p", 1, position, 2, "ValueError: no", not_before)


def letter(position: int) -> DeadRow:
    return DeadRow(
        "p",
        1,
        position,
        5,
        "ValueError: no",
        "",
        "",
        9.0,
        number=3,
        identity="me",
        conversation_id="c",
        dropped_at=None,
    )


def fate(position: int, *attempts: Attempt, dead: DeadRow | None = None, wanted: bool = True) -> Fate:
    told = fate_of(position, since=10, cursor=15, failed=attempts, letter=dead, wanted=wanted)
    assert told.state in STATES
    return told


def test_up_to_the_cursor_it_is_handled_or_nobody_wanted_it() -> None:
    assert fate(15) == Fate("handled")
    assert fate(11, wanted=False) == Fate("passed_over")


def test_what_is_older_than_the_plugins_service_was_never_offered() -> None:
    assert fate(10) == Fate("never_offered")
    assert fate(10, wanted=False) == Fate("never_offered")


def test_behind_the_cursor_it_waits_and_for_what() -> None:
    assert fate(16) == Fate("waiting")
    assert fate(18, failed(16)) == Fate("waiting", behind=16)
    assert fate(16, failed(18)) == Fate("waiting")


def test_a_failing_event_tells_its_attempts_and_the_next() -> None:
    assert fate(16, failed(16)) == Fate("failing", 2, "ValueError: no", 20.0)


def test_a_dead_letter_is_told_by_its_number_and_whether_the_lane_waits_behind_it() -> None:
    assert fate(12, dead=letter(12)) == Fate("dead", 5, "ValueError: no", letter=3)
    assert fate(16, failed(16, math.inf), dead=letter(16)) == Fate("held", 5, "ValueError: no", letter=3)
