"""The pace of sends, with time as a number."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.pacing import Pace, Pacing

PACE = Pace(
    rate_per_s=10.0,
    burst=5,
    warned_rate_per_s=4.0,
    slowest_rate_per_s=0.5,
    recovery_per_s=1.0,
    retry_first_s=1.0,
    retry_max_s=8.0,
    reply_wait_max_s=100.0,
)


def test_an_unknown_target_may_be_sent_to_at_once() -> None:
    assert Pacing(PACE).may_leave_at("@bob", 3.0) <= 3.0


def test_a_burst_is_let_through_and_then_the_identity_keeps_its_rate() -> None:
    pacing = Pacing(PACE)
    left = []
    now = 0.0
    while len(left) < 25:
        now = max(now, pacing.may_leave_at(f"@t{len(left)}", now))
        pacing.leaves(f"@t{len(left)}", now)
        left.append(now)
    assert left[:5] == [0.0] * 5
    assert all(later - earlier >= 0.0999 for earlier, later in itertools.pairwise(left[4:]))


def test_each_warning_halves_the_rate_down_to_the_slowest() -> None:
    pacing = Pacing(PACE)
    rates = []
    for step in range(6):
        pacing.accepted("@bob", float(step), backlog=5_000 + step)
        rates.append(pacing.rate_of("@bob"))
    assert rates == [4.0, 2.0, 1.0, 0.5, 0.5, 0.5]
    assert pacing.backlog_of("@bob") == 5_005
    assert pacing.may_leave_at("@bob", 5.0) == 5.0 + 1 / 0.5


def test_a_target_recovers_step_by_step_until_it_has_no_limit_of_its_own() -> None:
    pacing = Pacing(PACE)
    pacing.accepted("@bob", 0.0, backlog=5_000)
    seen = []
    while pacing.rate_of("@bob") is not None:
        pacing.accepted("@bob", 10.0, backlog=None)
        seen.append(pacing.rate_of("@bob"))
    assert seen == [5.0, 6.0, 7.0, 8.0, 9.0, None]
    assert pacing.backlog_of("@bob") is None


def test_a_backlogged_target_is_tried_again_after_growing_intervals_and_delays_nobody_else() -> None:
    pacing = Pacing(PACE)
    waits = [pacing.refused_for_now("@bob", "target", 0.0, None) for _ in range(5)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert pacing.may_leave_at("@carol", 0.0) <= 0.0


def test_retry_after_wins_over_the_growing_interval() -> None:
    assert Pacing(PACE).refused_for_now("@bob", "target", 5.0, 42.0) == 47.0


def test_a_refusal_of_the_identity_holds_every_target() -> None:
    pacing = Pacing(PACE)
    pacing.refused_for_now("@bob", "identity", 0.0, 3.0)
    assert pacing.may_leave_at("@carol", 0.0) == 3.0


def test_awaiting_a_reply_ends_with_the_reply_and_not_with_the_clock() -> None:
    pacing = Pacing(PACE)
    pacing.refused_for_now("@bob", "reply", 0.0, None)
    assert pacing.may_leave_at("@bob", 0.0) == 100.0
    assert pacing.awaiting == {"@bob"}
    assert pacing.replied("@carol") is False
    assert pacing.replied("@bob") is True
    assert pacing.may_leave_at("@bob", 1.0) <= 1.0
    assert pacing.replied("@bob") is False


ANSWER = st.one_of(
    st.tuples(st.just("accepted"), st.none() | st.integers(5_000, 10_000)),
    st.tuples(st.sampled_from(["target", "identity", "reply"]), st.none() | st.floats(0, 30)),
)


@given(st.lists(st.tuples(st.sampled_from(["@a", "@b"]), ANSWER), max_size=30))
def test_whatever_is_answered_every_target_may_go_again_within_the_longest_wait(
    answers: list[tuple[str, tuple[str, float | None]]],
) -> None:
    pacing, now = Pacing(PACE), 0.0
    for target, (kind, value) in answers:
        pacing.leaves(target, now)
        if kind == "accepted":
            pacing.accepted(target, now, None if value is None else int(value))
        else:
            pacing.refused_for_now(target, kind, now, value)
        for other in ("@a", "@b", "@c"):
            assert pacing.may_leave_at(other, now) <= now + 100.0
        now += 0.5
