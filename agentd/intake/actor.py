"""The path of every event of one identity: frame -> sequencer -> journal -> ack.

Frames come in bursts (what one read of the socket held); a burst becomes one commit. After the commit, never before,
its messages are acknowledged and its records rung on to the dispatcher.

Always true: an acknowledged event is on disk. Records reach the dispatcher in the order of their positions. Nothing
here awaits, so a burst is taken whole before anything else happens.
Not here: the order itself (core/sequencer), asking the platform (questions.py, drain.py, audit.py), the connection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from agentd import config, metrics
from agentd.core.acks import DrainCursor
from agentd.core.events import (
    FIRST_EPOCH,
    Event,
    Gap,
    Message,
    Position,
    RateLimitWarning,
    Record,
    Signal,
    Source,
    StreamReset,
)
from agentd.core.sequencer import (
    Absent,
    Check,
    Decision,
    Deliver,
    GapClosed,
    GapOpened,
    GapProgress,
    Limits,
    Line,
    Refetch,
    Renumbered,
    Repeat,
    Sequencer,
    Survey,
)
from agentd.journal.storage import Appended, Change, Conversation, GapNoted, Journal
from agentd.wire.platform import Malformed, Platform, Unknown

log = logging.getLogger("agentd.intake")

Question = Refetch | Check | Renumbered

_MALFORMED_LOGGED = 10
"""After so many, a broken server fills the log with every thousandth only; the counter goes on."""


class AckLink(Protocol):
    """The part of a connection that acks travel on."""

    acks: bool

    def send_burst(self, frames: list[bytes]) -> bool:
        """Write these together; False if the connection is too far behind to take them."""
        ...


class Counters:
    """What one identity's intake has done since the start of the process."""

    def __init__(self) -> None:
        self.by_source = dict.fromkeys(Source, 0)
        self.repeats = 0
        self.malformed = 0
        self.unknown_frames = 0
        self.shed = 0
        self.acked = 0
        self.acks_declined = 0
        self.gaps_found = 0
        self.refetched = 0
        self.resets = 0
        self.late = 0


class _Burst:
    """What one commit will carry, and what is to be done after it."""

    __slots__ = ("changes", "checks", "records", "repeats")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.repeats: list[Event] = []
        self.checks: list[Check] = []
        self.changes: list[Change] = []

    def __bool__(self) -> bool:
        return bool(self.records or self.repeats or self.checks or self.changes)


class Intake:
    """One identity's way in. `load` first, then frames by `frame` and `burst`, anything else by `apply`.

    on_records: called after each commit with what it put on disk. on_question: a decision that needs an answer from
    the platform or the disk. on_survey: a drain is wanted. on_fatal: the journal failed for good.
    """

    def __init__(
        self,
        identity: str,
        platform: Platform,
        journal: Journal,
        settings: config.Intake,
        *,
        on_records: Callable[[Sequence[Record]], None],
        on_signal: Callable[[Signal], None],
        on_question: Callable[[Question], None],
        on_survey: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.identity = identity
        self.platform = platform
        self.journal = journal
        self.settings = settings
        self.counters = Counters()
        self.last_inbound: float | None = None
        self.drain_cursor = DrainCursor()
        self.drain_acked = asyncio.Event()
        self.absent = 0
        self.journaled = 0
        self.shedding = False
        self.has_shed = False
        self.pushed_until = ""
        self.watching = False
        self.unpushed: dict[tuple[str, int], Event | None] = {}
        self._on_records = on_records
        self._on_signal = on_signal
        self._on_question = on_question
        self._on_survey = on_survey
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._link: AckLink | None = None
        self._burst = _Burst()
        self._committing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._numbers: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._gaps: dict[str, tuple[int, float]] = {}
        self._addresses: dict[str, str] = {}
        self._addressed: dict[str, str] = {}
        self._sending: dict[str, str] = {}
        self.sequencer = Sequencer(
            Limits(
                grace_s=settings.gap_grace_s,
                held_max=settings.held_max,
                held_total_max=settings.held_total_max,
                backfill=settings.backfill,
                retry_max_s=settings.refetch_retry_max_s,
            )
        )

    # -- life -------------------------------------------------------------------------------------------------------

    async def load(self) -> None:
        """Take up every conversation where the disk says it stands."""
        await self.journal.commit()  # what an earlier life of this identity handed in is on disk before we look
        now = self._loop.time()
        lines: dict[str, Line] = {}
        for row in await self.journal.conversations(self.identity):
            line = lines[row.conversation] = Line(row.conversation)
            line.epoch, line.anchor, line.mark, line.mark_id = row.epoch, row.anchor, row.mark, row.mark_id
            line.top = row.top
            for start, stop in row.absent:
                line.absent.add(start, stop)
            if row.epoch > FIRST_EPOCH:
                line.known_ids = frozenset(await self.journal.ids_of(row.number))
            self._numbers[row.conversation] = row.number
            self._positions[row.conversation] = row.position
            self._learn(row.conversation, row.address or row.conversation)
        for conversation, noted in await self.journal.gaps(self.identity, open_only=True, limit=1_000_000):
            self._restore_gap(lines[conversation], noted)
        for line in lines.values():
            self.sequencer.restore(line, now)
        totals = await self.journal.totals(self.identity)
        self.journaled, self.absent = totals.journaled, totals.absent

    def attach(self, link: AckLink) -> None:
        """Acks go out on this connection from now on."""
        self._link = link
        self._arm()

    def detach(self) -> None:
        """The connection is gone; acks that were due are made up for by the server's redelivery."""
        self._link = None

    def close(self) -> None:
        """Take nothing more."""
        self.detach()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def settled(self) -> None:
        """Wait until everything taken so far is on disk."""
        self.flush()
        if self._committing is not None:
            await asyncio.wait([self._committing])

    # -- frames -----------------------------------------------------------------------------------------------------

    def frame(self, data: bytes | str) -> None:
        """Take one frame. `flush` once after the last of a burst."""
        frame = self.platform.decode(data)
        now = self.last_inbound = self._loop.time()
        if isinstance(frame, Event):
            if frame.created_at > self.pushed_until:
                self.pushed_until = frame.created_at
            if self.unpushed:
                self.unpushed.pop((frame.conversation, frame.seq), None)
            if self.leaves_messages:
                self.counters.shed += 1
                metrics.SHED.inc(self.identity)
                self.has_shed = True
                return
            self._take(self.sequencer.offer(frame, now))
        elif isinstance(frame, Signal):
            self._on_signal(frame)
            if isinstance(frame, RateLimitWarning):
                log.warning("the platform asks to slow down", extra={"identity": self.identity})
        elif isinstance(frame, Malformed):
            self.malformed(frame, "frame")
        else:
            self._passed_over(frame.type if isinstance(frame, Unknown) else type(frame).__name__)

    def _passed_over(self, kind: str) -> None:
        """Count what a newer platform may have to say, and say so once: each kind would let a server fill the log."""
        self.counters.unknown_frames += 1
        metrics.UNKNOWN_FRAMES.inc(self.identity)
        if self.counters.unknown_frames == 1:
            told = "passed over a frame of a kind that this version does not know, as all such from now on: %.80s"
            log.info(told, kind, extra={"identity": self.identity})

    @property
    def leaves_messages(self) -> bool:
        """New messages stay with the server, which keeps them for a drain."""
        return self.shedding and self._link is not None and self._link.acks

    def malformed(self, what: Malformed, where: str) -> None:
        """Count and report what could not be read, by its shape."""
        self.counters.malformed += 1
        metrics.MALFORMED.inc(self.identity)
        if self.counters.malformed <= _MALFORMED_LOGGED or not self.counters.malformed % 1_000:
            log.warning(
                "malformed %s (number %d): %s",
                where,
                self.counters.malformed,
                what.what,
                extra={"identity": self.identity},
            )

    def own(self, event: Event, target: str) -> None:
        """A send of ours to `target` was accepted at this place."""
        self._learn(event.conversation, target)
        self.apply(self.sequencer.offer(event, self._loop.time()))

    def sending(self, target: str) -> None:
        """A send to this target is under way; holes in its conversation may be its seq."""
        conversation = self._sending[target] = self._conversation_of(target)
        self.sequencer.send_began(conversation)

    def sending_over(self, target: str) -> None:
        """Its answer was handed in by `own`, or will never come."""
        # The conversation that began to wait: its answer may have told that the target is spoken to in another by now.
        self.sequencer.send_ended(self._sending.pop(target), self._loop.time())
        self._arm()

    def address(self, target: str) -> str:
        """Where sends to this target go: the same for a conversation's id and for the handle of who is in it."""
        return self._addresses.get(target) or self.platform.address(target)

    def position(self, target: str) -> Position | None:
        """Where the target's conversation stands now; None where nobody has been heard there."""
        line = self.sequencer.lines.get(self._conversation_of(target))
        return None if line is None or line.anchor is None else Position(line.conversation, line.epoch, line.top)

    def apply(self, decisions: Iterable[Decision]) -> None:
        """Carry out decisions that did not come from a frame, and flush."""
        self._take(decisions)
        self.flush()

    def flush(self) -> None:
        """Hand what was taken since the last flush to the journal as one commit."""
        burst, changes = self._burst, self._marks()
        if burst or changes:
            self._burst = _Burst()
            changes[:0] = [*map(Appended, burst.records), *burst.changes]
            if changes:
                self._committing = self.journal.commit(*changes)
            if self._committing is None:
                self._committed(burst)
            else:
                self._committing.add_done_callback(partial(self._on_disk, burst))
        self._arm()

    # -- decisions --------------------------------------------------------------------------------------------------

    def _take(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Deliver):
                self._deliver(decision.event)
            elif isinstance(decision, Repeat):
                self.counters.repeats += 1
                metrics.DUPLICATES.inc(self.identity)
                self._burst.repeats.append(decision.event)
            elif isinstance(decision, Check):
                self._burst.checks.append(decision)
            elif isinstance(decision, Refetch | Renumbered):
                self._on_question(decision)
            elif isinstance(decision, Survey):
                self._on_survey()
            elif isinstance(decision, Absent):
                self.absent += decision.stop - decision.start
                log.warning(
                    "seqs %d to %d never came: %s",
                    decision.start,
                    decision.stop - 1,
                    decision.reason,
                    extra={"identity": self.identity, "conversation": decision.conversation},
                )
            elif isinstance(decision, GapOpened):
                self._gap_opened(decision)
            else:
                self._gap_closed(decision)

    def _deliver(self, event: Event) -> None:
        conversation = event.conversation
        number = self._numbers.get(conversation)
        if number is None:
            number = self._numbers[conversation] = self.journal.next_conversation()
        position = self._positions[conversation] = self.journal.next_position()
        self._burst.records.append(Record(position, number, event, time.time()))
        counters = self.counters
        counters.by_source[event.source] += 1
        metrics.EVENTS.inc(self.identity, event.source)
        if event.source is Source.REFETCH:
            counters.refetched += 1
            metrics.REFETCHED_ROWS.inc(self.identity)
        elif self.watching and event.source is Source.DRAIN:
            self.unpushed[(conversation, event.seq)] = event
        if event.late:
            counters.late += 1
            self.absent = max(0, self.absent - 1) if event.seq >= self._anchor_of(conversation) else self.absent
        if isinstance(event, Message) and event.direct and not event.own:
            self._learn(conversation, event.answer_to or conversation)

    def _marks(self) -> list[Change]:
        changes: list[Change] = []
        for line in self.sequencer.changed():
            if line.anchor is None:
                continue
            conversation = line.conversation
            number = self._numbers.get(conversation)
            if number is None:
                number = self._numbers[conversation] = self.journal.next_conversation()
            changes.append(
                Conversation(
                    number,
                    self.identity,
                    conversation,
                    line.epoch,
                    line.anchor,
                    line.mark,
                    line.mark_id,
                    line.top,
                    self._positions.get(conversation, 0),
                    line.absent.as_tuple(),
                    self._addresses.get(conversation, ""),
                )
            )
        return changes

    def _on_disk(self, burst: _Burst, commit: asyncio.Future[None]) -> None:
        if commit.cancelled():
            return
        if (failure := commit.exception()) is not None:
            self._on_fatal(failure)
        else:
            self._committed(burst)

    def _committed(self, burst: _Burst) -> None:
        """The disk has it: acknowledge, ring, and ask the disk about what could not be told from memory."""
        self.journaled += len(burst.records)
        settled = [*(record.event for record in burst.records), *burst.repeats]
        if self._link is not None and self._link.acks:
            ack = self.platform.ack
            frames = [ack(event) for event in settled if event.source is not Source.DRAIN and not event.own]
            if frames and self._link.send_burst(frames):
                self.counters.acked += len(frames)
            else:
                self.counters.acks_declined += len(frames)
        if self.drain_cursor:
            for event in settled:
                self.drain_cursor.settle((event.conversation, event.seq))
            self.drain_acked.set()
        if burst.records:
            self._on_records(burst.records)
        for check in burst.checks:
            self._on_question(check)

    # -- gaps -------------------------------------------------------------------------------------------------------

    @property
    def gaps_open(self) -> int:
        """Gaps that are being asked for."""
        return len(self._gaps)

    def number_of(self, conversation: str) -> int | None:
        """The journal's number, or None for a conversation that has nothing on disk."""
        return self._numbers.get(conversation)

    async def recorded(self, event: Event, epoch: int) -> str | None:
        """The id on disk at this event's seq of an epoch, its own if it is there under another seq, else None."""
        if (number := self._numbers.get(event.conversation)) is None:
            return None
        (there,) = await self.journal.ids_at([(number, epoch, event.seq)])
        if there is None and event.id in await self.journal.ids_of(number):
            return event.id
        return there

    def survey(self) -> None:
        """Let everything that the server still holds be offered again."""
        self._on_survey()

    def reset(self, decisions: Iterable[Decision], reset: StreamReset) -> None:
        """A conversation has started over; tell the plugins behind everything that came before."""
        self.counters.resets += 1
        metrics.RESETS.inc(self.identity)
        self.apply(decisions)
        self._on_signal(reset)

    def _gap_opened(self, opened: GapOpened) -> None:
        self.counters.gaps_found += 1
        metrics.GAPS_FOUND.inc(self.identity)
        number, found_at = self._gaps[opened.conversation] = (self.journal.next_gap(), time.time())
        self._burst.changes.append(self._noted(opened.conversation, opened.epoch, opened.gap, number, found_at))

    def _gap_closed(self, closed: GapClosed) -> None:
        gap = closed.gap
        metrics.GAPS.inc(self.identity, gap.outcome)
        number, found_at = self._gaps.pop(closed.conversation)
        noted = self._noted(closed.conversation, closed.epoch, gap, number, found_at, time.time(), gap.outcome)
        self._burst.changes.append(noted)
        self._on_signal(
            Gap(
                identity=self.identity,
                conversation=closed.conversation,
                epoch=closed.epoch,
                start=gap.start,
                stop=gap.stop,
                absent=gap.absent,
                reason=gap.reason,
            )
        )

    def _noted(
        self,
        conversation: str,
        epoch: int,
        gap: GapProgress,
        number: int,
        found_at: float,
        closed_at: float | None = None,
        outcome: str = "",
    ) -> GapNoted:
        where = self._numbers.get(conversation)
        if where is None:
            where = self._numbers[conversation] = self.journal.next_conversation()
        return GapNoted(
            number,
            where,
            epoch,
            gap.start,
            gap.stop,
            found_at,
            gap.attempts,
            gap.rows,
            closed_at,
            outcome,
            gap.absent,
            gap.reason,
        )

    def _restore_gap(self, line: Line, noted: GapNoted) -> None:
        line.gap = GapProgress(noted.start, noted.stop, noted.attempts, noted.rows, noted.absent, noted.reason)
        self._gaps[line.conversation] = (noted.number, noted.found_at)

    # -- time -------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        due = self.sequencer.deadline()
        if self._timer is not None:
            if due == self._timer_due:  # uvloop's handle has no `when` once its time has come
                return
            self._timer.cancel()
            self._timer = None
        if due is not None and self._link is not None:
            self._timer, self._timer_due = self._loop.call_at(due, self._on_time), due

    def _on_time(self) -> None:
        self._timer = None
        self.apply(self.sequencer.wake(self._loop.time()))

    def _anchor_of(self, conversation: str) -> int:
        return self.sequencer.lines[conversation].anchor or 0

    def _learn(self, conversation: str, address: str) -> None:
        """What is said to this address is said in this conversation."""
        address = self.platform.address(address)
        if address != conversation:
            self._addresses[conversation] = address
            self._addressed[address] = conversation

    def _conversation_of(self, target: str) -> str:
        target = self.platform.address(target)
        return self._addressed.get(target, "" if target.startswith("@") else target)
