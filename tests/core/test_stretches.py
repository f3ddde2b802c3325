"""Which waiting events make the next turn, with time as a number."""

from typing import Any, Literal, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.stretches import Batch, Hold, Pass, Take, Wait, Waiting, next_turn

NOW = 1_000_000.0


class Policy(NamedTuple):
    policy: Literal["replay", "latest", "digest", "hold"]
    after_s: float = 60.0
    settle_s: float = 2.0


def fresh(batch: Batch | None = None, *, handler: object = "h", came: float = NOW - 50) -> Waiting:
    return Waiting(NOW - 50, came, batch, handler)


def stale(came: float = NOW - 50) -> Waiting:
    return Waiting(NOW - 500, came, None, "h")


def test_events_come_one_by_one_unless_somebody_wants_many() -> None:
    assert next_turn([fresh(), fresh()], NOW, None) == Take(1, "event")


def test_a_batch_takes_what_waits_up_to_its_size() -> None:
    batch = Batch(3, 0.1)
    assert next_turn([fresh(batch)] * 2, NOW, None) == Take(2, "batch")
    assert next_turn([fresh(batch)] * 5, NOW, None) == Take(3, "batch")


def test_a_batch_waits_until_no_more_comes_but_not_for_ever() -> None:
    batch = Batch(30, 0.1)
    just = fresh(batch, came=NOW - 0.04)
    verdict = next_turn([just], NOW, None)
    assert isinstance(verdict, Wait)
    assert 0.0599 < verdict.seconds < 0.0601
    steady = [fresh(batch, came=NOW - 1.01 + 0.05 * n) for n in range(20)]
    assert next_turn(steady, NOW, None) == Take(20, "batch")
    assert next_turn([just] * 30, NOW, None) == Take(30, "batch")


def test_a_clock_that_was_set_back_holds_no_batch_up() -> None:
    verdict = next_turn([fresh(Batch(30, 0.1), came=NOW + 86_400)], NOW, None)
    assert verdict == Wait(0.1)


def test_a_batch_ends_where_an_event_is_wanted_by_others() -> None:
    batch = Batch(30, 9.0)
    assert next_turn([fresh(batch), fresh(batch), fresh()], NOW, None) == Take(2, "batch")
    assert next_turn([fresh(batch), fresh(batch, handler="other")], NOW, None) == Take(1, "batch")
    assert next_turn([fresh(), fresh(batch)], NOW, None) == Take(1, "event")


def test_a_repeat_has_the_events_that_it_had() -> None:
    batch = Batch(30, 9.0)
    assert next_turn([fresh(batch, came=NOW)] * 5, NOW, Policy("latest"), frozen=3) == Take(3, "batch")
    assert next_turn([stale()] * 5, NOW, Policy("digest"), frozen=3) == Take(3, "digest")
    assert next_turn([stale()] * 5, NOW, Policy("digest"), frozen=1) == Take(1, "event")


def test_of_stale_mail_the_newest_is_handled_unless_fresh_mail_follows() -> None:
    latest = Policy("latest")
    assert next_turn([stale(), stale(), stale()], NOW, latest) == Pass(2)
    assert next_turn([stale()], NOW, latest) == Take(1, "event")
    assert next_turn([stale(), stale(), fresh()], NOW, latest) == Pass(2)
    assert next_turn([stale(), stale()], NOW, latest, more=True) == Pass(2)
    assert next_turn([fresh(), stale()], NOW, latest) == Take(1, "event")


def test_stale_mail_is_judged_when_no_more_of_it_comes() -> None:
    for policy in ("latest", "digest", "hold"):
        assert next_turn([stale(), stale(came=NOW - 0.5)], NOW, Policy(policy)) == Wait(1.5)
        assert not isinstance(next_turn([stale(came=NOW - 0.5), fresh()], NOW, Policy(policy)), Wait)
        assert not isinstance(next_turn([stale(came=NOW + 99)], NOW, Policy(policy)), Wait)


def test_a_digest_takes_all_that_is_stale_in_one_piece() -> None:
    assert next_turn([stale()] * 7 + [fresh()], NOW, Policy("digest")) == Take(7, "digest")
    assert next_turn([stale()], NOW, Policy("digest")) == Take(1, "event")


def test_hold_waits_for_somebody_to_decide() -> None:
    assert next_turn([stale()] * 7, NOW, Policy("hold")) == Hold(7)


def test_an_event_that_does_not_say_when_it_was_sent_is_not_stale() -> None:
    silent = Waiting(None, NOW - 9_999, None, "h")
    assert next_turn([silent, silent], NOW, Policy("latest")) == Take(1, "event")


ages = st.floats(0, 200)
batches = st.none() | st.builds(Batch, st.integers(1, 4), st.floats(0, 1))


@given(
    st.lists(
        st.builds(
            lambda a, c, b, h: Waiting(NOW - a, NOW - min(a, c), b, h), ages, ages, batches, st.sampled_from("xy")
        ),
        min_size=1,
    ),
    st.none() | st.builds(Policy, st.sampled_from(("latest", "digest", "hold")), st.just(60.0), st.just(2.0)),
    st.integers(0, 5),
    st.booleans(),
)
def test_whatever_waits_no_fresh_event_is_passed_over_and_every_verdict_gets_on(
    waiting: list[Waiting], policy: Any, frozen: int, more: bool
) -> None:
    verdict = next_turn(waiting, NOW, policy, frozen=frozen, more=more)
    match verdict:
        case Take(size, form):
            assert 1 <= size <= len(waiting)
            if form == "event":
                assert size == 1
            if form == "batch" and not frozen:
                assert {each.handler for each in waiting[:size]} == {waiting[0].handler}
                assert waiting[0].batch is not None
                assert size <= waiting[0].batch.size
        case Pass(size) | Hold(size):
            assert 1 <= size <= len(waiting)
            assert all(each.sent_at is not None and NOW - each.sent_at > 60.0 for each in waiting[:size])
        case Wait(seconds):
            assert 0 < seconds <= 2.0
