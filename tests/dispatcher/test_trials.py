"""Suspects of a crash have the floor one by one, each for a while and all together for a while; time as a number."""

import logging

import pytest

from agentd.dispatcher.trials import Trial, Trials


def called(trials: Trials, *keys: int) -> None:
    for key in keys:
        trials.call(Trial(None, key, True))


def test_each_has_the_floor_until_it_ends_or_its_time_is_over() -> None:
    trials = Trials(3.0, 30.0)
    called(trials, 1, 2, 3)
    trials.began(0.0)
    assert trials.current(2.9).key == 1
    trials.over(None, 1)
    assert trials.current(2.9).key == 2
    trials.began(3.0)
    assert trials.next_end() == 6.0
    assert trials.current(6.0).key == 3


def test_a_crowd_of_suspects_holds_nobody_up_for_longer_than_all_may_take_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trials = Trials(3.0, 5.0)
    called(trials, *range(10))
    with caplog.at_level(logging.WARNING):
        for now in (0.0, 3.0):
            assert trials.current(now) is not None
            trials.began(now)
        assert trials.next_end() == 5.0
        assert trials.current(5.0) is None
    assert "9 suspects of the last crash were not tried in time: see trials_s" in caplog.text
