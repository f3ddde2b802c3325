"""What became of an event in a lane, from what the journal holds."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from agentd.dispatcher.deliveries import PASSED, SET_BACK, TRIED_AGAIN
from agentd.journal.storage import Attempt, DeadRow, Outcome, TimerSet
from agentd.operations.explaining import STATES, Fate, Known, fate_of

NO = "ValueError: no"


def failed(position: int, not_before: float = 20.0, **fields: Any) -> Attempt:
    return msgspec.structs.replace(Attempt("p", 1, position, 2, NO, not_before), **fields)


def noted_progress(position: int, until: int = 0) -> Attempt:
    return Attempt("p", 1, position, 0, "", 0.0, until=until, progress=b"1")


def letter(position: int, dropped_at: float | None = None) -> DeadRow:
    return DeadRow(
        "p", 1, position, 5, NO, "", "", 9.0, number=3, identity="me", conversation_id="c", dropped_at=dropped_at
    )


def outcome(word: str, at: float = 10.0) -> Outcome:
    return Outcome("p", 1, 11, 16, word, None, at)


def aside(position: int, failures: int = 0, error: str = "") -> TimerSet:
    return TimerSet("t", "p", "me", 1, "c", "", 50.0, b"null", failures, error, position)


def fate(position: int, *attempts: Attempt, **known: Any) -> Fate:
    told = fate_of(position, Known(since=10, **{"cursor": 15, **known}, failed=attempts))
    assert told.state in STATES
    return told


def test_up_to_the_cursor_it_is_handled_or_nobody_wanted_it() -> None:
    assert fate(15) == Fate("handled")
    assert fate(15, outcomes=[outcome("answered")]) == Fate("handled")
    assert fate(11, wanted=False) == Fate("passed_over")


def test_what_grew_stale_was_passed_unless_a_replay_handled_it_since() -> None:
    assert fate(12, outcomes=[outcome(PASSED)]) == Fate("passed")
    assert fate(12, outcomes=[outcome(PASSED), outcome(SET_BACK), outcome("answered")]) == Fate("handled", replays=1)


def test_what_is_older_than_the_plugins_service_was_never_offered() -> None:
    assert fate(10) == Fate("never_offered")
    assert fate(10, wanted=False) == Fate("never_offered")


def test_a_replay_offers_what_is_older_than_the_plugins_service() -> None:
    back = [outcome(SET_BACK)]
    assert fate(10, cursor=3, outcomes=back) == Fate("waiting", replays=1)
    assert fate(10, outcomes=back) == Fate("handled", replays=1)


def test_behind_the_cursor_it_waits_and_for_what() -> None:
    assert fate(16) == Fate("waiting")
    assert fate(18, failed(16)) == Fate("waiting", behind=16)
    assert fate(16, failed(18)) == Fate("waiting")
    assert fate(16, paused=True) == Fate("paused")
    assert fate(12, cursor=11, outcomes=[outcome(SET_BACK)]) == Fate("waiting", replays=1)


def test_a_failing_event_tells_its_attempts_and_the_next() -> None:
    assert fate(16, failed(16)) == Fate("failing", 2, NO, 20.0)
    assert fate(18, failed(16, until=18)) == Fate("failing", 2, NO, 20.0), "it is one of the same turn"
    assert fate(19, failed(16, until=18)) == Fate("waiting", behind=16)
    assert fate(16, failed(16, count=0, deaths=1, error="")) == Fate("failing", 1, None, 20.0)
    assert fate(16, failed(16), paused=True).state == "failing"


def test_a_turn_that_noted_progress_does_not_fail() -> None:
    assert fate(16, noted_progress(16)) == Fate("waiting")
    assert fate(16, noted_progress(16), running=True) == Fate("running")
    assert fate(16, failed(16), running=True) == Fate("running", 2)
    assert fate(18, noted_progress(16)) == Fate("waiting"), "nothing fails ahead of it"


def test_an_event_that_was_set_aside_tells_when_it_comes() -> None:
    assert fate(12, aside=aside(12)) == Fate("aside", 0, None, 50.0)
    assert fate(12, aside=aside(12, 1, NO)) == Fate("aside", 1, NO, 50.0)


def test_a_dead_letter_is_told_by_its_number_and_whether_the_lane_waits_behind_it() -> None:
    assert fate(12, letter=letter(12)) == Fate("dead", 5, NO, letter=3)
    assert fate(12, letter=letter(12, dropped_at=11.0)) == Fate("dead", 5, NO, letter=3)
    assert fate(16, failed(16, math.inf), letter=letter(16)) == Fate("held", 5, NO, letter=3)


def test_a_dead_letter_that_was_tried_again_is_dead_only_if_it_died_since() -> None:
    dropped, tried = letter(12, dropped_at=10.0), outcome(TRIED_AGAIN)
    assert fate(12, letter=dropped, outcomes=[tried], aside=aside(12)).state == "aside"
    assert fate(12, letter=dropped, outcomes=[tried]) == Fate("handled", replays=1)
    assert fate(12, letter=letter(12), outcomes=[outcome(TRIED_AGAIN, at=8.0)]).state == "dead"
    assert fate(12, letter=letter(12), outcomes=[outcome(SET_BACK)], cursor=11).state == "waiting"
