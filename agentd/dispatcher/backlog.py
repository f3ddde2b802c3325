"""Which records of which conversation wait for which plugin, and how many.

A `Line` is a conversation in which some plugin has something to do, a `Lane` is one plugin in it. Records are counted
per line in the order of positions, so that "handled by every plugin" is the least of the lanes' counts, whatever each
has in memory.

Always true: lines and lanes exist only while something is unhandled. A lane's memory is bounded; what does not fit
stays in the journal, and the lane knows from where to read on.
Not here: running anything, the disk.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

from agentd.core.breaker import Breaker, Limits
from agentd.core.events import Record, Signal
from agentd.core.lanes import Lanes
from agentd.dispatcher.timers import Due
from agentd.host.handlers import Handler
from agentd.host.lifecycle import Loaded
from agentd.journal.storage import Attempt

SignalKey = tuple[object, ...]


class Delivery(NamedTuple):
    """A record for a lane's handlers. handlers: None if matching it raised. ordinal: its count in its line."""

    lane: Lane
    record: Record
    handlers: tuple[Handler, ...] | None
    ordinal: int


class ReadOn(NamedTuple):
    """Stands in a lane's queue where the journal has to be read."""

    lane: Lane


Key = int | SignalKey
"""Conversation number, or what tells signals apart: what has the same key runs one at a time."""

Item = Delivery | ReadOn | Due | None
"""What waits under a key; None where the key itself says it, as with signals."""


class Served:
    """A plugin in service. signals: the newest of each kind that waits. listed: it is on the rota of those to ask.

    tag: what stands for it among the marks of running calls. intervals: seconds by the name of the recurring handler.
    """

    __slots__ = ("breaker", "intervals", "lanes", "listed", "plugin", "signals", "tag")

    def __init__(self, plugin: Loaded, tag: int, limits: Limits) -> None:
        self.plugin = plugin
        self.tag = tag
        self.breaker = Breaker(limits)
        self.intervals = {each.name: each.every_s for each in plugin.handlers.all if each.every_s is not None}
        self.lanes: Lanes[Key, Item] = Lanes(plugin.settings.concurrency)
        self.signals: dict[SignalKey, Signal] = {}
        self.listed = False


class Lane:
    """One plugin in one conversation, while it has something to do.

    number: the line's. loaded: position up to which records were queued or passed over; loaded_count: how many of the
    line's. done_count: how many are handled. told: the cursor as the journal has it or will. memory: deliveries queued.
    behind: more lies in the journal, and a ReadOn stands at the end of the queue. failures: of the delivery at the
    head. deaths: of the process, blamed on it. before: how it failed before the restart, or None.
    """

    __slots__ = (
        "before",
        "behind",
        "deaths",
        "done_count",
        "failures",
        "line",
        "loaded",
        "loaded_count",
        "memory",
        "number",
        "served",
        "told",
    )

    def __init__(self, line: Line, served: Served, cursor: int, count: int) -> None:
        self.line = line
        self.number = line.number
        self.served = served
        self.loaded = self.told = cursor
        self.loaded_count = self.done_count = count
        self.memory = 0
        self.behind = False
        self.failures = 0
        self.deaths = 0
        self.before: Attempt | None = None

    @property
    def depth(self) -> int:
        """Records that are not handled yet, those in the journal included."""
        return self.line.offered - self.done_count


class Line:
    """A conversation in which some lane has something to do.

    conversation: its id. last: position of its newest record. offered: its records so far, counted from when it was
    met. passed: how many of them every lane has handled.
    """

    __slots__ = ("conversation", "identity", "lanes", "last", "number", "offered", "passed")

    def __init__(self, number: int, identity: str, conversation: str, last: int) -> None:
        self.number = number
        self.identity = identity
        self.conversation = conversation
        self.last = last
        self.offered = 0
        self.passed = 0
        self.lanes: list[Lane] = []


class Backlog:
    """All lines, and the counts per identity.

    handled: records that every plugin of the identity is through with. pending: those that not all are.
    in_memory: deliveries queued over all lanes.
    """

    def __init__(self, identities: Iterable[str]) -> None:
        self.handled = dict.fromkeys(identities, 0)
        self.pending = dict.fromkeys(self.handled, 0)
        self.in_memory = 0
        self._lines: dict[int, Line] = {}

    def restore(self, line: Line) -> bool:
        """Take in a line whose lanes stand where they stood before the restart. Returns whether any is behind."""
        line.passed = min((lane.done_count for lane in line.lanes), default=0)
        if line.passed == line.offered:
            return False
        self._lines[line.number] = line
        self.pending[line.identity] += line.offered - line.passed
        return True

    def met(self, record: Record, plugins: Iterable[Served]) -> Line:
        """The line of a record that is new. Count it with `offered`."""
        line = self._lines.get(record.conversation)
        if line is None:
            line = Line(record.conversation, record.event.identity, record.event.conversation, record.position - 1)
            line.lanes = [Lane(line, served, line.last, 0) for served in plugins]
            self._lines[line.number] = line
        assert record.position > line.last, (record.position, line.last)
        line.last = record.position
        line.offered += 1
        self.pending[line.identity] += 1
        return line

    def lanes_of(self, served: Served, deepest: int) -> tuple[int, list[Lane]]:
        """How many lanes of a plugin have something to do, and the deepest of them."""
        lanes = [lane for line in self._lines.values() for lane in line.lanes if lane.served is served and lane.depth]
        return len(lanes), heapq.nlargest(deepest, lanes, key=lambda lane: lane.depth)

    def handled_to(self, lane: Lane, count: int) -> None:
        """This lane is through with so many records of its line."""
        lane.done_count = count
        line = lane.line
        self.passed_to(line, count if len(line.lanes) == 1 else min(each.done_count for each in line.lanes))

    def passed_to(self, line: Line, count: int) -> None:
        """Every lane is through with so many records of the line, which is forgotten once that is all."""
        newly = count - line.passed
        line.passed = count
        self.handled[line.identity] += newly
        self.pending[line.identity] -= newly
        if count == line.offered:
            self._lines.pop(line.number, None)
