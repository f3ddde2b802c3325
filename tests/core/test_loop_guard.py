"""When answers between two agents are a loop, with time as a number."""

from hypothesis import given
from hypothesis import strategies as st

from agentd.core.loop_guard import Budget, LoopGuard, hops_of

BUDGET = Budget(answers_max=3, window_s=60.0, hops_max=5)


def test_so_many_answers_within_the_window_are_a_loop() -> None:
    guard = LoopGuard(BUDGET)
    assert [guard.answered("c", "bob", at) for at in (0.0, 1.0)] == [None, None]
    assert guard.answered("c", "bob", 2.0) == "3 answers to @bob within 60 s"


def test_a_slow_exchange_may_go_on_for_ever() -> None:
    guard = LoopGuard(BUDGET)
    assert not any(guard.answered("c", "bob", 31.0 * n) for n in range(100))


def test_each_peer_in_each_conversation_has_a_budget_of_its_own() -> None:
    guard = LoopGuard(BUDGET)
    for pair in (("c", "bob"), ("c", "ann"), ("d", "bob")):
        assert guard.answered(*pair, 0.0) is guard.answered(*pair, 0.0) is None
    assert guard.answered("c", "bob", 1.0)


def test_a_long_chain_of_answers_is_a_loop_however_slow() -> None:
    guard = LoopGuard(BUDGET)
    assert guard.answered("c", "bob", 0.0, hops=4) is None
    assert guard.answered("c", "bob", 999.0, hops=5) == "a chain of 5 answers with @bob"


def test_nothing_is_a_loop_where_the_guard_is_off() -> None:
    guard = LoopGuard(Budget(answers_max=0, window_s=60.0, hops_max=5))
    assert not any(guard.answered("c", "bob", 0.0, hops=99) for _ in range(100))
    assert len(guard) == 0


def test_who_is_forgiven_begins_anew() -> None:
    guard = LoopGuard(BUDGET)
    for _ in range(3):
        guard.answered("c", "bob", 0.0)
    guard.forgive("c")
    assert guard.answered("c", "bob", 0.0) is None


def test_hops_are_what_a_sender_says_where_it_makes_sense() -> None:
    assert hops_of({"agentd_hops": 7}) == 7
    for wrong in ({}, {"agentd_hops": "7"}, {"agentd_hops": -1}, {"agentd_hops": True}, {"agentd_hops": 1.5}):
        assert hops_of(wrong) == 0


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1_000)), max_size=300))
def test_pairs_that_are_quiet_are_forgotten(answers: list[tuple[float, int]]) -> None:
    guard = LoopGuard(BUDGET)
    now, most = 0.0, 0
    recent: dict[str, float] = {}
    for pause, peer in answers:
        now += pause
        guard.answered("c", str(peer), now)
        recent[str(peer)] = now
        # While one is quiet, an answer takes more away than it brings: there never are more than once were busy.
        most = max(most, sum(now - at < BUDGET.window_s for at in recent.values()))
        assert len(guard) <= most + 1
    for _ in range(len(guard)):
        guard.answered("c", "busy", now + 2 * BUDGET.window_s)
    assert len(guard) <= 1
