"""When an identity dials, and when it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from agentd.core.reconnect import (
    ASKED_DELAY_MAX_S,
    JITTER,
    CloseMeaning,
    Dial,
    Park,
    Reconnect,
    Throttle,
    backoff_s,
)

FIRST_S, MAX_S, STABLE_S = 0.5, 30.0, 30.0
AGAIN, REFUSED = CloseMeaning.AGAIN, CloseMeaning.REFUSED
CHANCES = st.floats(0.0, 1.0, exclude_max=True)


def reconnect() -> Reconnect:
    return Reconnect(first_s=FIRST_S, max_s=MAX_S, stable_s=STABLE_S)


def dial_fails(subject: Reconnect, *, chance: float = 0.5, asked_delay_s: float | None = None) -> Dial:
    subject.dialling()
    decision = subject.ended(0.0, AGAIN, chance, asked_delay_s)
    assert isinstance(decision, Dial)
    return decision


def lives(subject: Reconnect, seconds: float) -> Dial:
    subject.dialling()
    subject.opened(100.0)
    decision = subject.ended(100.0 + seconds, AGAIN, 0.5)
    assert isinstance(decision, Dial)
    return decision


@given(st.integers(1, 10_000), st.floats(0.01, 10), st.floats(1, 1_000), CHANCES)
def test_a_backoff_doubles_up_to_its_cap_and_is_jittered_by_a_quarter(
    failures: int, first_s: float, factor: float, chance: float
) -> None:
    max_s = first_s * factor
    nominal = first_s
    for _ in range(min(failures - 1, 100)):
        nominal = min(max_s, 2 * nominal)
    delay = backoff_s(failures, first_s, max_s, chance)
    assert nominal * (1 - JITTER) * 0.999 <= delay <= nominal * (1 + JITTER) * 1.001


@given(st.integers(1, 20))
def test_chance_spreads_the_backoff_over_its_whole_range(failures: int) -> None:
    low, middle, high = (backoff_s(failures, FIRST_S, MAX_S, chance) for chance in (0.0, 0.5, 0.999_999))
    assert low == pytest.approx(middle * 0.75)
    assert high == pytest.approx(middle * 1.25, rel=1e-5)


def test_failing_dials_wait_longer_and_longer() -> None:
    subject = reconnect()
    assert [dial_fails(subject).after_s for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_short_life_does_not_start_the_backoff_over() -> None:
    subject = reconnect()
    dial_fails(subject)
    assert lives(subject, STABLE_S - 0.1).after_s == 1.0
    assert subject.failures == 2


def test_a_stable_life_starts_the_backoff_over() -> None:
    subject = reconnect()
    for _ in range(5):
        dial_fails(subject)
    assert lives(subject, STABLE_S).after_s == 0.5
    assert subject.failures == 1


def test_a_dial_that_takes_long_is_no_stable_life() -> None:
    subject = reconnect()
    dial_fails(subject)
    subject.dialling()
    assert subject.ended(10_000.0, AGAIN, 0.5) == Dial(1.0)


def test_a_refused_key_parks_until_another_comes_which_dials_at_once() -> None:
    subject = reconnect()
    dial_fails(subject)
    subject.dialling()
    assert subject.ended(1.0, REFUSED, 0.5) == Park()
    assert subject.parked
    assert subject.key_changed() == Dial(0.0)
    assert not subject.parked
    assert dial_fails(subject).after_s == 0.5


def test_a_parked_identity_cannot_dial() -> None:
    subject = reconnect()
    subject.dialling()
    subject.ended(0.0, REFUSED, 0.5)
    with pytest.raises(AssertionError):
        subject.dialling()


@pytest.mark.parametrize("opened", [False, True])
def test_the_refusal_of_a_key_that_was_replaced_meanwhile_does_not_park(opened: bool) -> None:
    subject = reconnect()
    subject.dialling()
    if opened:
        subject.opened(0.0)
    assert subject.key_changed() is None
    assert subject.ended(1.0, REFUSED, 0.5) == Dial(0.0)
    subject.dialling()
    assert subject.ended(2.0, REFUSED, 0.5) == Park()


def test_another_key_changes_nothing_for_an_identity_that_waits() -> None:
    subject = reconnect()
    dial_fails(subject)
    assert subject.key_changed() is None
    assert subject.failures == 1


@given(st.floats(0, 10 * ASKED_DELAY_MAX_S), CHANCES)
def test_a_wait_that_was_asked_for_lengthens_the_delay_and_never_shortens_it(asked_s: float, chance: float) -> None:
    plain = dial_fails(reconnect(), chance=chance).after_s
    delay = dial_fails(reconnect(), chance=chance, asked_delay_s=asked_s).after_s
    assert delay >= max(plain, min(asked_s, ASKED_DELAY_MAX_S))
    assert delay <= max(plain, min(asked_s, ASKED_DELAY_MAX_S) * (1 + JITTER))


class AnyLife(RuleBasedStateMachine):
    """Whatever happens, in whatever order: delays stay in bounds, and only a refusal parks."""

    @initialize()
    def begin(self) -> None:
        self.subject = reconnect()
        self.now = 0.0
        self.phase = "waiting"
        self.short_lives = 0
        self.newer_key = False

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.phase == "waiting")
    @rule()
    def dialling(self) -> None:
        self.subject.dialling()
        self.phase, self.newer_key = "dialling", False

    @precondition(lambda self: self.phase == "dialling")
    @rule()
    def opened(self) -> None:
        self.subject.opened(self.now)
        self.phase, self.opened_at = "open", self.now

    @precondition(lambda self: self.phase in ("dialling", "open"))
    @rule(chance=CHANCES)
    def ended(self, chance: float) -> None:
        stable = self.phase == "open" and self.now - self.opened_at >= STABLE_S
        self.short_lives = 1 if stable else self.short_lives + 1
        decision = self.subject.ended(self.now, AGAIN, chance)
        nominal = min(MAX_S, FIRST_S * 2 ** (self.short_lives - 1))
        assert isinstance(decision, Dial)
        assert nominal * 0.75 <= decision.after_s <= nominal * 1.25
        self.phase = "waiting"

    @precondition(lambda self: self.phase in ("dialling", "open"))
    @rule(chance=CHANCES)
    def refused(self, chance: float) -> None:
        decision = self.subject.ended(self.now, REFUSED, chance)
        if self.newer_key:
            assert decision == Dial(0.0)
            self.phase, self.short_lives = "waiting", 0
        else:
            assert decision == Park()
            self.phase = "parked"
        assert self.subject.parked is (self.phase == "parked")

    @rule()
    def key_changed(self) -> None:
        decision = self.subject.key_changed()
        self.newer_key = True
        if self.phase == "parked":
            assert decision == Dial(0.0)
            self.phase, self.short_lives = "waiting", 0
        else:
            assert decision is None
        assert not self.subject.parked


TestAnyLife = AnyLife.TestCase


@given(st.floats(0.1, 1_000), st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_the_throttle_spaces_dials_and_never_holds_one_that_may_go(rate: float, steps: list[float]) -> None:
    throttle = Throttle(rate)
    now, last = 0.0, None
    for step in steps:
        now += step
        start = throttle.reserve(now)
        earliest = now if last is None else max(now, last + 1 / rate)
        assert start == pytest.approx(earliest)
        last = start


def test_hundreds_of_dials_at_once_start_at_the_rate() -> None:
    throttle = Throttle(20.0)
    starts = [throttle.reserve(5.0) for _ in range(401)]
    assert starts[0] == 5.0
    assert starts[-1] == pytest.approx(25.0)


def test_an_idle_throttle_saves_nothing_up() -> None:
    throttle = Throttle(1.0)
    throttle.reserve(0.0)
    assert throttle.reserve(1_000.0) == 1_000.0
    assert throttle.reserve(1_000.0) == 1_001.0


def test_the_first_dials_of_a_take_over_come_faster_and_those_after_them_do_not() -> None:
    throttle = Throttle(10.0, first=3, first_per_s=100.0)
    assert [round(throttle.reserve(5.0), 3) for _ in range(6)] == [5.0, 5.01, 5.02, 5.03, 5.13, 5.23]
    assert Throttle(10.0, first=1).reserve(5.0) == 5.0
