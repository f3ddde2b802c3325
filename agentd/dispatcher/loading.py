"""Which records of a lane are in memory, and which lie in the journal until it gets there.

Always true: a lane in memory is a run of its records without a hole, from its head on. What is over a lane's share, or
over its identity's share of all memory, or belongs to a lane that stands still, stays in the journal, and costs no
memory. An identity that has its share is told to leave its messages with the server; the others do not notice.
Not here: running anything.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agentd.core.events import Event, Record
from agentd.core.shares import most
from agentd.dispatcher.backlog import Backlog, Delivery, Item, Lane, ReadOn, Served
from agentd.dispatcher.engine import Engine
from agentd.dispatcher.fates import dead_letter
from agentd.host.handlers import BATCH_MAX, matching
from agentd.journal.storage import StoredRecord

log = logging.getLogger("agentd.dispatcher")

_STUCK_S = 1.0  # what runs, or waits, for longer stands still, as far as memory goes


class Marks(NamedTuple):
    """Of deliveries in memory, by count and by bytes.

    high, high_bytes: so much there may be in all; an identity whose share of that is used up sheds. low, low_bytes: and
    takes again when it has no more than these, or the same part of a smaller share.
    """

    high: int
    low: int
    high_bytes: int
    low_bytes: int


class Loading:
    """That of one dispatcher. revive: decodes what was stored. on_backlog: an identity sheds from now on, or not."""

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog,
        lane_memory: int,
        marks: Marks,
        *,
        revive: Callable[[StoredRecord], Event],
        on_backlog: Callable[[str, bool], None],
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._lane_memory = lane_memory
        self._marks = marks
        self._revive = revive
        self._on_backlog = on_backlog
        self._shedding: set[str] = set()
        self._looking = False

    # --- in

    def offer(self, records: Sequence[Record], serves: Callable[[str], Sequence[Served] | None]) -> None:
        """Take records that are on disk, in the order of their positions."""
        for record in records:
            identity = record.event.identity
            plugins = serves(identity)
            if plugins is None:  # it was taken from service; what is on disk waits there for its return
                continue
            line = self._backlog.met(record, plugins)
            if self._engine.traces is not None:
                self._engine.traces.offered(record, [lane.served.plugin.name for lane in line.lanes])
            for lane in line.lanes:
                if lane.behind:
                    continue
                if lane.still or lane.memory >= self._lane_memory or self._is_full(identity):
                    self.read_on(lane)
                else:
                    self._load(lane, record)
            if not plugins:
                self._backlog.passed_to(line, line.offered)
        for identity in {record.event.identity for record in records}:
            self.check_marks(identity)

    def _load(self, lane: Lane, record: Record) -> None:
        """Queue a record if a handler wants it, else pass over it."""
        plugin = lane.served.plugin
        handlers = matching(plugin, record.event)
        lane.loaded = record.position
        lane.loaded_count += 1
        if handlers is None or handlers:
            delivery = Delivery(lane, record, handlers, lane.loaded_count, plugin)
            self._backlog.loaded(delivery)
            self._engine.push(lane.served, lane.number, delivery, lane.line.identity)
            if lane.settling and handlers and (batch := handlers[0].batch) is not None and lane.memory >= batch.size:
                lane.settling = False
                lane.served.lanes.release(lane.number)
            return
        if self._engine.traces is not None:
            self._engine.traces.through(plugin.name, record.event.identity, record.event.id)
        if not lane.memory:
            self.advance(lane)

    def read_on(self, lane: Lane) -> None:
        """The rest of this lane lies in the journal."""
        lane.behind = True
        self._engine.push(lane.served, lane.number, ReadOn(lane), lane.line.identity)

    async def join(self, lane: Lane) -> None:
        """Count how far behind a plugin is that begins to serve an identity; then it reads on like any other."""
        line, offered = lane.line, lane.line.offered
        behind = await self._engine.journal.count_between(line.number, lane.loaded, line.last)
        if not lane.gone:
            behind += line.offered - offered
            self._backlog.set_back(lane, behind)
            if behind:
                self.read_on(lane)
            else:  # what was recorded then has been trimmed since
                lane.behind = False
                lane.loaded = line.last
                self.advance(lane)
        self._engine.done(lane.served, lane.number)

    async def read_back(self, lane: Lane) -> None:
        """Load the lane's next records from the journal, up to the last that was offered."""
        line = lane.line
        # All lanes may be behind at once; those of an identity fill memory to the low mark, so that catching up alone
        # does not make intake shed. A turn that had several events is repeated with all of them.
        least = BATCH_MAX if lane.before is not None and lane.before.until else 1
        room = max(least, min(self._lane_memory, self._room_below_low(line.identity)))
        stored = await self._engine.journal.read_lane(line.number, lane.loaded, room)
        if lane.gone:
            self._engine.done(lane.served, lane.number)
            return
        # What is on disk but not offered yet will be offered.
        known = [each for each in stored if each.position <= line.last]
        for number, each in enumerate(known, start=1):
            self._load_stored(lane, each)
            if number >= least and self._is_full(line.identity):
                break
        lane.behind = bool(known) and lane.loaded < line.last
        if lane.behind:
            self._engine.push(lane.served, lane.number, ReadOn(lane), lane.line.identity)
        else:
            lane.loaded, lane.loaded_count = line.last, line.offered
            if not lane.memory:
                self.advance(lane)
        self._engine.done(lane.served, lane.number)
        self.check_marks(line.identity)

    def _load_stored(self, lane: Lane, stored: StoredRecord) -> None:
        plugin = lane.served.plugin
        try:
            event = self._revive(stored)
        except Exception as error:
            # It was decoded once, by another version of us. One record must not hold up its conversation for ever.
            log.exception(
                "a stored event cannot be decoded", extra={"plugin": plugin.name, "identity": stored.identity}
            )
            now = self._engine.clock.unix()
            self._engine.commits.commit(dead_letter(plugin, lane.number, stored.position, 0, error, now))
            lane.loaded = stored.position
            lane.loaded_count += 1
        else:
            self._load(lane, stored.record(event))

    def of_the_turn(self, lane: Lane) -> int:
        """How many items at the head of this lane belong to the turn that runs, or is repeated, there; at least 1."""
        ends = max(lane.runs_until, lane.until)
        items = lane.served.lanes.first(lane.number, lane.memory) if lane.number in lane.served.lanes else []
        return max(1, sum(isinstance(each, Delivery) and each.record.position <= ends for each in items))

    # --- out

    def finished(self, lane: Lane, deliveries: Sequence[Delivery]) -> None:
        """The deliveries at the head of this lane have their fate."""
        last = deliveries[-1]
        if (traces := self._engine.traces) is not None:
            for each in deliveries:
                again = bool(lane.served.again(lane.number, each.record.position))
                traces.finished(lane.served.plugin.name, each.record, each.pending, again=again)
        self._backlog.unloaded(deliveries)
        if lane.memory:
            self._engine.commits.moved(lane, last.record.position)
            self._backlog.handled_to(lane, last.ordinal)
        else:
            self.advance(lane)
        if self._shedding:
            self.check_marks(lane.line.identity)

    def position_past(self, lane: Lane, deliveries: Sequence[Delivery]) -> int:
        """Where the cursor stands behind these deliveries: behind what was passed over after them, too."""
        return lane.loaded if lane.memory == len(deliveries) else deliveries[-1].record.position

    def advance(self, lane: Lane) -> None:
        """Nothing is queued in this lane: it is through with all that was loaded."""
        self._engine.commits.moved(lane, lane.loaded)
        self._backlog.handled_to(lane, lane.loaded_count)

    def unload(self, lane: Lane, keep: Delivery) -> None:
        """Leave what lies behind this delivery of a lane in the journal."""

        def behind(item: Item) -> bool:
            if isinstance(item, Delivery):
                return item.record.position > keep.record.position
            return isinstance(item, ReadOn)

        gone = [each for each in lane.served.lanes.withdraw(lane.number, behind) if isinstance(each, Delivery)]
        self._backlog.unloaded(gone)
        if gone or lane.behind:
            lane.loaded, lane.loaded_count = keep.record.position, keep.ordinal
            self.read_on(lane)

    def unload_all(self, lane: Lane) -> None:
        """The lane goes elsewhere: forget what it has in memory, its head excepted."""
        gone = lane.served.lanes.withdraw(lane.number, lambda item: isinstance(item, (Delivery, ReadOn)))
        self._backlog.unloaded(each for each in gone if isinstance(each, Delivery))
        lane.behind = False

    # --- bounds

    def _share(self, high: int, total: int, mine: int) -> int:
        """How much of `high` an identity may have that has `mine`, while all of them have `total`."""
        return most(high - total) if len(self._backlog.pending) > 1 else high - (total - mine)

    def _is_full(self, identity: str) -> bool:
        backlog, marks = self._backlog, self._marks
        mine = backlog.memory_of[identity]
        return mine.count >= self._share(marks.high, backlog.in_memory, mine.count) or mine.bytes >= self._share(
            marks.high_bytes, backlog.bytes_in_memory, mine.bytes
        )

    def _is_low(self, identity: str) -> bool:
        backlog, marks = self._backlog, self._marks
        mine = backlog.memory_of[identity]
        share = self._share(marks.high_bytes, backlog.bytes_in_memory, mine.bytes)
        return self._room_below_low(identity) >= 0 and mine.bytes <= min(
            marks.low_bytes, share * marks.low_bytes // marks.high_bytes
        )

    def _room_below_low(self, identity: str) -> int:
        """How many more an identity may have, by count, and still be low."""
        marks, mine = self._marks, self._backlog.memory_of[identity].count
        share = self._share(marks.high, self._backlog.in_memory, mine)
        return min(marks.low, share * marks.low // marks.high) - mine

    def check_marks(self, identity: str) -> None:
        """Tell an identity's intake when too much of it is in memory, and when that is over."""
        if identity in self._shedding:
            if self._is_low(identity):
                self._shedding.discard(identity)
                self._on_backlog(identity, False)
        elif self._is_full(identity):
            self._relieve(identity)
            if self._is_full(identity):
                self._shedding.add(identity)
                self._on_backlog(identity, True)
                self._look_again()

    def forget(self, identity: str) -> None:
        """It was taken from service."""
        self._shedding.discard(identity)

    def _look_again(self) -> None:
        """What has only begun to wait may turn out to be stuck, and then nobody else comes by to see it."""
        if self._shedding and not self._looking:
            self._looking = True
            clock = self._engine.clock
            clock.call_at(clock.monotonic() + _STUCK_S, self._still_shedding)

    def _still_shedding(self) -> None:
        self._looking = False
        if self._engine.stopping:
            return
        for identity in list(self._shedding):
            self._relieve(identity)
            self.check_marks(identity)
        self._look_again()

    def _relieve(self, identity: str) -> None:
        """Lanes that do not move must not use up the memory of those that do."""
        for lane in [each for each in self._backlog.lanes() if each.line.identity == identity]:
            if lane.memory > 1:
                items = lane.served.lanes.first(lane.number, lane.served.lanes.depth(lane.number))
                there = [each for each in items if isinstance(each, Delivery)]
                if self._is_stuck(lane, there[0]):
                    lane.still = True
                    ends = lane.until or there[0].record.position
                    self.unload(lane, next(each for each in reversed(there) if each.record.position <= ends))

    def _is_stuck(self, lane: Lane, head: Delivery) -> bool:
        """Whether its call runs for long, or it waits for long while no call of its plugin begins.

        Those of its plugin may all hang, or its worker be down.
        """
        clock = self._engine.clock
        stuck_since = clock.monotonic() - _STUCK_S
        if lane.began_at:
            return lane.began_at < stuck_since
        return lane.served.taken_at < stuck_since and head.record.received_at < clock.unix() - _STUCK_S
