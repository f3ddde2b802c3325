"""Delays grow, are spread, obey the handler and end in a dead letter."""

import math

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.core.retry import Again, Backoff, Bury, after_failure

chances = st.floats(0.0, 1.0, exclude_max=True)
backoffs = st.builds(
    lambda first, more: Backoff(first_s=first, max_s=first + more), st.floats(0.01, 10.0), st.floats(0.0, 1_000.0)
)


@given(st.integers(1, 200), st.integers(1, 200), backoffs, chances)
def test_an_event_is_tried_again_exactly_while_attempts_are_left(
    failures: int, attempts: int, backoff: Backoff, chance: float
) -> None:
    verdict = after_failure(failures, attempts, backoff, chance)
    assert isinstance(verdict, Again) == (failures < attempts)
    if isinstance(verdict, Bury):
        assert verdict.failures == failures


@given(st.integers(1, 5_000), backoffs, chances)
def test_a_delay_lies_between_half_and_all_of_the_doubled_first_and_under_the_most(
    failures: int, backoff: Backoff, chance: float
) -> None:
    verdict = after_failure(failures, 10_000, backoff, chance)
    assert isinstance(verdict, Again)
    whole = min(backoff.max_s, backoff.first_s * 2.0 ** min(failures - 1, 60))
    assert whole / 2 <= verdict.after_s <= whole


@given(st.floats(0.0, 1e6), chances)
def test_what_the_handler_asked_for_is_never_undercut(asked_s: float, chance: float) -> None:
    verdict = after_failure(1, 2, Backoff(), chance, asked_s)
    assert isinstance(verdict, Again)
    assert asked_s <= verdict.after_s <= asked_s * 1.1


@given(st.sampled_from([math.inf, -math.inf, math.nan]))
def test_a_handler_that_asks_for_no_number_gets_the_ordinary_delay(asked_s: float) -> None:
    assert after_failure(1, 2, Backoff(), 0.0, asked_s) == after_failure(1, 2, Backoff(), 0.0)


def test_a_negative_wish_means_at_once() -> None:
    assert after_failure(1, 2, Backoff(), 0.9, -5.0) == Again(0.0)


def test_lanes_that_failed_together_come_back_apart() -> None:
    assert len({after_failure(3, 9, Backoff(), chance / 10) for chance in range(10)}) == 10


class EventsUntilTheirFate(RuleBasedStateMachine):
    """One event after the other that fails again and again, with a clock: what a lane does with the verdicts."""

    @initialize(attempts=st.integers(1, 12), backoff=backoffs)
    def begin(self, attempts: int, backoff: Backoff) -> None:
        self.attempts, self.backoff = attempts, backoff
        self.now = 0.0
        self.next_event()

    @rule()
    def next_event(self) -> None:
        self.failures = 0
        self.not_before = self.now
        self.waited: list[float] = []
        self.buried = False

    @precondition(lambda self: not self.buried)
    @rule(chance=chances, asked_s=st.none() | st.floats(-10.0, 1e5))
    def fail(self, chance: float, asked_s: float | None) -> None:
        self.now = max(self.now, self.not_before)
        self.failures += 1
        verdict = after_failure(self.failures, self.attempts, self.backoff, chance, asked_s)
        if isinstance(verdict, Bury):
            self.buried = True
            assert verdict.failures == self.failures == self.attempts
            return
        self.not_before = self.now + verdict.after_s
        if asked_s is None:
            self.waited.append(verdict.after_s)
        else:
            assert self.not_before >= self.now + asked_s

    @invariant()
    def it_never_runs_more_often_than_it_may(self) -> None:
        if hasattr(self, "attempts"):
            assert self.failures <= self.attempts
            assert self.buried == (self.failures == self.attempts)

    @invariant()
    def no_wait_is_endless_or_in_the_past(self) -> None:
        if hasattr(self, "attempts"):
            assert self.now <= self.not_before < math.inf or self.buried or not self.failures
            assert all(0.0 < wait_s <= self.backoff.max_s for wait_s in self.waited)


TestEventsUntilTheirFate = EventsUntilTheirFate.TestCase


@given(st.integers(1, 100), backoffs, chances, chances)
def test_a_delay_is_at_most_four_times_the_one_before_whatever_chance_says(
    failures: int, backoff: Backoff, one: float, other: float
) -> None:
    first = after_failure(failures, 1_000, backoff, one)
    second = after_failure(failures + 1, 1_000, backoff, other)
    assert isinstance(first, Again)
    assert isinstance(second, Again)
    assert first.after_s / 2 <= second.after_s <= first.after_s * 4
