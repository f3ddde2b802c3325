"""The pace of sends, with time as a number."""

import itertools
from collections.abc import Iterable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agentd.core.pacing import Pace, Pacing

PACE = Pace(
    rate_per_s=10.0,
    burst=5,
    slowest_identity_per_s=1.0,
    identity_recovery_per_s=0.5,
    warned_rate_per_s=4.0,
    slowest_rate_per_s=0.5,
    recovery_per_s=1.0,
    group_rate_per_s=2.0,
    retry_first_s=1.0,
    retry_max_s=8.0,
    reply_wait_max_s=100.0,
    jitter=0.5,
    forget_after_s=50.0,
    targets_max=3,
)
LONGEST_WAIT_S = 150.0
"""Of a reply, with all its jitter."""


def leave_times(pacing: Pacing, targets: Iterable[str], now: float = 0.0) -> list[float]:
    """When sends to these targets leave, each as soon as it may, one after the other."""
    left = []
    for target in targets:
        now = max(now, pacing.may_leave_at(target, now))
        pacing.leaves(target, now)
        left.append(now)
    return left


def test_an_unknown_target_may_be_sent_to_at_once() -> None:
    assert Pacing(PACE).may_leave_at("@bob", 3.0) <= 3.0


def test_a_burst_is_let_through_and_then_the_identity_keeps_its_rate() -> None:
    left = leave_times(Pacing(PACE), [f"@t{number}" for number in range(25)])
    assert left[:5] == [0.0] * 5
    assert all(later - earlier >= 0.0999 for earlier, later in itertools.pairwise(left[4:]))


def test_each_warning_that_is_no_better_than_the_last_halves_the_rate_down_to_the_slowest() -> None:
    pacing = Pacing(PACE)
    rates = []
    for step in range(6):
        pacing.accepted("@bob", float(step), backlog=5_000 + step)
        rates.append(pacing.rate_of("@bob"))
    assert rates == [4.0, 2.0, 1.0, 0.5, 0.5, 0.5]
    assert pacing.backlog_of("@bob") == 5_005
    assert pacing.may_leave_at("@bob", 5.0) == 5.0 + 1 / 0.5


def test_a_backlog_that_falls_already_is_not_answered_with_less() -> None:
    pacing = Pacing(PACE)
    for step, backlog in enumerate((6_000, 6_001, 5_500, 5_000)):
        pacing.accepted("@bob", float(step), backlog)
    assert pacing.rate_of("@bob") == 2.0
    assert pacing.backlog_of("@bob") == 5_000


def test_a_target_recovers_step_by_step_until_it_has_no_limit_of_its_own() -> None:
    pacing = Pacing(PACE)
    pacing.accepted("@bob", 0.0, backlog=5_000)
    seen = []
    while pacing.rate_of("@bob") is not None:
        pacing.accepted("@bob", 10.0, backlog=None)
        seen.append(pacing.rate_of("@bob"))
    assert seen == [5.0, 6.0, 7.0, 8.0, 9.0, None]
    assert pacing.backlog_of("@bob") is None
    assert len(pacing) == 0


def test_a_backlogged_target_is_tried_again_after_growing_intervals_and_delays_nobody_else() -> None:
    pacing = Pacing(PACE)
    waits = [pacing.refused_for_now("@bob", "target", 0.0, None, chance=0.0) for _ in range(5)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0]
    assert pacing.may_leave_at("@carol", 0.0) <= 0.0


def test_an_answer_of_any_kind_begins_the_growing_intervals_anew() -> None:
    pacing = Pacing(PACE)
    for answered in (lambda: pacing.accepted("@bob", 5.0, None), lambda: pacing.rejected("@bob")):
        pacing.refused_for_now("@bob", "target", 0.0, None, chance=0.0)
        pacing.refused_for_now("@bob", "target", 2.0, None, chance=0.0)
        answered()
        assert pacing.refused_for_now("@bob", "target", 10.0, None, chance=0.0) == 11.0
        pacing.accepted("@bob", 20.0, None)


def test_a_refusal_that_tells_the_backlog_sets_a_rate_which_trials_do_not_lower() -> None:
    pacing = Pacing(PACE)
    for trial in range(3):
        pacing.refused_for_now("@bob", "target", float(trial), None, backlog=10_000, chance=0.0)
    assert pacing.backlog_of("@bob") == 10_000
    assert pacing.rate_of("@bob") == 4.0


def test_a_recipient_that_has_read_is_sent_to_at_its_new_rate_at_once() -> None:
    pacing = Pacing(PACE)
    for step in range(5):
        pacing.accepted("@bob", 0.0, backlog=5_000 + step)
    now = pacing.may_leave_at("@bob", 10.0)
    pacing.leaves("@bob", now)
    pacing.accepted("@bob", now, backlog=None)
    assert pacing.rate_of("@bob") == 1.5
    assert pacing.may_leave_at("@bob", now) == now + 1 / 1.5


def test_chance_lengthens_a_wait_by_its_share_and_never_shortens_it() -> None:
    assert Pacing(PACE).refused_for_now("@bob", "target", 0.0, None, chance=1.0) == 1.5
    assert Pacing(PACE).refused_for_now("@bob", "target", 5.0, 42.0, chance=0.5) == 5.0 + 42.0 * 1.25
    assert Pacing(PACE).refused_for_now("@bob", "identity", 0.0, 2.0, chance=1.0) == 3.0


def test_retry_after_wins_over_the_growing_interval() -> None:
    assert Pacing(PACE).refused_for_now("@bob", "target", 5.0, 42.0, chance=0.0) == 47.0


def test_a_refusal_of_the_identity_holds_every_target() -> None:
    pacing = Pacing(PACE)
    pacing.refused_for_now("@bob", "identity", 0.0, 3.0, chance=0.0)
    assert pacing.may_leave_at("@carol", 0.0) == 3.0


def test_awaiting_a_reply_ends_with_the_reply_and_not_with_the_clock() -> None:
    pacing = Pacing(PACE)
    pacing.refused_for_now("@bob", "reply", 0.0, None, chance=0.0)
    assert pacing.may_leave_at("@bob", 0.0) == 100.0
    assert pacing.awaiting == {"@bob"}
    assert pacing.replied("@carol") is False
    assert pacing.replied("@bob") is True
    assert pacing.may_leave_at("@bob", 1.0) <= 1.0
    assert pacing.replied("@bob") is False


def test_a_warning_about_the_identity_halves_its_rate_which_rises_again_with_time() -> None:
    pacing = Pacing(PACE)
    pacing.warned(0.0)
    pacing.warned(0.1)
    assert pacing.identity_rate == 5.05, "two warnings of one burst count once"
    left = leave_times(pacing, ["@a", "@b", "@c"], now=0.1)
    assert left[0] == 0.1, "the burst is gone, the next one is not"
    assert left[1] - left[0] > 0.19
    for second in range(1, 6):
        pacing.warned(float(second))
    assert pacing.identity_rate == 1.0
    pacing.may_leave_at("@a", 10.0)
    assert pacing.identity_rate == 1.0 + 0.5 * 5.0
    pacing.may_leave_at("@a", 1_000.0)
    assert pacing.identity_rate == 10.0


def test_a_group_takes_a_steady_rate_beside_whatever_leaves_for_others() -> None:
    pacing = Pacing(PACE)
    left = leave_times(pacing, ["grp_1"] * 4)
    assert left == [0.0, 0.5, 1.0, 1.5]
    assert pacing.may_leave_at("@bob", 1.5) <= 1.5
    assert pacing.may_leave_at("grp_2", 1.5) <= 1.5


def test_what_has_no_limit_left_is_forgotten_as_others_are_met() -> None:
    pacing = Pacing(msgspec.structs.replace(PACE, targets_max=1_000))
    for number in range(100):
        pacing.leaves(f"grp_{number}", float(number))
    assert len(pacing) <= 2


def test_a_limit_of_which_nothing_was_heard_for_long_is_forgotten() -> None:
    pacing = Pacing(PACE)
    pacing.accepted("@bob", 0.0, backlog=5_000)
    pacing.refused_for_now("@carol", "reply", 0.0, None, chance=0.0)
    pacing.leaves("grp_1", 40.0)
    assert pacing.rate_of("@bob") == 4.0
    pacing.leaves("grp_1", 51.0)
    assert pacing.rate_of("@bob") is None
    assert pacing.awaiting == {"@carol"}
    pacing.leaves("grp_1", 101.0)
    pacing.leaves("grp_1", 102.0)
    assert pacing.awaiting == set()
    assert pacing.replied("@carol") is False


TARGET = st.sampled_from(["@a", "@b", "@c", "@d", "@e", "grp_1", "grp_2"])
ANSWER = st.one_of(
    st.tuples(st.just("accepted"), st.none() | st.integers(5_000, 10_000)),
    st.tuples(st.sampled_from(["target", "identity", "reply"]), st.none() | st.floats(0, 30)),
    st.tuples(st.sampled_from(["rejected", "replied", "warned"]), st.none()),
)
CHANCE = st.floats(0, 1)
PASSED_S = st.floats(0, 60)


def answer(pacing: Pacing, target: str, kind: str, value: float | None, now: float, chance: float) -> None:
    match kind:
        case "accepted":
            pacing.accepted(target, now, None if value is None else int(value))
        case "rejected":
            pacing.rejected(target)
        case "replied":
            pacing.replied(target)
        case "warned":
            pacing.warned(now)
        case _:
            pacing.refused_for_now(target, kind, now, value, chance=chance)


@given(st.lists(st.tuples(TARGET, ANSWER, CHANCE, PASSED_S), max_size=60))
def test_whatever_is_answered_every_target_may_go_again_within_the_longest_wait_and_few_are_remembered(
    answers: list[tuple[str, tuple[str, float | None], float, float]],
) -> None:
    pacing, now = Pacing(PACE), 0.0
    for target, (kind, value), chance, passed_s in answers:
        pacing.leaves(target, now)
        answer(pacing, target, kind, value, now, chance)
        for other in ("@a", "@z", "grp_1"):
            assert pacing.may_leave_at(other, now) <= now + LONGEST_WAIT_S
        assert len(pacing) <= PACE.targets_max
        assert len(pacing.awaiting) <= len(pacing)
        now += passed_s


OF_ONE_TARGET = st.one_of(
    st.tuples(st.just("accepted"), st.none() | st.integers(5_000, 10_000)),
    st.tuples(st.sampled_from(["target", "reply"]), st.none() | st.floats(0, 30)),
    st.tuples(st.sampled_from(["rejected", "replied"]), st.none()),
)


@given(st.lists(st.tuples(st.sampled_from(["@a", "grp_a"]), OF_ONE_TARGET, CHANCE, PASSED_S), max_size=40))
def test_whatever_one_target_answers_no_other_ever_waits_for_it(
    answers: list[tuple[str, tuple[str, float | None], float, float]],
) -> None:
    """Beside a pacing in which every answer was plain, the others' times are the same to the last digit."""
    troubled, calm, now = Pacing(PACE), Pacing(PACE), 0.0
    for target, (kind, value), chance, passed_s in answers:
        for pacing in (troubled, calm):
            pacing.leaves(target, now)
        answer(troubled, target, kind, value, now, chance)
        answer(calm, target, "accepted", None, now, 0.0)
        for other in ("@other", "grp_other"):
            assert troubled.may_leave_at(other, now) == calm.may_leave_at(other, now)
        now += passed_s


@given(st.lists(st.tuples(OF_ONE_TARGET, CHANCE, PASSED_S), max_size=40))
def test_a_wait_that_a_platform_asked_for_is_kept_unless_the_target_speaks(
    answers: list[tuple[tuple[str, float | None], float, float]],
) -> None:
    pacing, now, until = Pacing(PACE), 0.0, 0.0
    for (kind, value), chance, passed_s in answers:
        at = pacing.may_leave_at("@a", now)
        assert at >= until
        now = max(now, at)
        pacing.leaves("@a", now)
        answer(pacing, "@a", kind, value, now, chance)
        until = 0.0
        if kind in ("target", "reply"):
            until = now + (value or 0.0)
        now += passed_s


@given(st.integers(1, 40), st.lists(st.floats(0, 1), max_size=40))
def test_no_group_gets_more_than_its_rate_in_any_second(count: int, pauses: list[float]) -> None:
    pacing, now, left = Pacing(PACE), 0.0, []
    for pause in itertools.islice(itertools.chain(pauses, itertools.repeat(0.0)), count):
        now = max(now + pause, pacing.may_leave_at("grp_1", now + pause))
        pacing.leaves("grp_1", now)
        left.append(now)
    assert all(later - earlier >= 0.5 - 1e-9 for earlier, later in itertools.pairwise(left))


Answer = tuple[tuple[str, float | None], float]
"""What is answered, and by which chance."""

Lane = list[list[Answer]]
"""Per send of a target, in order, what is answered to it until it is over."""

LANE = st.lists(st.lists(st.tuples(OF_ONE_TARGET, CHANCE), max_size=4), min_size=1, max_size=5)
FOR_NOW = ("target", "reply", "identity")


def departures(pace: Pace, lanes: dict[str, Lane]) -> list[tuple[float, str, int]]:
    """What leaves when, where each target's sends go one at a time: (time, target, which of its sends)."""
    pacing, now = Pacing(pace), 0.0
    waiting = {target: [list(answers) for answers in lane] for target, lane in lanes.items()}
    next_send = dict.fromkeys(waiting, 0)
    left: list[tuple[float, str, int]] = []
    while waiting:
        target = min(waiting, key=lambda each: (max(now, pacing.may_leave_at(each, now)), each))
        now = max(now, pacing.may_leave_at(target, now))
        pacing.leaves(target, now)
        left.append((now, target, next_send[target]))
        answers = waiting[target][next_send[target]]
        (kind, value), chance = answers.pop(0) if answers else (("accepted", None), 0.0)
        answer(pacing, target, kind, value, now, chance)
        assert len(pacing) <= pace.targets_max
        if kind not in FOR_NOW:
            next_send[target] += 1
            if next_send[target] == len(waiting[target]):
                del waiting[target]
    return left


@given(st.dictionaries(st.sampled_from(["@a", "@b", "@c", "@d", "@e", "grp_1"]), LANE, min_size=1))
def test_whatever_is_answered_each_target_is_tried_again_until_all_its_sends_have_left_in_their_order(
    lanes: dict[str, Lane],
) -> None:
    left = departures(PACE, lanes)
    assert [at for at, _, _ in left] == sorted(at for at, _, _ in left)
    for target, lane in lanes.items():
        sends = [send for _, each, send in left if each == target]
        assert sends == sorted(sends)
        assert set(sends) == set(range(len(lane)))


@given(LANE, LANE)
def test_the_sends_of_one_target_leave_when_they_would_have_left_without_the_trouble_of_another(
    trouble: Lane, calm: Lane
) -> None:
    """Few enough sends that the identity's own rate, which all share, is not reached."""
    wide = msgspec.structs.replace(PACE, burst=1_000)
    alone = departures(wide, {"@calm": calm})
    beside = departures(wide, {"@calm": calm, "@troubled": trouble})
    assert [leaving for leaving in beside if leaving[1] == "@calm"] == alone
