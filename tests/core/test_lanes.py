"""Lanes against a slow and obvious model: order within a key, one at a time, turns among keys, delays, nothing lost."""

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.core.lanes import Lanes

OWNER = dict(zip("abcdef", "xxxxyz", strict=True))


class LanesAgainstModel(RuleBasedStateMachine):
    """The model keeps a list per key and looks at all of them each time."""

    @initialize(limit=st.integers(1, 8), shared=st.booleans())
    def begin(self, limit: int, shared: bool) -> None:
        self.lanes: Lanes[str, int] = Lanes(limit)
        self.lanes.shared = shared
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
        self.withdrawn: set[int] = set()
        # Items are numbered; where `interpose` puts one out of that order is known here alone.
        self.items = 0
        self.taken: set[str] = set()

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
        item = self._new_item(key)
        self.lanes.push(key, item, OWNER[key])
        self._queue(key).append(item)

    @rule(key=st.sampled_from("abcdef"))
    def interpose(self, key: str) -> None:
        item = self._new_item(key)
        self.lanes.interpose(key, item, OWNER[key])
        self._queue(key).insert(1 if key in self.taken else 0, item)

    @precondition(lambda self: self.queues)
    @rule(data=st.data(), odd=st.booleans())
    def withdraw(self, data: st.DataObject, odd: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.queues)))
        head, *rest = self.queues[key]
        gone = [item for item in rest if item % 2 == odd]
        assert self.lanes.withdraw(key, lambda item: item % 2 == odd) == gone
        self.queues[key] = [head, *(item for item in rest if item not in gone)]
        self.withdrawn |= set(gone)

    def _new_item(self, key: str) -> int:
        self.items += 1
        self.pushed.setdefault(key, []).append(self.items)
        return self.items

    def _queue(self, key: str) -> list[int]:
        if key not in self.queues:
            self.queues[key] = []
            self._make_ready(key)
        return self.queues[key]

    @rule(room=st.none() | st.integers(0, 8))
    def take(self, room: int | None = None) -> None:
        taken = self.lanes.take(self.now, room)
        self._wake()
        free = self.lanes.limit - len(self.running)
        may = self._may_begin(free if room is None else min(free, room))
        if not may:
            assert taken is None
            return
        assert taken is not None
        key, item = taken
        assert OWNER[key] in may
        assert item == self.queues[key][0]
        # Whoever has been ready for longest goes first, so that no ready lane is passed over by one that comes again.
        assert self.ready[key] == min(self.ready[each] for each in self.ready if OWNER[each] == OWNER[key])
        self._runs(key)

    def _may_begin(self, free: int) -> set[str]:
        """Owners with something ready of which more may run."""
        running = [OWNER[key] for key in self.running]
        ready = {OWNER[key] for key in self.ready}
        return {each for each in ready if free > 0 and (not self.lanes.shared or running.count(each) < 3 * free)}

    @rule(key=st.sampled_from("abcdef"))
    def take_only(self, key: str) -> None:
        item = self.lanes.take_only(key, self.now)
        self._wake()
        if len(self.running) == self.lanes.limit or key not in self.ready:
            assert item is None
            return
        assert item == self.queues[key][0]
        self._runs(key)

    def _runs(self, key: str) -> None:
        del self.ready[key]
        self.running.append(key)
        self.taken.add(key)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        count = data.draw(st.integers(1, len(self.queues[key])))
        self.lanes.done(key, count)
        self.running.remove(key)
        self._pop(key, count)

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

    def _pop(self, key: str, count: int = 1) -> None:
        self.handled.setdefault(key, []).extend(self.queues[key][:count])
        del self.queues[key][:count]
        self.taken.discard(key)
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
            assert {key for key in "abcdef" if self.lanes.is_running(key)} == set(self.running)

    @invariant()
    def the_first_items_are_those_that_wait(self) -> None:
        if hasattr(self, "lanes"):
            for key, queue in self.queues.items():
                assert [self.lanes.first(key, count) for count in (1, 2, 99)] == [queue[:1], queue[:2], queue]

    @invariant()
    def the_next_deadline_is_the_first_delay(self) -> None:
        if hasattr(self, "lanes"):
            assert self.lanes.next_deadline() == min(self.delayed.values(), default=None)

    @invariant()
    def no_more_than_the_limit_run(self) -> None:
        if hasattr(self, "lanes"):
            assert len(self.running) == len(set(self.running)) <= self.lanes.limit

    def teardown(self) -> None:
        """Whatever was done to them: in the end every item has been handed out once, or withdrawn."""
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
        done = sorted(item for items in self.handled.values() for item in items)
        assert done == [item for item in range(1, self.items + 1) if item not in self.withdrawn]
        assert all(set(items) <= set(self.pushed[key]) for key, items in self.handled.items())

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


def test_owners_take_turns_however_many_lanes_one_of_them_has() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    for item, key in enumerate("abcd"):
        lanes.push(key, item, "many")
    lanes.push("x", 4, "few")
    served = ""
    while (taken := lanes.take(0.0)) is not None:
        served += taken[0]
        lanes.done(taken[0])
    assert served == "axbcd"


def test_one_that_wants_every_place_leaves_a_quarter_to_the_others() -> None:
    lanes: Lanes[int, str] = Lanes(16)
    lanes.shared = True
    for key in range(100):
        lanes.push(key, "", "greedy")
    while lanes.take(0.0) is not None:
        pass
    assert (lanes.running, lanes.waiting) == (12, True)
    for key in range(100, 103):
        lanes.push(key, "", f"modest {key}")
        assert lanes.take(0.0) == (key, "")
    lanes.push(103, "", "outside there is no room")
    assert lanes.take(0.0, room=0) is None
    lanes.done(0)
    assert lanes.take(0.0) == (103, ""), "the greedy one gets nothing back before there is as much for the others"
    lanes.shared = False
    assert lanes.take(0.0) == (12, "")


def test_a_lane_that_is_held_leaves_its_place_to_others() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 1)
    lanes.push("b", 2)
    assert lanes.take(0.0) == ("a", 1)
    assert lanes.take(0.0) is None
    lanes.hold("a")
    assert lanes.take(0.0) == ("b", 2)


@pytest.mark.parametrize("stop", [lambda lanes: lanes.delay("a", 5.0), lambda lanes: lanes.hold("a")])
def test_a_lane_that_does_not_run_cannot_be_stopped(stop: Callable[[Lanes[str, int]], None]) -> None:
    lanes: Lanes[str, int] = Lanes(2)
    lanes.push("a", 1)
    with pytest.raises(AssertionError):
        stop(lanes)


def test_what_is_interposed_comes_first_or_behind_a_head_that_was_ever_taken() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 2)
    lanes.interpose("a", 1)
    assert lanes.take(0.0) == ("a", 1)
    lanes.interpose("a", 3)
    lanes.delay("a", 5.0)
    lanes.interpose("a", 4)
    lanes.wake(5.0)
    lanes.interpose("a", 5)
    assert lanes.first("a", 9) == [1, 5, 4, 3, 2]
    lanes.take(5.0)
    lanes.done("a")
    lanes.interpose("a", 6)
    assert lanes.take(5.0) == ("a", 6)
    lanes.done("a")
    lanes.interpose("b", 7)
    assert lanes.first("b", 9) == [7]


def test_a_head_is_never_withdrawn() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    for item in range(5):
        lanes.push("a", item)
    assert lanes.withdraw("a", lambda item: item != 3) == [1, 2, 4]
    assert lanes.first("a", 9) == [0, 3]


def test_one_lane_can_be_taken_out_of_its_turn_and_keeps_its_place_in_the_next() -> None:
    lanes: Lanes[str, int] = Lanes(2)
    for key in "abc":
        lanes.push(key, 1)
        lanes.push(key, 2)
    assert lanes.take_only("b", 0.0) == 1
    assert lanes.is_running("b")
    assert lanes.take_only("b", 0.0) is None
    assert lanes.take_only("d", 0.0) is None
    assert lanes.take(0.0) == ("a", 1)
    assert lanes.take_only("c", 0.0) is None, "as many run as may"
    lanes.done("b")
    assert not lanes.is_running("b")
    lanes.delay("a", 1.0)
    assert [lanes.take(0.0), lanes.take(0.0)] == [("c", 1), ("b", 2)]
    lanes.done("c")
    assert lanes.take_only("a", 0.5) is None
    assert lanes.take_only("a", 1.0) == 1


def test_several_items_at_the_head_may_be_done_together() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    for item in range(5):
        lanes.push("a", item)
    lanes.take(0.0)
    lanes.done("a", 3)
    assert lanes.take(0.0) == ("a", 3)
    lanes.done("a", 2)
    assert "a" not in lanes


def test_a_delay_that_was_replaced_does_not_end_early() -> None:
    lanes: Lanes[str, int] = Lanes(1)
    lanes.push("a", 1)
    lanes.take(0.0)
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
