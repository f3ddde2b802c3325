"""Which records of which conversation wait for which plugin, and how many.

A `Line` is a conversation in which some plugin has something to do, a `Lane` is one plugin in it. Records are counted
per line in the order of positions, so that "handled by every plugin" is the least of the lanes' counts, whatever each
has in memory.

Always true: lines and lanes exist only while something is unhandled. A lane's memory is bounded; what does not fit
stays in the journal, and the lane knows from where to read on.
Not here: running anything, the disk.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from agentd import config
from agentd.core.breaker import Breakers, Limits
from agentd.core.events import Record, Signal
from agentd.core.lanes import Lanes
from agentd.core.stretches import Form
from agentd.dispatcher.handing import Elsewhere
from agentd.dispatcher.timers import Due
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler
from agentd.host.isolated import Hosted
from agentd.host.turns import Failure
from agentd.journal.storage import Attempt

SignalKey = tuple[object, ...]


class Delivery(NamedTuple):
    """A record for a lane's handlers. handlers: None if matching it raised. ordinal: its count in its line.

    plugin: the generation of it that was asked.
    """

    lane: Lane
    record: Record
    handlers: tuple[Handler, ...] | None
    ordinal: int
    plugin: Hosted

    @property
    def pending(self) -> list[str]:
        """The plugins that are not through with it."""
        return [each.served.plugin.name for each in self.lane.line.lanes if each.done_count < self.ordinal]


class Stretch(NamedTuple):
    """What a turn is about: deliveries at the head of a lane, as one event, a batch, or a digest."""

    deliveries: tuple[Delivery, ...]
    form: Form

    @property
    def first(self) -> Delivery:
        """The oldest."""
        return self.deliveries[0]

    @property
    def last(self) -> Delivery:
        """The newest."""
        return self.deliveries[-1]

    @property
    def until(self) -> int:
        """Position that tells the same stretch at a repeat; 0 for an event alone."""
        return self.last.record.position if len(self.deliveries) > 1 else 0


class ReadOn(NamedTuple):
    """Stands in a lane's queue where the journal has to be read."""

    lane: Lane


class Join(NamedTuple):
    """Stands alone in a lane's queue where a plugin begins to serve an identity that has mail for it already."""

    lane: Lane


class Rewind(NamedTuple):
    """Stands in a lane's queue where it goes back behind this position. done: the disk has it; how many lie there."""

    identity: str
    number: int
    position: int
    done: asyncio.Future[int]


class Inherited(NamedTuple):
    """Stands in a lane's queue while the process before this one runs a turn of it. lane: None if it has no records."""

    elsewhere: Elsewhere
    lane: Lane | None


class Ended(NamedTuple):
    """A turn that failed in the process before this one, and is to be judged. first, last: positions of its events."""

    ctx: TurnContext[Any]
    failure: Failure
    first: int
    last: int


Key = int | SignalKey
"""Conversation number, or what tells signals apart: what has the same key runs one at a time."""

Item = Delivery | ReadOn | Join | Rewind | Due | Inherited | None
"""What waits under a key; None where the key itself says it, as with signals."""


class Served:
    """A plugin in service. signals: the newest of each kind that waits. listed: it is on the rota of those to ask.

    troubles: what failed last while a breaker was open, by identity; "" is the last of all.
    tag: what stands for it among the marks of running calls. intervals: seconds by the name of the recurring handler.
    catch_up: by identity, None where stale mail is handled like any other. replays: by conversation number, how often a
    lane was set back and where it stood. identities: those that it serves. taken_at: monotonic seconds of the last
    hand-out, or of the start.
    """

    __slots__ = (
        "breakers",
        "catch_up",
        "identities",
        "intervals",
        "lanes",
        "listed",
        "plugin",
        "replays",
        "signals",
        "tag",
        "taken_at",
        "troubles",
    )

    def __init__(self, plugin: Hosted, tag: int, limits: Limits, conduct: Mapping[str, config.Conduct]) -> None:
        self.tag = tag
        self.breakers = Breakers(limits)
        self.lanes: Lanes[Key, Item] = Lanes(plugin.settings.concurrency)
        self.replays: dict[int, tuple[int, int]] = {}
        self.signals: dict[SignalKey, Signal] = {}
        self.listed = False
        self.identities: set[str] = set()
        self.taken_at = 0.0
        self.troubles: dict[str, str] = {}
        self.run_by(plugin, conduct)

    def run_by(self, plugin: Hosted, conduct: Mapping[str, config.Conduct]) -> None:
        """This generation of the plugin handles what comes from now on."""
        self.plugin = plugin
        self.lanes.limit = plugin.settings.concurrency
        self.intervals = {each.name: each.every_s for each in plugin.handlers.all if each.every_s is not None}
        self.catch_up: dict[str, config.CatchUp | None] = {}
        for identity in self.identities:
            self.carry(identity, conduct[identity])

    def again(self, number: int, position: int) -> str:
        """What sets the keys of a replay apart, "" for events that are handled for the first time."""
        if (replayed := self.replays.get(number)) is None:
            return ""
        replay, until = replayed
        return f"replay {replay}" if position <= until else ""

    def carry(self, identity: str, conduct: config.Conduct) -> None:
        """This identity is served, and carries itself so."""
        self.identities.add(identity)
        self.lanes.shared = self.breakers.shared = len(self.identities) > 1
        self.catch_up[identity] = _policy(conduct.catch_up, self.plugin)

    def left(self, identity: str) -> None:
        """This identity is not served any more."""
        self.identities.discard(identity)
        self.lanes.shared = self.breakers.shared = len(self.identities) > 1
        self.breakers.forget(identity)
        self.troubles.pop(identity, None)
        self.catch_up.pop(identity, None)


def _policy(of_identity: config.CatchUp, plugin: Hosted) -> config.CatchUp | None:
    """What a plugin does about stale mail; None where it handles it like any other."""
    policy = plugin.settings.catch_up or (None if plugin.watches else of_identity)
    if policy is None or policy.policy == "replay":
        return None
    # Who does not take digests gets every message.
    return None if policy.policy == "digest" and not plugin.takes_digests else policy


class Lane:
    """One plugin in one conversation, while it has something to do.

    number: the line's. loaded: position up to which records were queued or passed over; loaded_count: how many of the
    line's. done_count: how many are handled. told: the cursor as the journal has it or will. memory: deliveries queued.
    behind: more lies in the journal, and a ReadOn stands at the end of the queue. still: it does not move, so that what
    comes had better stay in the journal. failures: of the turn at the head. deaths: of the process, blamed on it.
    until: position of that turn's last event if it has several, else 0. progress: what it noted. before: how it failed
    before the restart, or None. apart: position up to which events are handled one by one. began_at: monotonic seconds.
    ended: how the turn at its head failed elsewhere.
    settling: it waits for more to come. let_through: position up to which stale mail is handled like any other.
    runs_until: position of the last event of the turn that began last.
    gone: its plugin does not serve the identity any more; a turn that is under way ends as it ends.
    """

    __slots__ = (
        "apart",
        "before",
        "began_at",
        "behind",
        "deaths",
        "done_count",
        "ended",
        "failures",
        "gone",
        "let_through",
        "line",
        "loaded",
        "loaded_count",
        "memory",
        "number",
        "progress",
        "runs_until",
        "served",
        "settling",
        "still",
        "told",
        "until",
    )

    def __init__(self, line: Line, served: Served, cursor: int, count: int) -> None:
        self.line = line
        self.number = line.number
        self.served = served
        self.loaded = self.told = cursor
        self.loaded_count = self.done_count = count
        self.memory = 0
        self.behind = self.still = self.settling = self.gone = False
        self.began_at = 0.0
        self.apart = self.let_through = self.runs_until = 0
        self.before: Attempt | None = None
        self.ended: Ended | None = None
        self.failures = self.deaths = self.until = 0
        self.progress: bytes | None = None

    @property
    def depth(self) -> int:
        """Records that are not handled yet, those in the journal included."""
        return self.line.offered - self.done_count

    def fresh(self) -> None:
        """Nothing is known of the turn at the head."""
        self.failures = self.deaths = self.until = 0
        self.progress = None


class Line:
    """A conversation in which some lane has something to do.

    last: position of its newest record. offered: its records so far, counted from when it was met. passed: how many of
    them every lane has handled. conversation: its id, or "" while nobody has told.
    """

    __slots__ = ("conversation", "identity", "lanes", "last", "number", "offered", "passed")

    def __init__(self, number: int, identity: str, last: int) -> None:
        self.number = number
        self.identity = identity
        self.last = last
        self.offered = 0
        self.passed = 0
        self.conversation = ""
        self.lanes: list[Lane] = []


class Memory:
    """What an identity has in memory: deliveries, and the bytes of their payloads."""

    __slots__ = ("bytes", "count")

    def __init__(self) -> None:
        self.count = self.bytes = 0


class Backlog:
    """All lines, and the counts per identity.

    handled: records that every plugin of the identity is through with. pending: those that not all are.
    in_memory: deliveries queued over all lanes; bytes_in_memory: of their payloads. memory_of: the same by identity.
    """

    def __init__(self, identities: Iterable[str]) -> None:
        self.handled = dict.fromkeys(identities, 0)
        self.pending = dict.fromkeys(self.handled, 0)
        self.in_memory = self.bytes_in_memory = 0
        self.memory_of: dict[str, Memory] = {identity: Memory() for identity in self.handled}
        self._lines: dict[int, Line] = {}
        self._last: dict[str, dict[int, int]] = {identity: {} for identity in self.handled}

    def begin(self, identity: str) -> None:
        """An identity is served from now on."""
        self.handled[identity] = self.pending[identity] = 0
        self._last[identity] = {}
        self.memory_of.setdefault(identity, Memory())

    def forget(self, identity: str) -> None:
        """An identity that no plugin serves any more is none of ours."""
        del self.handled[identity], self.pending[identity], self._last[identity]

    def join(
        self, identity: str, served: Served, plugins: Sequence[Served], cursor: Callable[[int], int]
    ) -> list[Lane]:
        """Another plugin serves an identity from now on. plugins: who did before.

        cursor: position that it has handled, by conversation number. Returns its lanes that are behind. How far, they
        do not know: whoever has counted it calls `set_back`.
        """
        behind = []
        for number, last in self._last[identity].items():
            is_behind = (position := cursor(number)) < last
            if number not in self._lines and not is_behind:
                continue
            line = self.line(number, identity, plugins)
            lane = Lane(line, served, min(position, last), line.offered - is_behind)
            line.lanes.append(lane)
            if is_behind:
                lane.behind = True
                behind.append(lane)
            self.passed_to(line, min(each.done_count for each in line.lanes))
        return behind

    def part(self, identity: str, served: Served) -> list[Lane]:
        """A plugin does not serve an identity any more. Returns its lanes, which are gone."""
        parted = [(line, lane) for line in self._lines.values() for lane in line.lanes if lane.served is served]
        parted = [(line, lane) for line, lane in parted if line.identity == identity]
        for line, lane in parted:
            lane.gone = True
            line.lanes.remove(lane)
            self.passed_to(line, min((each.done_count for each in line.lanes), default=line.offered))
        return [lane for _, lane in parted]

    def restore(self, line: Line) -> bool:
        """Take in a line whose lanes stand where they stood before the restart. Returns whether any is behind."""
        self._last[line.identity][line.number] = line.last
        line.passed = min((lane.done_count for lane in line.lanes), default=0)
        if line.passed == line.offered:
            return False
        self._lines[line.number] = line
        self.pending[line.identity] += line.offered - line.passed
        return True

    def lanes(self) -> Iterable[Lane]:
        """Every lane that has something to do."""
        return (lane for line in self._lines.values() for lane in line.lanes)

    def lane(self, number: int, served: Served) -> Lane | None:
        """One plugin's lane in a conversation, or None if there is nothing to do for anybody."""
        line = self._lines.get(number)
        return None if line is None else next((lane for lane in line.lanes if lane.served is served), None)

    def line(self, number: int, identity: str, plugins: Iterable[Served]) -> Line:
        """A conversation's line, begun behind what was offered last if nothing of it waits."""
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = Line(number, identity, self._last[identity].get(number, 0))
            line.lanes = [Lane(line, served, line.last, 0) for served in plugins]
        return line

    def loaded(self, delivery: Delivery) -> None:
        """This is in memory now."""
        self._count(delivery, 1)

    def unloaded(self, deliveries: Iterable[Delivery]) -> None:
        """These are not any more."""
        for delivery in deliveries:
            self._count(delivery, -1)

    def _count(self, delivery: Delivery, by: int) -> None:
        size = by * len(delivery.record.event.payload)
        memory = self.memory_of[delivery.lane.line.identity]
        delivery.lane.memory += by
        self.in_memory += by
        memory.count += by
        self.bytes_in_memory += size
        memory.bytes += size

    def set_back(self, lane: Lane, behind: int) -> None:
        """So many of the line's newest records are this lane's to handle, again or for the first time."""
        lane.done_count = lane.loaded_count = lane.line.offered - behind
        self.passed_to(lane.line, min(each.done_count for each in lane.line.lanes))

    def met(self, record: Record, plugins: Iterable[Served]) -> Line:
        """The line of a record that is new. Count it with `offered`."""
        line = self.line(record.conversation, record.event.identity, plugins)
        line.conversation = record.event.conversation
        assert record.position > line.last, (record.position, line.last)
        line.last = self._last[line.identity][line.number] = record.position
        line.offered += 1
        self.pending[line.identity] += 1
        return line

    def deepest(self, served: Served, most: int) -> list[Lane]:
        """The lanes of a plugin with the most to do."""
        lanes = (lane for lane in self.lanes() if lane.served is served and lane.depth)
        return heapq.nlargest(most, lanes, key=lambda lane: lane.depth)

    def handled_to(self, lane: Lane, count: int) -> None:
        """This lane is through with so many records of its line."""
        lane.done_count = count
        if lane.gone:
            return
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
