"""Which fault happens now: pure decisions, no hub."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.hub.faults import ACTIONS, Action, FaultPlan, Faults, Point, Rule


def fired(faults: Faults, point: Point = Point.PUSH, *, count: int, now: float = 0.0, **where: object) -> list[bool]:
    return [faults.at(point, now=now, **where) is not None for _ in range(count)]  # type: ignore[arg-type]  # test data


def test_without_plan_and_rules_nothing_goes_wrong() -> None:
    faults = Faults()
    assert not any(faults.any_at(point) for point in Point)
    assert fired(faults, count=100) == [False] * 100


def test_a_rule_fires_once_from_its_nth_match() -> None:
    faults = Faults(rules=[Rule(point=Point.PUSH, action=Action.DROP, nth=3)])
    assert fired(faults, count=5) == [False, False, True, False, False]
    assert faults.fired == {"push.drop": 1}


def test_a_rule_without_end_fires_on_every_match() -> None:
    faults = Faults(rules=[Rule(point=Point.PUSH, action=Action.DROP, times=None)])
    assert fired(faults, count=5) == [True] * 5


def test_a_rule_ends_some_time_after_it_fired_first() -> None:
    faults = Faults(rules=[Rule(point=Point.REST, action=Action.STATUS, times=None, for_s=60.0)])
    answers = [faults.at(Point.REST, now=now) is not None for now in (100.0, 130.0, 159.9, 160.0, 161.0)]
    assert answers == [True, True, True, False, False]


def test_a_rule_matches_identity_conversation_seqs_and_route() -> None:
    faults = Faults(
        rules=[
            Rule(point=Point.PUSH, action=Action.DROP, identity="alice", conversation="c", seqs=(5, 7), times=None),
            Rule(point=Point.REST, action=Action.HANG, route="sync", times=None),
        ]
    )

    def push(identity: str, conversation: str, seq: int) -> bool:
        return faults.at(Point.PUSH, now=0, identity=identity, conversation=conversation, seq=seq) is not None

    assert [push("alice", "c", seq) for seq in range(4, 8)] == [False, True, True, False]
    assert not push("bob", "c", 5)
    assert not push("alice", "d", 5)
    assert faults.at(Point.REST, now=0, route="history") is None
    assert faults.at(Point.REST, now=0, route="sync") is not None


def test_the_older_of_two_matching_rules_fires_first() -> None:
    faults = Faults(rules=[Rule(point=Point.PUSH, action=Action.DROP)])
    faults.add(Rule(point=Point.PUSH, action=Action.CUT))
    found = [faults.at(Point.PUSH, now=0) for _ in range(3)]
    assert [fault and fault.action for fault in found] == [Action.DROP, Action.CUT, None]


def test_replacing_forgets_the_faults_and_keeps_the_counts() -> None:
    faults = Faults(FaultPlan(push_drop=1.0))
    fired(faults, count=3)
    faults.replace()
    assert fired(faults, count=3) == [False] * 3
    assert faults.fired == {"push.drop": 3}


@pytest.mark.parametrize("point", list(Point))
def test_an_action_is_refused_where_it_cannot_happen(point: Point) -> None:
    for action in set(Action) - ACTIONS[point]:
        with pytest.raises(ValueError, match="cannot happen"):
            Rule(point=point, action=action)
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode({"point": point, "action": action}), type=Rule)


def test_every_action_can_happen_somewhere() -> None:
    assert set().union(*ACTIONS.values()) == set(Action)


@given(seed=st.integers(), others=st.integers(min_value=0, max_value=20))
def test_the_same_seed_gives_the_same_faults_whatever_happens_at_other_points(seed: int, others: int) -> None:
    plan = FaultPlan(seed=seed, push_drop=0.2, push_delay=0.2, rest_5xx=0.5, accept_hang=0.5)
    one, other = Faults(plan), Faults(plan)
    fired(other, Point.REST, count=others)
    fired(other, Point.ACCEPT, count=others)
    drawn = [[faults.at(Point.PUSH, now=0.0) for _ in range(50)] for faults in (one, other)]
    assert drawn[0] == drawn[1]


def test_points_do_not_draw_the_same_chances() -> None:
    faults = Faults(FaultPlan(push_drop=0.5, rest_5xx=0.5))
    assert fired(faults, Point.PUSH, count=100) != fired(faults, Point.REST, count=100)


@given(seed=st.integers())
def test_chances_come_near_their_probabilities_and_delays_stay_below_their_maximum(seed: int) -> None:
    faults = Faults(FaultPlan(seed=seed, push_drop=0.3, push_duplicate=0.2, push_delay=0.1, delay_max_s=0.4))
    found = [faults.at(Point.PUSH, now=0.0) for _ in range(2_000)]
    assert 450 < faults.fired["push.drop"] < 750
    assert 280 < faults.fired["push.duplicate"] < 520
    delays = [fault.delay_s for fault in found if fault is not None and fault.action is Action.DELAY]
    assert 100 < len(delays) < 320
    assert all(0 <= delay <= 0.4 for delay in delays)


def test_every_probability_of_a_plan_leads_to_a_fault_of_its_name() -> None:
    names = [name for name in FaultPlan.__struct_fields__ if name.split("_")[0] in {p.value for p in Point}]
    assert len(names) == 14
    for name in names:
        faults = Faults(FaultPlan(**{name: 1.0}))
        point = Point(name.split("_")[0])
        assert faults.at(point, now=0.0) is not None, name
        expected = {"upgrade_refuse": "upgrade.status", "rest_5xx": "rest.status", "rest_429": "rest.status"}
        assert list(faults.fired) == [expected.get(name, name.replace("_", ".", 1))]
