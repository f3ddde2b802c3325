"""A plugin that is out of order waits as a whole; a lane that is out of order fails alone."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.breaker import Breaker, Breakers, Limits, Standing

LIMITS = Limits(lanes=3, first_s=1.0, max_s=8.0)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(LIMITS)
    for lane in range(3):
        breaker.failed(lane, now)
    return breaker


def test_failures_of_as_many_lanes_in_a_row_open_it_and_that_failure_is_nobodys_fault() -> None:
    breaker = Breaker(LIMITS)
    assert [breaker.failed(lane, 0.0) for lane in "abc"] == [True, True, False]
    assert breaker.standing is Standing.OPEN
    assert not breaker.may_begin(0.9)


def test_one_lane_that_fails_for_ever_opens_nothing() -> None:
    breaker = Breaker(LIMITS)
    assert all(breaker.failed("poison", float(now)) for now in range(100))
    assert breaker.closed


def test_a_success_in_between_starts_the_count_anew() -> None:
    breaker = Breaker(LIMITS)
    for lane in range(100):
        breaker.failed(lane, 0.0)
        breaker.succeeded("healthy")
    assert breaker.closed


def test_a_plugin_that_says_so_opens_it_at_once_for_as_long_as_it_asked() -> None:
    breaker = Breaker(LIMITS)
    assert not breaker.failed("a", 10.0, asked_s=30.0, whole_plugin=True)
    assert breaker.until == 40.0


def test_a_failed_trial_costs_an_attempt_once_the_pauses_have_grown_to_the_longest() -> None:
    breaker, now, costs = opened(), 0.0, []
    for _ in range(6):
        now = breaker.until
        assert breaker.may_begin(now)
        breaker.began("x")
        costs.append(breaker.failed("x", now))
    assert costs == [False, False, False, True, True, True]  # pauses of 1, 2, 4, then 8 seconds
    assert breaker.may_begin(breaker.until)
    breaker.began("x")
    assert not breaker.failed("x", breaker.until, whole_plugin=True)


def test_one_trial_is_let_through_and_its_success_closes_it() -> None:
    breaker = opened()
    assert breaker.may_begin(1.0)
    breaker.began("x")
    assert breaker.standing is Standing.HALF_OPEN
    assert not breaker.may_begin(2.0)
    breaker.succeeded("began before it opened")
    assert not breaker.closed
    breaker.succeeded("x")
    assert breaker.closed
    assert breaker.may_begin(2.0)


def test_each_failed_trial_doubles_the_wait_up_to_the_limit() -> None:
    breaker, now, waits = opened(), 0.0, []
    for _ in range(6):
        waits.append(breaker.until - now)
        now = breaker.until
        assert breaker.may_begin(now)
        breaker.began("x")
        breaker.failed("x", now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_late_failures_of_calls_that_ran_when_it_opened_cost_no_attempt_and_no_time() -> None:
    breaker = opened()
    assert not breaker.failed("slow", 0.5)
    assert breaker.until == 1.0


Steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "succeed", "fail", "whole"]),
        st.integers(0, 5),
        st.floats(0, 3),
        st.none() | st.floats(0, 100) | st.just(float("inf")),
    ),
    max_size=80,
)


@given(Steps)
def test_in_any_order_at_most_one_call_begins_while_it_is_not_closed(steps: list) -> None:
    breaker, now, trials = Breaker(LIMITS), 0.0, 0
    for what, lane, passed, asked in steps:
        now += passed
        if what == "begin" and breaker.may_begin(now):
            if not breaker.closed:
                trials += 1
                assert trials == 1
                assert now >= breaker.until
            breaker.began(lane)
        elif what == "succeed":
            breaker.succeeded(lane)
        elif what in ("fail", "whole"):
            counted = breaker.failed(lane, now, asked_s=asked, whole_plugin=what == "whole")
            assert counted == breaker.closed
        if breaker.standing is not Standing.HALF_OPEN:
            trials = 0
            assert breaker.closed or breaker.until >= now - passed or now >= breaker.until


# --- of several owners


def shared() -> Breakers:
    breakers = Breakers(LIMITS)
    breakers.shared = True
    return breakers


def test_what_fails_for_one_owner_alone_makes_that_one_wait() -> None:
    breakers = shared()
    assert [breakers.failed("alice", lane, 0.0) for lane in "abcdef"] == [True, True, False, False, False, False]
    assert breakers.whole.closed
    assert breakers.barred(0.5) == ["alice"]
    assert breakers.trials() == [1.0]
    assert breakers.standing("alice").standing is Standing.OPEN
    assert breakers.standing("bob").closed
    breakers.succeeded("bob", "x")
    assert breakers.barred(0.5) == ["alice"], "that others fare well says nothing of this one"
    assert breakers.barred(1.0) == []
    breakers.began("alice", "a")
    assert breakers.barred(1.0) == ["alice"], "one trial at a time"
    breakers.succeeded("alice", "a")
    assert (breakers.barred(1.0), breakers.troubled, breakers.waiting()) == ([], False, {})


def test_as_soon_as_a_second_owner_fails_too_it_is_the_whole_plugin() -> None:
    breakers = shared()
    for lane in "abc":
        breakers.failed("alice", lane, 0.0)
    assert not breakers.failed("bob", "x", 0.0)
    assert breakers.whole.standing is Standing.OPEN
    assert breakers.waiting() == {}, "it waits as a whole"


def test_of_many_owners_that_fail_once_each_nobody_is_to_blame() -> None:
    breakers = shared()
    assert [breakers.failed(f"owner {number}", number, 0.0) for number in range(3)] == [True, True, False]
    assert breakers.whole.standing is Standing.OPEN
    assert breakers.whole.may_begin(1.0)
    breakers.began("owner 3", 3)
    breakers.succeeded("owner 3", 3)
    assert breakers.whole.closed


def test_a_plugin_with_one_owner_has_one_breaker() -> None:
    breakers = Breakers(LIMITS)
    assert [breakers.failed("alice", lane, 0.0) for lane in "abc"] == [True, True, False]
    assert breakers.whole.standing is Standing.OPEN
    assert breakers.barred(0.0) == []


def test_a_plugin_that_says_that_nobody_fares_better_waits_as_a_whole_at_once() -> None:
    breakers = shared()
    assert not breakers.failed("alice", "a", 10.0, asked_s=30.0, whole_plugin=True)
    assert breakers.whole.until == 40.0


def test_an_owner_that_has_left_keeps_nothing_waiting() -> None:
    breakers = shared()
    for lane in "abc":
        breakers.failed("alice", lane, 0.0)
    breakers.whole.succeeded("x")
    breakers.forget("alice")
    assert (breakers.barred(0.0), breakers.trials(), breakers.troubled) == ([], [], False)


Calls = st.lists(
    st.tuples(
        st.sampled_from(["begin", "succeed", "fail", "whole", "die"]),
        st.sampled_from(["alice", "bob", "carol"]),
        st.integers(0, 3),
        st.floats(0, 3),
    ),
    max_size=100,
)


@given(Calls)
def test_in_any_order_nobody_waits_without_a_trial_to_come_and_calm_forgets_everything(calls: list) -> None:
    breakers, now = shared(), 0.0
    out: set[tuple[str, int]] = set()
    for what, owner, number, passed in calls:
        now += passed
        lane = (owner, number)
        may = breakers.whole.may_begin(now) and owner not in breakers.barred(now)
        if what == "begin" and may and lane not in out:
            breakers.began(owner, lane)
            out.add(lane)
        elif lane in out and what != "begin":
            out.discard(lane)
            if what == "succeed":
                breakers.succeeded(owner, lane)
            elif what == "die":
                breakers.died(owner, lane, now)
            else:
                breakers.failed(owner, lane, now, whole_plugin=what == "whole")
        waits = [*breakers.waiting().values()] or ([] if breakers.whole.closed else [breakers.whole])
        for each in waits:
            assert each.standing is Standing.HALF_OPEN or each.until in breakers.trials()
    for owner, number in out:
        breakers.succeeded(owner, (owner, number))
    for owner in ("alice", "bob", "carol"):
        for _ in range(2):  # the trial of all may be another's
            now += 100.0
            if breakers.whole.may_begin(now) and owner not in breakers.barred(now):
                breakers.began(owner, (owner, 0))
                breakers.succeeded(owner, (owner, 0))
    assert breakers.whole.closed
    assert (breakers.barred(now), breakers.troubled) == ([], False)
