"""A death at which several ran proves nothing about any of them; who was alone, and suspect before, is condemned."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.quarantine import is_tried, judge


def test_everything_that_ran_is_suspect_after_the_first_death() -> None:
    assert judge(["a", "b"], {}) == ({"a": 1, "b": 1}, None)


def test_who_ran_alone_at_two_deaths_is_condemned() -> None:
    assert judge(["a"], {"a": 1}) == ({"a": 2}, "a")


def test_who_ran_beside_another_is_never_condemned_for_it_however_often() -> None:
    assert judge(["new", "old"], {"old": 9}) == ({"new": 1, "old": 10}, None)


def test_who_was_there_twice_is_tried_alone() -> None:
    deaths = judge(["a", "b"], {"a": 1}).deaths
    assert {each: is_tried(count) for each, count in deaths.items()} == {"a": True, "b": False}


def test_a_death_while_nothing_ran_is_nobodys() -> None:
    assert judge([], {"a": 5}) == ({}, None)


@given(
    st.sets(st.integers(0, 5), min_size=1, max_size=4),
    st.lists(st.sets(st.integers(6, 20), max_size=6), min_size=40, max_size=40),
)
def test_all_killers_are_condemned_in_the_end_and_nobody_else(killers: set[int], crowds: list[set[int]]) -> None:
    deaths: dict[int, int] = {}
    condemned: set[int] = set()
    for crowd in crowds:
        waiting = (killers | crowd | set(deaths)) - condemned
        tried = sorted(each for each in waiting if is_tried(deaths.get(each, 0)))
        # Trials come first and one by one; who survives is through, and not suspect any more.
        running: set[int] | None = None
        for each in tried:
            if each in killers:
                running = {each}
                break
            deaths.pop(each)
            waiting.discard(each)
        if running is None:
            running = waiting
        if not running & killers:
            break  # nothing kills the process any more
        judgement = judge(running, deaths)
        deaths.update(judgement.deaths)
        if judgement.condemned is not None:
            condemned.add(judgement.condemned)
            deaths.pop(judgement.condemned)
    assert condemned == killers
