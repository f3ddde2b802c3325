"""Puts each conversation's events in order and accounts for every seq.

Per conversation (a `Line`) it holds the high-water mark, a bounded buffer of early events, the highest seq known to
exist, and what never came. One Sequencer serves one identity. Callers hand in what arrived and the time, and carry out
the decisions that come back; `deadline()` says when to call `wake`.

Always true: delivered seqs rise, save those marked late. Every seq from the anchor to the mark is delivered (own
events too) or absent, once; absent is a decision of its own, never silent, and a latecomer is told from a repeat for
ever. The buffer is bounded; what overflows becomes a hole again, since it can be fetched. An empty buffer forgets
nothing: a hole is known by mark < top.
Not here: the clock, the disk (lines come in at start and go out as values), requests, acks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from agentd.core.events import FIRST_EPOCH, FIRST_SEQ, Event, Source
from agentd.core.ranges import Ranges
from agentd.core.reconnect import ASKED_DELAY_MAX_S

RESET = "reset"
"""Reason of a gap that ended because its numbering did."""

PAGE = 200
"""Rows that one history page can hold; the holes of one page's width are asked for together."""


_AGAIN_MIN_S = 0.1
"""Between two looks at a hole, however short the grace before the first."""


class Deliver(NamedTuple):
    """The next event of its conversation, or a late one. Journal it with the mark, then acknowledge it."""

    event: Event


class Repeat(NamedTuple):
    """Accounted for and on disk already: acknowledge it again, since the far end seems not to know."""

    event: Event


class Check(NamedTuple):
    """Its seq is accounted for, but whether by this very event only the disk knows: look it up, call `checked`.

    Or call `forgo`, if others of its conversation wait.
    """

    event: Event
    epoch: int


class Refetch(NamedTuple):
    """Ask the history for [start, stop), then call `refetched` or `refetch_failed`. One at a time per conversation."""

    conversation: str
    epoch: int
    start: int
    stop: int


class Absent(NamedTuple):
    """The server's answer proved that it has nothing to give at [start, stop)."""

    conversation: str
    epoch: int
    start: int
    stop: int
    reason: str


class Renumbered(NamedTuple):
    """The seq of this event belongs to another event on disk: the server started a new numbering. Call `reset`.

    epoch: what ended. Until the reset everything of the conversation is held, since it is of the new numbering.
    """

    event: Event
    epoch: int


class Survey(NamedTuple):
    """A conversation was met in its middle: drain, since what was lost below may still be held for us."""

    conversation: str


class GapProgress(msgspec.Struct):
    """A range that had to be asked for. rows: how many of its seqs have come since. attempts: requests made."""

    start: int
    stop: int
    attempts: int = 0
    rows: int = 0
    absent: int = 0
    reason: str = ""

    @property
    def outcome(self) -> str:
        """How a closed gap ended: "filled", "absent", "mixed" or "reset"."""
        if self.reason == RESET:
            return RESET
        if not self.absent:
            return "filled"
        return "absent" if self.absent == self.stop - self.start else "mixed"


class GapOpened(NamedTuple):
    """A hole outlived its grace; its range is being asked for."""

    conversation: str
    epoch: int
    gap: GapProgress


class GapClosed(NamedTuple):
    """Every seq of the gap is accounted for."""

    conversation: str
    epoch: int
    gap: GapProgress


Decision = Deliver | Repeat | Check | Refetch | Absent | Renumbered | Survey | GapOpened | GapClosed


class Line:
    """One conversation's standing. Read it as you like; only the Sequencer writes it.

    anchor: the first seq answered for, None until it is chosen. mark: all of [anchor, mark] is accounted for.
    mark_id: id of the event at the mark, "" if none is there. top: the highest seq known to exist.
    absent: what never came below the mark, the stretch before the anchor included. known_ids: what is recorded, once
    there was another numbering; a restart has to bring them along.
    """

    __slots__ = (
        "absent",
        "anchor",
        "asked_top",
        "asking",
        "checks",
        "conversation",
        "due",
        "epoch",
        "failures",
        "furthest",
        "gap",
        "held",
        "hole",
        "known_ids",
        "lowest",
        "mark",
        "mark_id",
        "page",
        "sends",
        "surveyed",
        "top",
    )

    def __init__(self, conversation: str) -> None:
        self.conversation = conversation
        self.epoch = FIRST_EPOCH
        self.anchor: int | None = None
        self.mark = 0
        self.mark_id = ""
        self.top = 0
        self.absent = Ranges()
        self.held: dict[int, Event] = {}
        self.furthest = 0
        self.lowest = 0
        self.gap: GapProgress | None = None
        self.asking = False
        self.asked_top = 0
        self.checks = 0
        self.failures = 0
        self.hole = 0
        self.due: float | None = None
        self.sends = 0
        self.page: int | None = None
        self.surveyed = False
        self.known_ids: frozenset[str] = frozenset()


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the sequencer is bounded by; seconds and events. survey_s: how long a survey's drain may take to begin."""

    grace_s: float = 0.75
    survey_s: float = 10.0
    held_max: int = 2_000
    held_total_max: int = 20_000
    backfill: int = 0
    retry_max_s: float = 30.0


class Sequencer:
    """Order and accounting for one identity. Every method takes `now`: monotonic seconds, never falling."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._again_s = max(limits.grace_s, _AGAIN_MIN_S)
        self._lines: dict[str, Line] = {}
        self._unanchored: dict[str, Line] = {}
        self._changed: dict[str, Line] = {}
        self._alarms: list[tuple[float, str]] = []
        self._held = 0
        self._draining = False
        self._page = 0
        self._overflowing: set[str] = set()

    # -- what is known --------------------------------------------------------------------------------------------

    @property
    def lines(self) -> dict[str, Line]:
        """Every conversation by id; read only."""
        return self._lines

    @property
    def held(self) -> int:
        """Early events in memory."""
        return self._held

    @property
    def overflowing(self) -> int:
        """Conversations with a hole behind which more came than may be held; the rest will be fetched."""
        return len(self._overflowing)

    def restore(self, line: Line, now: float) -> None:
        """Take up a conversation as it was on disk. A top above the mark is asked for at the first wake."""
        self._lines[line.conversation] = line
        if line.top > line.mark:
            self._alarm(line, now)

    def changed(self) -> list[Line]:
        """The lines that differ from what was last taken here; put them on disk with the events."""
        taken = list(self._changed.values())
        self._changed.clear()
        return taken

    def deadline(self) -> float | None:
        """When `wake` has something to do, or None."""
        while self._alarms:
            due, conversation = self._alarms[0]
            line = self._lines.get(conversation)
            if line is not None and line.due == due:
                return due
            heapq.heappop(self._alarms)
        return None

    # -- what arrives ---------------------------------------------------------------------------------------------

    def offer(self, event: Event, now: float) -> list[Decision]:
        """Take one event as it arrived, from wherever, and say what to do.

        Returns Deliver for it and for everything that it sets free, Repeat or Check for one that is accounted for,
        nothing for one that is held.
        Source: AgentChat `message.new`; seq rises by one per conversation, own sends take seqs and are not pushed.
        """
        line = self._lines.get(event.conversation)
        if line is None:
            line = self._meet(event.conversation)
        if line.anchor is None:
            return self._offer_unanchored(line, event, now)
        out: list[Decision] = []
        if event.seq == line.mark + 1 and not line.checks:
            self._deliver(line, event, out)
            if line.held:
                self._release(line, out)
            if line.due is not None or line.gap is not None:
                self._rearm(line, now, out)
        elif event.seq > line.mark:
            self._hold(line, event)
            if line.due is None and not line.asking:
                self._alarm(line, now + self._limits.grace_s)
        else:
            self._offer_below(line, event, out)
        return out

    def checked(self, event: Event, epoch: int, recorded: str | None, now: float) -> list[Decision]:
        """Go on after Check: `recorded` is the id on disk at that seq of this epoch, None if nothing is there.

        Nothing is there where an event of an earlier epoch came again: then `recorded` is its own id if it is that one.
        What came meanwhile waits for this answer, since under a new numbering it would be out of order.
        """
        line = self._lines[event.conversation]
        if line.epoch != epoch:
            return self.offer(event, now)
        if recorded != event.id:
            return [Renumbered(event, epoch)]  # its check stays open, for what follows it
        line.checks -= 1
        out: list[Decision] = [Repeat(event)]
        if not line.checks:
            self._release(line, out)
            self._rearm(line, now, out)
        return out

    def doubted(self, event: Event) -> Renumbered:
        """The server shows this event, in an answer, where another one is on disk."""
        line = self._lines[event.conversation]
        line.checks += 1
        return Renumbered(event, line.epoch)

    def forgo(self, check: Check) -> bool:
        """Do not answer this; False if it must be. Its event is not acknowledged, and will be offered again.

        One check tells for its conversation whether the numbering is still the one we know, so it must not be the last.
        """
        line = self._lines[check.event.conversation]
        if line.epoch == check.epoch:
            if line.checks < 2:
                return False
            line.checks -= 1
        return True

    def refetched(
        self, ask: Refetch, rows: Iterable[Event], proven: int, now: float, reason: str = "not in history"
    ) -> list[Decision]:
        """Take the history's answer to `ask`: `rows` with rising seq, which leave nothing out below `proven`.

        What is below `proven` and came neither here nor otherwise is absent, for `reason`. An answer for an epoch
        that has ended is dropped.
        """
        line = self._lines[ask.conversation]
        out: list[Decision] = []
        if line.epoch != ask.epoch:
            return out
        line.asking = False
        line.failures = 0
        for row in rows:
            out += self.offer(row, now)
        self._give_up_below(line, proven, reason, out)
        self._rearm(line, now, out)
        if line.mark < line.asked_top and proven > ask.start:
            self._alarm(line, now)  # a hole that was there when we asked: the next page at once
        return out

    def refetch_failed(self, ask: Refetch, now: float, retry_after_s: float | None = None) -> None:
        """The history could not be read. That is not "absent": it is asked again, later and later."""
        line = self._lines[ask.conversation]
        if line.epoch != ask.epoch:
            return
        line.asking = False
        backoff_s: float = self._again_s * 2 ** min(line.failures, 16)
        line.failures += 1
        asked_s = min(retry_after_s or 0.0, ASKED_DELAY_MAX_S)
        self._alarm(line, now + max(min(backoff_s, self._limits.retry_max_s), asked_s))

    def stands_at(self, conversation: str, top: int, now: float) -> bool:
        """The server says that `top` exists. True if that is news: a loss that nothing else would have shown."""
        if top < FIRST_SEQ:
            return False  # nothing was said there
        line = self._lines.get(conversation)
        if line is None:
            line = self._meet(conversation)
        if line.anchor is None:
            if line.lowest:
                return False
            self._anchor_at(line, top)  # never met, nothing on offer: the server's word is the lowest offer
            self._alarm(line, now)
            return True
        if top <= line.top:
            return False
        line.top = top
        self._changed[conversation] = line
        if line.due is None and not line.asking:
            self._alarm(line, now + self._limits.grace_s)
        return True

    def reset(
        self, conversation: str, now: float, *, top: int, adopt: bool, known_ids: frozenset[str]
    ) -> list[Decision]:
        """Start a new epoch: the server numbers this conversation anew and stands at `top`.

        adopt: take the top as the mark instead of replaying from the start. known_ids: ids recorded in earlier
        epochs; events among them are accounted for under their new seq without being delivered again.
        """
        line = self._lines[conversation]
        out: list[Decision] = []
        if line.gap is not None:
            line.gap.reason = RESET
            out.append(GapClosed(conversation, line.epoch, line.gap))
        self._held -= len(line.held)
        line.held.clear()
        line.furthest = 0
        self._overflowing.discard(conversation)
        line.epoch += 1
        line.gap, line.asking, line.failures, line.due, line.checks = None, False, 0, None, 0
        line.mark_id, line.known_ids = "", known_ids
        line.anchor = top + 1 if adopt else FIRST_SEQ
        line.mark = line.anchor - 1
        line.top = top
        line.absent = Ranges([(0, line.anchor)])
        self._changed[conversation] = line
        if line.top > line.mark:
            self._alarm(line, now)
        return out

    # -- sends of ours, whose seqs are known only from their answers -----------------------------------------------

    def send_began(self, conversation: str) -> None:
        """A send to this conversation is under way: a hole may be its seq, so holes wait for its answer."""
        line = self._lines.get(conversation)
        if line is not None:
            line.sends += 1

    def send_ended(self, conversation: str, now: float) -> None:
        """Its answer came (offer the own event first), or never will."""
        line = self._lines.get(conversation)
        if line is None or not line.sends:
            return
        line.sends -= 1
        if not line.sends and line.due is not None:
            self._alarm(line, now + self._limits.grace_s)

    # -- the drain ------------------------------------------------------------------------------------------------

    def drain_began(self) -> None:
        """Everything that the server still holds is about to be offered, oldest first."""
        self._draining = True
        self._page = 0

    def page_ended(self, now: float) -> list[Decision]:
        """A drain page has been offered whole.

        A conversation first met in an earlier page of this drain is anchored: rows come oldest first, so one more
        page is margin enough for rows of one instant that lie across a page's end.
        """
        out: list[Decision] = []
        for line in list(self._unanchored.values()):
            if line.page is not None and line.page < self._page:
                self._anchor(line, now, out)
        self._page += 1
        return out

    def drain_ended(self, now: float, *, complete: bool) -> list[Decision]:
        """The drain is over: conversations met meanwhile stand at the lowest seq that came.

        complete: nothing is left to offer. Otherwise they get the grace; what the next drain brings from below them
        is then delivered late, which is better than waiting for a server that does not answer.
        """
        self._draining = False
        out: list[Decision] = []
        for line in list(self._unanchored.values()):
            if complete:
                self._anchor(line, now, out)
            else:
                self._alarm(line, now + self._limits.grace_s)
        return out

    # -- time -----------------------------------------------------------------------------------------------------

    def wake(self, now: float) -> list[Decision]:
        """Do what has become due: anchor what waited for company, ask for holes that outlived their grace."""
        out: list[Decision] = []
        while (due := self.deadline()) is not None and due <= now:
            line = self._lines[heapq.heappop(self._alarms)[1]]
            line.due = None
            if line.anchor is None:
                self._survey(line, now, out)
            elif line.sends or line.checks:
                self._alarm(line, now + self._again_s)
            elif line.top > line.mark and not line.asking:
                self._ask(line, now, out)
        return out

    # -- inside ---------------------------------------------------------------------------------------------------

    def _meet(self, conversation: str) -> Line:
        line = self._lines[conversation] = self._unanchored[conversation] = Line(conversation)
        return line

    def _offer_unanchored(self, line: Line, event: Event, now: float) -> list[Decision]:
        out: list[Decision] = []
        self._hold(line, event)
        line.lowest = min(line.lowest or event.seq, event.seq)
        if event.source is Source.DRAIN and line.page is None:
            line.page = self._page
        if event.seq <= FIRST_SEQ or len(line.held) >= self._limits.held_max:
            self._anchor(line, now, out)
        elif not self._draining and line.due is None:
            self._alarm(line, now + self._limits.grace_s)
        return out

    def _survey(self, line: Line, now: float, out: list[Decision]) -> None:
        if self._draining:
            return  # its end will anchor the line
        if line.surveyed:
            self._anchor(line, now, out)
        else:
            line.surveyed = True
            out.append(Survey(line.conversation))
            self._alarm(line, now + self._limits.survey_s)

    def _anchor(self, line: Line, now: float, out: list[Decision]) -> None:
        self._anchor_at(line, line.lowest)
        self._release(line, out)
        self._rearm(line, now, out)

    def _anchor_at(self, line: Line, lowest: int) -> None:
        line.anchor = min(lowest, max(FIRST_SEQ, lowest - self._limits.backfill))
        line.mark = line.anchor - 1
        line.top = max(line.top, lowest)
        line.absent = Ranges([(0, line.anchor)])
        line.page = None
        self._unanchored.pop(line.conversation, None)
        self._changed[line.conversation] = line

    def _hold(self, line: Line, event: Event) -> None:
        known = line.held.get(event.seq)
        if event.seq > line.top:
            line.top = event.seq
            self._changed[line.conversation] = line
        if known is not None:
            if known.id != event.id:  # two messages claim one place: believe neither, the history decides
                del line.held[event.seq]
                self._held -= 1
                line.furthest = max(line.held, default=0)
            return
        full = len(line.held) >= self._limits.held_max or self._held >= self._limits.held_total_max
        if full and event.seq > line.furthest:
            self._overflowing.add(line.conversation)
            return  # what overflows first; a flood behind a hole must not cost a search per event
        line.held[event.seq] = event
        line.furthest = max(line.furthest, event.seq)
        self._held += 1
        if len(line.held) > self._limits.held_max or self._held > self._limits.held_total_max:
            del line.held[line.furthest]
            self._held -= 1
            line.furthest = max(line.held, default=0)
            self._overflowing.add(line.conversation)

    def _offer_below(self, line: Line, event: Event, out: list[Decision]) -> None:
        if event.seq in line.absent:
            line.absent.remove(event.seq, event.seq + 1)
            self._changed[line.conversation] = line
            if event.id in line.known_ids:
                out.append(Repeat(event))
            else:
                out.append(Deliver(self._placed(line, event, late=True)))
        elif (event.seq == line.mark and event.id == line.mark_id) or event.id in line.known_ids:
            out.append(Repeat(event))
        else:
            line.checks += 1
            out.append(Check(event, line.epoch))

    def _deliver(self, line: Line, event: Event, out: list[Decision]) -> None:
        line.mark = event.seq
        line.mark_id = event.id
        if event.seq > line.top:
            line.top = event.seq
        self._changed[line.conversation] = line
        if line.gap is not None and event.seq < line.gap.stop:
            line.gap.rows += 1
        if line.known_ids and event.id in line.known_ids:
            out.append(Repeat(event))
        else:
            out.append(Deliver(event if line.epoch == FIRST_EPOCH else self._placed(line, event, late=False)))

    def _placed(self, line: Line, event: Event, *, late: bool) -> Event:
        return msgspec.structs.replace(event, epoch=line.epoch, late=late)

    def _release(self, line: Line, out: list[Decision]) -> None:
        while not line.checks and (event := line.held.pop(line.mark + 1, None)) is not None:
            self._held -= 1
            self._deliver(line, event, out)
        if not line.held:
            line.furthest = 0

    def _give_up_below(self, line: Line, proven: int, reason: str, out: list[Decision]) -> None:
        if line.checks:
            return  # what is in the answer is held: the numbering is in doubt
        stop = min(proven, line.top + 1)
        for seq in (*sorted(seq for seq in line.held if seq < stop), stop):
            start = line.mark + 1
            if seq > start:
                line.absent.add(start, seq)
                line.mark, line.mark_id = seq - 1, ""
                self._changed[line.conversation] = line
                out.append(Absent(line.conversation, line.epoch, start, seq, reason))
                if line.gap is not None:
                    line.gap.absent += min(seq, line.gap.stop) - min(start, line.gap.stop)
                    line.gap.reason = reason
            self._release(line, out)

    def _rearm(self, line: Line, now: float, out: list[Decision]) -> None:
        """After the mark moved: close the gap that it passed, and see whether a hole is left to wait for."""
        gap = line.gap
        if gap is not None and line.mark + 1 >= gap.stop:
            line.gap = None
            out.append(GapClosed(line.conversation, line.epoch, gap))
        if line.top <= line.mark:
            line.due = None
            self._overflowing.discard(line.conversation)
        elif not line.asking and (line.due is None or line.hole != line.mark + 1):
            self._alarm(line, now + self._limits.grace_s)

    def _ask(self, line: Line, now: float, out: list[Decision]) -> None:
        start, stop = line.mark + 1, self._hole_end(line)
        if line.gap is None:
            line.gap = GapProgress(start, stop)
            out.append(GapOpened(line.conversation, line.epoch, line.gap))
        line.gap.attempts += 1
        line.asking, line.asked_top = True, line.top
        out.append(Refetch(line.conversation, line.epoch, start, stop))

    def _hole_end(self, line: Line) -> int:
        """End of the first hole, or of the last one that the same history page can close as well."""
        start = line.mark + 1
        first = min(line.held, default=line.top + 1)
        within = range(min(line.top, start + PAGE - 1), first, -1)
        last = next((seq + 1 for seq in within if seq not in line.held), first)
        return max(first, last)

    def _alarm(self, line: Line, at: float) -> None:
        line.due, line.hole = at, line.mark + 1
        heapq.heappush(self._alarms, (at, line.conversation))
