"""One death of the process proves nothing; whoever was there each time, and alone in that, is condemned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.core import quarantine
from agentd.core.quarantine import Deaths, judge, runs_alone


def test_everything_that_ran_is_suspect_after_the_first_death() -> None:
    assert judge(["a", "b"], {}) == ({"a": 1, "b": 1}, None)


def test_who_ran_alone_at_two_deaths_is_condemned() -> None:
    assert judge(["a"], {"a": 1}) == ({"a": 2}, "a")


def test_who_was_there_for_the_first_time_is_not_blamed_beside_one_who_was_there_before() -> None:
    assert judge(["new", "old"], {"old": 1}) == ({"old": 2}, "old")


def test_two_who_were_there_each_time_run_alone_from_then_on_and_nobody_is_condemned_yet() -> None:
    deaths, condemned = judge(["a", "b", "new"], {"a": 1, "b": 1})
    assert (deaths, condemned) == ({"a": 2, "b": 2}, None)
    assert all(runs_alone(count) for count in deaths.values())
    assert judge(["b", "new"], deaths) == ({"b": 3}, "b")


def test_a_death_while_nothing_ran_is_nobodys() -> None:
    assert judge([], {"a": 5}) == ({}, None)


@given(st.lists(st.sets(st.integers(1, 8)), min_size=3, max_size=3))
def test_a_killer_among_any_crowd_is_condemned_by_its_third_death_and_no_other(crowds: list[set[int]]) -> None:
    killer = 0
    deaths: dict[int, int] = {}
    for crowd in crowds:
        # Those that run alone wait until it is their turn; here the killer's comes first.
        company = {each for each in crowd if not runs_alone(deaths.get(each, 0))}
        blamed, condemned = judge([killer, *company], deaths)
        deaths.update(blamed)
        if condemned is not None:
            assert condemned == killer
            assert deaths[killer] <= 3
            return
    raise AssertionError("never condemned")


def test_deaths_are_remembered_until_the_event_is_through_or_condemned() -> None:
    deaths: Deaths[str] = Deaths()
    assert deaths.died(["a", "b"]) == ({"a": 1, "b": 1}, None)
    deaths.forget("b")
    assert deaths.died(["a", "b"]) == ({"a": 2}, "a")
    assert deaths.died(["a", "b"]) == ({"a": 1, "b": 1}, None)


def test_the_oldest_suspect_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "SUSPECTS_MAX", 2)
    deaths: Deaths[str] = Deaths()
    for event in ("a", "b", "c"):
        deaths.died([event])
    assert deaths.died(["a"]) == ({"a": 1}, None)
    assert deaths.died(["c"]) == ({"c": 2}, "c")
