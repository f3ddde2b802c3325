"""Which item may run now: one per key at a time, at most N over all keys, in turn among the keys that are ready.

A key has an owner. Owners take turns, and so do the keys of one; where several share the N, none takes it all (shares).

A lane is a key with its queue. `take` hands out the head of the lane whose turn it is and leaves it at the head; what
became of it comes back as `done` (the next one), `delay` (the same one, later) or `hold` (the same one, when told).

Always true: items of one key are handed out in the order of `push`, but for those that `interpose` put ahead, and none
before the one ahead of it is done. Of one owner's ready lanes every one is served once before any is served twice. A
lane whose queue is empty is forgotten, and so is one that was closed, as soon as its head is back. Every call costs the
same however many lanes there are, or the logarithm of how many are delayed; `withdraw` costs the length of its lane,
`heads` one step per lane.
Not here: the clock (callers pass `now`), what an item is, bounds on the queues.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Callable, Collection, Hashable
from itertools import islice
from typing import Generic, TypeVar

from agentd.core.shares import most

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Standing(enum.Enum):
    """Where a lane stands.

    READY ── take ──> RUNNING ── done ──> READY, or forgotten if that was the last
      ^                  ├── delay ──> DELAYED ── its time ──> READY
      └───── release ────┴── hold ───> HELD ── done, delay, release

    Nothing but `take` and `take_only` moves a lane on that is READY.
    """

    READY = enum.auto()
    RUNNING = enum.auto()
    DELAYED = enum.auto()
    HELD = enum.auto()


class _Lane(Generic[T]):
    __slots__ = ("closed", "items", "owner", "standing", "taken", "until")

    def __init__(self, item: T, owner: Hashable) -> None:
        self.owner = owner
        self.items = deque((item,))
        self.taken = False  # the head was handed out before, and stands there with what is known of it
        self.standing = Standing.READY
        self.until = 0.0
        self.closed: Callable[[], None] | None = None


class Lanes(Generic[K, T]):
    """The lanes of one consumer. `limit`: how many may run at once. `running`: how many do. `shared`: among owners.

    Times are the caller's monotonic seconds and never fall from one call to the next.
    """

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self.running = 0
        self.shared = False
        self._lanes: dict[K, _Lane[T]] = {}
        self._running_of: dict[Hashable, int] = {}
        self._turns: deque[Hashable] = deque()  # owners with a queue in _ready
        # Both may name lanes that have moved on since; whoever takes an entry out checks the lane's own standing.
        self._ready: dict[Hashable, deque[K]] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._delays = 0

    def __len__(self) -> int:
        """Number of lanes that have something to run."""
        return len(self._lanes)

    def __contains__(self, key: K) -> bool:
        return key in self._lanes

    def depth(self, key: K) -> int:
        """Items in a lane, the one that runs included."""
        lane = self._lanes.get(key)
        return len(lane.items) if lane is not None else 0

    def first(self, key: K, count: int) -> list[T]:
        """The first items of a lane, at most so many."""
        return list(islice(self._lanes[key].items, count))

    def heads(self) -> list[tuple[K, T]]:
        """Every lane with its first item."""
        return [(key, lane.items[0]) for key, lane in self._lanes.items()]

    @property
    def waiting(self) -> bool:
        """Whether a lane may be ready that was not taken."""
        return bool(self._turns)

    def push(self, key: K, item: T, owner: Hashable = None) -> None:
        """Put an item at the end of a lane. owner: of the key, always the same."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.items.append(item)
            return
        self._lanes[key] = lane = _Lane(item, owner)
        self._make_ready(key, lane)

    def interpose(self, key: K, item: T, owner: Hashable = None, *, behind: int = 1) -> None:
        """Put an item ahead of all that waits in a lane, behind its head if that was ever taken.

        behind: how many items belong to the head.
        """
        lane = self._lanes.get(key)
        if lane is None:
            self.push(key, item, owner)
        elif lane.standing is Standing.READY and not lane.taken:
            lane.items.appendleft(item)
        else:
            lane.items.insert(behind, item)

    def withdraw(self, key: K, unwanted: Callable[[T], bool]) -> list[T]:
        """Take these out of a lane, its head excepted. Returns them in order."""
        lane = self._lanes[key]
        head, *waiting = lane.items
        lane.items = deque((head, *(item for item in waiting if not unwanted(item))))
        return [item for item in waiting if unwanted(item)]

    def take(self, now: float, room: int | None = None, barred: Collection[Hashable] = ()) -> tuple[K, T] | None:
        """The next key that may run, with the head of its lane; None while nothing may.

        room: for how many more there is outside of here, if that may be less than up to the limit. barred: owners whose
        keys may not.
        """
        if self._delayed and self._delayed[0][0] <= now:
            self.wake(now)
        free = self.limit - self.running
        if room is not None and room < free:
            free = room
        if free <= 0:
            return None
        for _ in range(len(self._turns)):
            owner = self._turns.popleft()
            if owner in barred or (self.shared and self._running_of.get(owner, 0) >= most(free)):
                self._turns.append(owner)
                continue
            queue = self._ready[owner]
            while queue:
                key = queue.popleft()
                lane = self._lanes.get(key)
                if lane is not None and lane.standing is Standing.READY:
                    if queue:
                        self._turns.append(owner)
                    else:
                        del self._ready[owner]
                    self._run(lane)
                    return key, lane.items[0]
            del self._ready[owner]
        return None

    def take_only(self, key: K, now: float) -> T | None:
        """The head of this lane, if it may run now; None if it may not, or does not exist."""
        self.wake(now)
        lane = self._lanes.get(key)
        if lane is None or lane.standing is not Standing.READY or self.running >= self.limit:
            return None
        self._ready[lane.owner].remove(key)
        self._run(lane)
        return lane.items[0]

    def is_running(self, key: K) -> bool:
        """The head of this lane was handed out, and is not done with."""
        lane = self._lanes.get(key)
        return lane is not None and lane.standing is Standing.RUNNING

    def done(self, key: K, count: int = 1) -> None:
        """The head of this lane, running or held, is finished with, and so many items in all: the next one may run."""
        lane = self._stop(key)
        for _ in range(count):
            lane.items.popleft()
        lane.taken = False
        if lane.items or lane.closed is not None:
            self._make_ready(key, lane)
        else:
            del self._lanes[key]

    def delay(self, key: K, until: float) -> None:
        """The head of this lane, running or held, runs again, not before `until`; what is behind it waits too."""
        lane = self._stop(key)
        if lane.closed is not None:
            self._make_ready(key, lane)
            return
        lane.standing = Standing.DELAYED
        lane.until = until
        self._delays += 1
        heapq.heappush(self._delayed, (until, self._delays, key))

    def hold(self, key: K) -> None:
        """A lane that runs stands still with its head, and takes no place among those, until `release` or `done`."""
        self._stop(key).standing = Standing.HELD

    def release(self, key: K) -> None:
        """A lane that was held or delayed may run its head now."""
        lane = self._lanes[key]
        assert lane.standing in (Standing.HELD, Standing.DELAYED), lane.standing
        self._make_ready(key, lane)

    def close(self, key: K, gone: Callable[[], None]) -> None:
        """Let nothing more of a lane run. It is gone at once, or, while its head is out or held, when that comes back.

        gone: called when it is.
        """
        lane = self._lanes[key]
        lane.closed = gone
        if lane.standing in (Standing.READY, Standing.DELAYED):
            self._make_ready(key, lane)

    def drop(self, key: K) -> None:
        """The head of a closed lane, held, will not come back."""
        lane = self._lanes[key]
        assert lane.standing is Standing.HELD, lane.standing
        self._make_ready(key, lane)

    def wake(self, now: float) -> bool:
        """Make the delayed lanes ready whose time has come. Returns whether there were any."""
        found = False
        while self._delayed and self._delayed[0][0] <= now:
            entry = heapq.heappop(self._delayed)
            if self._still_delayed(entry):
                found = True
                self._make_ready(entry[2], self._lanes[entry[2]])
        return found

    def next_deadline(self) -> float | None:
        """When the first delayed lane becomes ready, or None; `wake` or `take` makes it so then."""
        while self._delayed and not self._still_delayed(self._delayed[0]):
            heapq.heappop(self._delayed)
        return self._delayed[0][0] if self._delayed else None

    def _run(self, lane: _Lane[T]) -> None:
        lane.standing = Standing.RUNNING
        lane.taken = True
        self.running += 1
        self._running_of[lane.owner] = self._running_of.get(lane.owner, 0) + 1

    def _stop(self, key: K) -> _Lane[T]:
        lane = self._lanes[key]
        # A ready lane stands in the queue of those that are, and would come back into it a second time.
        assert lane.standing in (Standing.RUNNING, Standing.HELD), lane.standing
        if lane.standing is Standing.RUNNING:
            self.running -= 1
            self._running_of[lane.owner] -= 1
            if not self._running_of[lane.owner]:
                del self._running_of[lane.owner]
        return lane

    def _make_ready(self, key: K, lane: _Lane[T]) -> None:
        if lane.closed is not None:
            del self._lanes[key]
            lane.closed()
            return
        lane.standing = Standing.READY
        queue = self._ready.get(lane.owner)
        if queue is None:
            self._ready[lane.owner] = deque((key,))
            self._turns.append(lane.owner)
        else:
            queue.append(key)

    def _still_delayed(self, entry: tuple[float, int, K]) -> bool:
        until, _, key = entry
        lane = self._lanes.get(key)
        return lane is not None and lane.standing is Standing.DELAYED and lane.until == until
