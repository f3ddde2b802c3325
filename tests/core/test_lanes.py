"""Lanes against a slow and obvious model: order within a key, one at a time, turns among keys, delays, nothing lost."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.core.lanes import Lanes


class LanesAgainstModel(RuleBasedStateMachine):
    """The model keeps a list per key and looks at all of them each time."""

    @initialize(limit=st.integers(1, 4))
    def begin(self, limit: int) -> None:
        self.lanes: Lanes[str, int] = Lanes(limit)
        self.queues: dict[str, list[int]] = {}
        # Since when each lane is ready: those that became so in one moment may come in either order.
        self.ready: dict[str, int] = {}
        self.moments = 0
        self.running: list[str] = []
        self.delayed: dict[str, float] = {}
        self.held: list[str] = []
        self.now = 0.0
        self.pushed: dict[str, list[int]] = {}
        self.handled: dict[str, list[int]] = {}

    def _wake(self) -> None:
        due = sorted({until for until in self.delayed.values() if until <= self.now})
        for moment in due:
            together = [key for key, until in self.delayed.items() if until == moment]
            for key in together:
                del self.delayed[key]
            self._make_ready(*together)

    def _make_ready(self, *together: str) -> None:
        self.moments += 1
        self.ready |= dict.fromkeys(together, self.moments)

    @rule(key=st.sampled_from("abcdef"))
    def push(self, key: str) -> None:
        item = sum(map(len, self.pushed.values()))
        self.pushed.setdefault(key, []).append(item)
        self.lanes.push(key, item)
        if key not in self.queues:
            self.queues[key] = []
            self._make_ready(key)
        self.queues[key].append(item)

    @rule()
    def take(self) -> None:
        taken = self.lanes.take(self.now)
        self._wake()
        if len(self.running) == self.lanes.limit or not self.ready:
            assert taken is None
            return
        assert taken is not None
        key, item = taken
        assert item == self.queues[key][0]
        # Whoever has been ready for longest goes first, so that no ready lane is passed over by one that comes again.
        assert self.ready[key] == min(self.ready.values())
        del self.ready[key]
        self.running.append(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.lanes.done(key)
        self.running.remove(key)
        self._pop(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), released=st.booleans())
    def held_no_more(self, data: st.DataObject, released: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(key)
        if released:
            self.lanes.release(key)
            self._make_ready(key)
        else:
            self.lanes.done(key)
            self._pop(key)

    def _pop(self, key: str) -> None:
        self.handled.setdefault(key, []).append(self.queues[key].pop(0))
        if self.queues[key]:
            self._make_ready(key)
        else:
            del self.queues[key]

    @precondition(lambda self: self.running)
    @rule(data=st.data(), delay=st.integers(0, 5))
    def delay(self, data: st.DataObject, delay: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.lanes.delay(key, self.now + delay)
        self.running.remove(key)
        self.delayed[key] = self.now + delay

    @precondition(lambda self: self.delayed)
    @rule(data=st.data())
    def delayed_no_more(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.delayed)))
        del self.delayed[key]
        self.lanes.release(key)
        self._make_ready(key)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), delay=st.integers(0, 5))
    def delay_what_was_held(self, data: st.DataObject, delay: int) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        self.held.remove(key)
        self.lanes.delay(key, self.now + delay)
        self.delayed[key] = self.now + delay

    @rule()
    def wake(self) -> None:
        due = any(until <= self.now for until in self.delayed.values())
        assert self.lanes.wake(self.now) == due
        self._wake()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.lanes.hold(key)
        self.running.remove(key)
        self.held.append(key)

    @rule(seconds=st.integers(0, 4))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "lanes"):
            assert self.lanes.running == len(self.running)
            assert len(self.lanes) == len(self.queues)
            assert {key: self.lanes.depth(key) for key in "abcdef" if key in self.lanes} == {
                key: len(queue) for key, queue in self.queues.items()
            }

    @invariant()
    def the_next_deadline_is_the_first_delay(self) -> None:
        if hasattr(self, "lanes"):
            assert self.lanes.next_deadline() == min(self.delayed.values(), default=None)

    @invariant()
    def items_of_a_key_are_done_in_the_order_of_pushing(self) -> None:
        if hasattr(self, "lanes"):
            assert all(items == sorted(items) for items in self.handled.values())

    @invariant()
    def no_more_than_the_limit_run(self) -> None:
        if hasattr(self, "lanes"):
            assert len(self.running) == len(set(self.running)) <= self.lanes.limit

    def teardown(self) -> None:
        """Whatever was done to them: in the end every item that was pushed has been handed out, in order."""
        if not hasattr(self, "lanes"):
            return
        for key in list(self.held):
            self.held.remove(key)
            self.lanes.release(key)
            self._make_ready(key)
        for key in list(self.running):
            self.running.remove(key)
            self.lanes.done(key)
            self._pop(key)
        self.now = max([self.now, *self.delayed.values()])
        while self.queues:
            self.take()
            self.done_at_once()
        assert self.lanes.take(self.now) is None
        assert self.handled == self.pushed

    def done_at_once(self) -> None:
        key = self.running.pop()
        self.lanes.done(key)
        self._pop(key)


TestLanes = LanesAgainstModel.TestCase


def test_every_ready_lane_is_served_once_before_any_is_served_twice() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    for item in range(9):
        lanes.push("abc"[item // 3], item)
    served = []
    while (taken := lanes.take(0.0)) is not None:
        served.append(taken)
        lanes.done(taken[0])
    assert served == [("a", 0), ("b", 3), ("c", 6), ("a", 1), ("b", 4), ("c", 7), ("a", 2), ("b", 5), ("c", 8)]


def test_a_lane_that_is_held_leaves_its_place_to_others() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 1)
    lanes.push("b", 2)
    assert lanes.take(0.0) == ("a", 1)
    assert lanes.take(0.0) is None
    lanes.hold("a")
    assert lanes.take(0.0) == ("b", 2)


def test_a_ready_lane_can_be_delayed_before_it_was_ever_taken() -> None:
    lanes: Lanes[str, int] = Lanes(2)
    lanes.push("a", 1)
    lanes.delay("a", 5.0)
    assert lanes.take(4.9) is None
    assert lanes.take(5.0) == ("a", 1)
    assert lanes.take(5.0) is None


def test_a_delay_that_was_replaced_does_not_end_early() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 1)
    lanes.delay("a", 1.0)
    lanes.release("a")
    lanes.take(0.0)
    lanes.delay("a", 9.0)
    assert lanes.next_deadline() == 9.0
    assert lanes.take(2.0) is None


def test_finishing_what_does_not_run_is_a_broken_invariant() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 1)
    with pytest.raises(AssertionError):
        lanes.done("a")


@pytest.mark.parametrize("fate", ["done", "delay", "release", "drop"])
def test_a_closed_lane_is_gone_when_its_head_is_back_whatever_becomes_of_it(fate: str) -> None:
    lanes: Lanes[str, int] = Lanes(2)
    gone: list[str] = []
    for item in (1, 2):
        lanes.push("out", item)
        lanes.push("waits", item)
    lanes.take(0.0)
    lanes.close("out", lambda: gone.append("out"))
    lanes.close("waits", lambda: gone.append("waits"))
    assert (gone, "waits" in lanes, lanes.running) == (["waits"], False, 1)
    if fate in ("release", "drop"):
        lanes.hold("out")
        assert gone == ["waits"]
    {"done": lanes.done, "release": lanes.release, "drop": lanes.drop, "delay": lambda key: lanes.delay(key, 5.0)}[
        fate
    ]("out")
    assert (gone, len(lanes), lanes.running) == (["waits", "out"], 0, 0)
    lanes.push("out", 3)
    assert lanes.take(10.0) == ("out", 3)
    assert lanes.take(10.0) is None
