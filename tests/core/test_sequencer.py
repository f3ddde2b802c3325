"""The sequencer by script, and by a state machine that loses, repeats, reorders and restarts at will."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentd.core.events import FIRST_EPOCH, FIRST_SEQ, Event, Source
from agentd.core.reconnect import ASKED_DELAY_MAX_S
from agentd.core.sequencer import (
    Absent,
    Check,
    Decision,
    Deliver,
    GapClosed,
    GapOpened,
    Limits,
    Line,
    Refetch,
    Renumbered,
    Repeat,
    Sequencer,
    Survey,
)

GRACE = 1.0
LIMITS = Limits(grace_s=GRACE, held_max=8, held_total_max=12, retry_max_s=4.0)


def event(
    seq: int, *, source: Source = Source.LIVE, own: bool = False, msg_id: str = "", conversation: str = "c"
) -> Event:
    return Event(
        identity="me",
        conversation=conversation,
        seq=seq,
        id=msg_id or f"msg_{seq}",
        sender="me" if own else "bob",
        own=own,
        source=source,
    )


def delivered(decisions: list[Decision]) -> list[int]:
    return [decision.event.seq for decision in decisions if isinstance(decision, Deliver)]


def of(kind: type[Decision], decisions: list[Decision]) -> list[Decision]:
    return [decision for decision in decisions if isinstance(decision, kind)]


def at_mark(mark: int, *, limits: Limits = LIMITS) -> Sequencer:
    """A sequencer that knows conversation "c" up to `mark`."""
    sequencer = Sequencer(limits)
    line = Line("c")
    line.anchor, line.mark, line.top, line.mark_id = 1, mark, mark, f"msg_{mark}"
    sequencer.restore(line, 0.0)
    return sequencer


def anchored_at(seq: int, *, limits: Limits = LIMITS) -> Sequencer:
    """A sequencer that met conversation "c" at `seq`, with nothing below on offer."""
    sequencer = Sequencer(limits)
    sequencer.offer(event(seq), 0.0)
    sequencer.wake(GRACE)
    sequencer.drain_began()
    sequencer.drain_ended(GRACE, complete=True)
    return sequencer


def as_on_disk(line: Line) -> Line:
    """A copy with what a restart finds, and nothing else."""
    stored = Line(line.conversation)
    for name in ("anchor", "mark", "mark_id", "top", "epoch"):
        setattr(stored, name, getattr(line, name))
    for start, stop in line.absent:
        stored.absent.add(start, stop)
    return stored


def test_events_in_order_are_delivered_as_they_come() -> None:
    sequencer = at_mark(0)
    assert [delivered(sequencer.offer(event(seq), 0.0)) for seq in (1, 2, 3)] == [[1], [2], [3]]
    assert sequencer.lines["c"].mark == 3


def test_an_early_event_waits_and_is_set_free_by_the_missing_one() -> None:
    sequencer = at_mark(1)
    assert sequencer.offer(event(3), 0.0) == []
    assert delivered(sequencer.offer(event(2), 0.5)) == [2, 3]
    assert sequencer.deadline() is None, "a hole that closed by itself is not asked for"


def test_a_loss_after_an_in_order_message_is_noticed_though_the_buffer_was_empty() -> None:
    sequencer = at_mark(2)
    assert sequencer.offer(event(4), 0.0) == []
    assert sequencer.deadline() == GRACE
    assert sequencer.wake(GRACE)[-1] == Refetch("c", 1, 3, 4)


def test_a_hole_is_asked_for_after_the_grace_and_once_at_a_time() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    assert sequencer.wake(GRACE / 2) == []
    opened, ask = sequencer.wake(GRACE)
    assert isinstance(opened, GapOpened)
    assert ask == Refetch("c", 1, 2, 3)
    sequencer.offer(event(5), 2.0)
    assert sequencer.wake(10.0) == []


def test_an_answer_closes_the_gap_and_sets_free_what_waited() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(4), 0.0)
    ask = sequencer.wake(GRACE)[-1]
    assert isinstance(ask, Refetch)
    out = sequencer.refetched(ask, [event(2), event(3)], 4, 2.0)
    assert delivered(out) == [2, 3, 4]
    (closed,) = of(GapClosed, out)
    assert isinstance(closed, GapClosed)
    assert closed.gap.outcome == "filled"


def test_a_gap_that_fills_by_itself_while_it_is_asked_for_is_closed_though_the_request_fails() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    ask = sequencer.wake(GRACE)[-1]
    assert isinstance(ask, Refetch)
    (closed,) = of(GapClosed, sequencer.offer(event(2), 1.5))
    assert isinstance(closed, GapClosed)
    assert (closed.gap.outcome, closed.gap.rows) == ("filled", 1)
    sequencer.refetch_failed(ask, 2.0)
    assert sequencer.wake(100.0) == []


def test_a_thousand_lost_seqs_come_page_by_page_without_waiting_between_pages() -> None:
    sequencer = at_mark(0)
    sequencer.offer(event(1001), 0.0)
    now, pages, got = GRACE, 0, list[int]()
    while (ask := next(iter(of(Refetch, sequencer.wake(now))), None)) is not None:
        assert isinstance(ask, Refetch)
        rows = [event(seq, source=Source.REFETCH) for seq in range(ask.start, min(ask.start + 200, ask.stop))]
        got += delivered(sequencer.refetched(ask, rows, rows[-1].seq + 1, now))
        pages += 1
    assert got == list(range(1, 1002))
    assert pages == 5


def test_what_the_history_lacks_is_absent_and_said_so() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(5), 0.0)
    ask = sequencer.wake(GRACE)[-1]
    assert isinstance(ask, Refetch)
    out = sequencer.refetched(ask, [event(3)], 4, 2.0)
    assert of(Absent, out) == [Absent("c", 1, 2, 3, "not in history")]
    assert delivered(out) == [3]
    (again,) = of(Refetch, sequencer.wake(2.0))
    assert isinstance(again, Refetch)
    out = sequencer.refetched(again, [], again.stop, 2.0)
    assert delivered(out) == [5]
    assert [seq for seq in range(1, 6) if seq in sequencer.lines["c"].absent] == [2, 4]


def test_a_failed_request_is_not_absent_and_is_asked_again_later_and_later() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    now, waits = GRACE, list[float]()
    for _ in range(6):
        (ask,) = of(Refetch, sequencer.wake(now))
        assert isinstance(ask, Refetch)
        sequencer.refetch_failed(ask, now)
        due = sequencer.deadline()
        assert due is not None
        waits.append(due - now)
        now = due
    assert waits == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0]
    assert sequencer.lines["c"].mark == 1


def test_a_failure_that_names_a_time_is_not_asked_before_it() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    (ask,) = of(Refetch, sequencer.wake(GRACE))
    assert isinstance(ask, Refetch)
    sequencer.refetch_failed(ask, GRACE, retry_after_s=60.0)
    assert sequencer.deadline() == GRACE + 60.0


def test_no_answer_however_broken_keeps_a_hole_from_being_asked_for_again() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    ask = sequencer.wake(GRACE)[-1]
    assert isinstance(ask, Refetch)
    sequencer.refetch_failed(ask, GRACE, retry_after_s=999_999_999.0)
    assert sequencer.deadline() == GRACE + ASKED_DELAY_MAX_S


def test_without_any_grace_a_hole_is_asked_for_at_once_and_looked_at_again_a_moment_later() -> None:
    sequencer = at_mark(1, limits=Limits(grace_s=0.0))
    sequencer.send_began("c")
    sequencer.offer(event(3), 5.0)
    assert sequencer.wake(5.0) == []
    due = sequencer.deadline()
    assert due is not None
    assert due > 5.0
    sequencer.send_ended("c", 6.0)
    ask = sequencer.wake(6.0)[-1]
    assert isinstance(ask, Refetch)
    sequencer.refetch_failed(ask, 6.0)
    due = sequencer.deadline()
    assert due is not None
    assert due > 6.0


def test_every_second_seq_being_ours_asks_for_nothing() -> None:
    sequencer = at_mark(0)
    for seq in range(1, 20, 2):
        assert delivered(sequencer.offer(event(seq), float(seq))) == [seq]
        sequencer.send_began("c")
        assert delivered(sequencer.offer(event(seq + 1, own=True, source=Source.OWN), seq + 0.5)) == [seq + 1]
        sequencer.send_ended("c", seq + 0.5)
    assert sequencer.deadline() is None


def test_a_hole_waits_for_the_answer_of_a_send_under_way_and_not_for_the_clock() -> None:
    sequencer = at_mark(1)
    sequencer.send_began("c")
    sequencer.offer(event(3), 0.0)
    for now in (GRACE, 5 * GRACE, 20 * GRACE):
        assert sequencer.wake(now) == []
    assert delivered(sequencer.offer(event(2, own=True, source=Source.OWN), 21.0)) == [2, 3]
    sequencer.send_ended("c", 21.0)
    assert sequencer.deadline() is None


def test_a_hole_is_asked_for_when_the_send_under_way_never_answers() -> None:
    sequencer = at_mark(1)
    sequencer.send_began("c")
    sequencer.offer(event(3), 0.0)
    sequencer.wake(GRACE)
    sequencer.send_ended("c", 7.0)
    assert of(Refetch, sequencer.wake(7.0 + GRACE)) == [Refetch("c", 1, 2, 3)]


def test_the_event_at_the_mark_is_a_repeat_and_an_older_one_is_checked_on_disk() -> None:
    sequencer = at_mark(5)
    assert sequencer.offer(event(5), 0.0) == [Repeat(event(5))]
    assert sequencer.offer(event(3), 0.0) == [Check(event(3), 1)]
    assert sequencer.checked(event(3), 1, "msg_3", 0.0) == [Repeat(event(3))]


def test_another_id_at_a_known_seq_means_a_new_numbering() -> None:
    sequencer = at_mark(5)
    other = event(2, msg_id="msg_other")
    assert sequencer.offer(other, 0.0) == [Check(other, 1)]
    assert sequencer.checked(other, 1, "msg_2", 0.0) == [Renumbered(other, 1)]
    assert sequencer.offer(event(6, msg_id="msg_another"), 0.0) == [], "it is of the new numbering, too"


def test_an_event_that_is_nowhere_on_disk_is_never_acknowledged_as_a_repeat() -> None:
    sequencer = at_mark(5)
    sequencer.reset("c", 0.0, top=1, adopt=False, known_ids=frozenset({"msg_1"}))
    (ask,) = of(Refetch, sequencer.wake(0.0))
    assert isinstance(ask, Refetch)
    assert of(Repeat, sequencer.refetched(ask, [event(1)], 2, 0.0)), "its record is one of the first epoch"
    sequencer.offer(event(2, msg_id="msg_new"), 0.0)
    other = event(1, msg_id="msg_other")
    assert sequencer.offer(other, 0.0) == [Check(other, 2)]
    assert sequencer.checked(other, 2, None, 0.0) == [Renumbered(other, 2)]


def test_what_follows_a_doubtful_event_waits_until_the_disk_has_answered() -> None:
    sequencer = at_mark(5)
    sequencer.offer(event(2), 0.0)
    assert sequencer.offer(event(6), 0.0) == []
    assert sequencer.checked(event(2), 1, "msg_2", 0.0) == [Repeat(event(2)), Deliver(event(6))]


def test_a_check_may_be_left_out_while_another_of_its_conversation_waits_and_never_the_last() -> None:
    sequencer = at_mark(5)
    checks = [check for seq in (2, 3) for check in of(Check, sequencer.offer(event(seq), 0.0))]
    assert [sequencer.forgo(check) for check in checks] == [True, False]
    assert sequencer.offer(event(6), 0.0) == []
    assert sequencer.checked(event(3), 1, "msg_3", 0.0) == [Repeat(event(3)), Deliver(event(6))]
    assert sequencer.offer(event(2), 0.0) == [Check(event(2), 1)], "it is offered again"


def test_a_check_of_a_numbering_that_has_ended_is_of_no_account() -> None:
    sequencer = at_mark(5)
    (check,) = sequencer.offer(event(2), 0.0)
    sequencer.reset("c", 0.0, top=0, adopt=True, known_ids=frozenset())
    assert sequencer.forgo(check)
    assert sequencer.lines["c"].checks == 0


def test_a_conversation_overflows_until_its_hole_is_closed() -> None:
    sequencer = at_mark(0)
    for seq in range(2, LIMITS.held_max + 4):
        sequencer.offer(event(seq), 0.0)
    assert sequencer.overflowing == 1
    (ask,) = of(Refetch, sequencer.wake(GRACE))
    missing = (1, LIMITS.held_max + 2, LIMITS.held_max + 3)
    sequencer.refetched(ask, [event(seq, source=Source.REFETCH) for seq in missing], LIMITS.held_max + 4, GRACE)
    assert (sequencer.overflowing, sequencer.held) == (0, 0)


def test_nothing_of_a_new_numbering_is_taken_for_the_old_one() -> None:
    sequencer = at_mark(5)
    news = [event(seq, msg_id=f"new_{seq}", source=Source.DRAIN) for seq in range(1, 9)]
    sequencer.drain_began()
    decisions = [decision for one in news for decision in sequencer.offer(one, 0.0)]
    assert of(Deliver, decisions) == []
    assert sequencer.checked(news[0], 1, "msg_1", 0.0) == [Renumbered(news[0], 1)]
    sequencer.reset("c", 0.0, top=8, adopt=False, known_ids=frozenset())
    (ask,) = of(Refetch, sequencer.wake(0.0))
    assert isinstance(ask, Refetch)
    assert delivered(sequencer.refetched(ask, news, 9, 0.0)) == list(range(1, 9))


def test_a_reset_replays_the_new_numbering_from_its_start_in_a_new_epoch() -> None:
    sequencer = at_mark(5)
    sequencer.reset("c", 0.0, top=2, adopt=False, known_ids=frozenset({"msg_1"}))
    (ask,) = of(Refetch, sequencer.wake(0.0))
    assert ask == Refetch("c", 2, 1, 3)
    assert isinstance(ask, Refetch)
    out = sequencer.refetched(ask, [event(1), event(2, msg_id="msg_new")], 3, 0.0)
    assert of(Repeat, out) == [Repeat(event(1))], "an event that was handled under its old seq is not handled again"
    (new,) = of(Deliver, out)
    assert isinstance(new, Deliver)
    assert (new.event.epoch, new.event.seq, new.event.late) == (2, 2, False)


def test_a_reset_that_adopts_the_top_asks_for_nothing_old() -> None:
    sequencer = at_mark(5)
    sequencer.reset("c", 0.0, top=2, adopt=True, known_ids=frozenset())
    assert sequencer.deadline() is None
    assert delivered(sequencer.offer(event(3, msg_id="msg_new"), 0.0)) == [3]


def test_an_answer_to_a_question_of_an_ended_epoch_is_dropped() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    (ask,) = of(Refetch, sequencer.wake(GRACE))
    assert isinstance(ask, Refetch)
    sequencer.reset("c", 2.0, top=0, adopt=False, known_ids=frozenset())
    assert sequencer.refetched(ask, [event(2)], 3, 3.0) == []
    assert sequencer.lines["c"].mark == 0


def test_a_conversation_met_in_its_middle_asks_for_a_drain_and_is_anchored_at_what_that_brings() -> None:
    sequencer = Sequencer(LIMITS)
    sequencer.offer(event(7), 0.0)
    assert sequencer.wake(GRACE) == [Survey("c")]
    sequencer.drain_began()
    sequencer.offer(event(6, source=Source.DRAIN), GRACE)
    assert delivered(sequencer.drain_ended(GRACE, complete=True)) == [6, 7]


def test_a_survey_that_never_comes_does_not_hold_a_conversation_for_ever() -> None:
    sequencer = Sequencer(LIMITS)
    sequencer.offer(event(7), 0.0)
    sequencer.wake(GRACE)
    assert delivered(sequencer.wake(GRACE + LIMITS.survey_s)) == [7]


def test_a_latecomer_below_the_anchor_is_delivered_and_marked_late() -> None:
    sequencer = anchored_at(7)
    (late,) = sequencer.offer(event(5), 2.0)
    assert isinstance(late, Deliver)
    assert (late.event.seq, late.event.late) == (5, True)
    assert of(Deliver, sequencer.offer(event(5), 3.0)) == [], "once"


def test_a_conversation_met_while_draining_is_anchored_at_its_lowest_seq_when_the_drain_ends() -> None:
    sequencer = Sequencer(LIMITS)
    sequencer.drain_began()
    assert sequencer.offer(event(9), 0.0) == [], "a live frame may overtake the drain"
    assert sequencer.offer(event(8, source=Source.DRAIN), 0.0) == []
    assert sequencer.page_ended(0.0) == []
    assert delivered(sequencer.drain_ended(0.0, complete=True)) == [8, 9]


def test_a_long_drain_does_not_hold_its_first_conversations_until_its_end() -> None:
    sequencer = Sequencer(LIMITS)
    sequencer.drain_began()
    sequencer.offer(event(8, source=Source.DRAIN), 0.0)
    assert sequencer.page_ended(0.0) == []
    sequencer.offer(event(7, source=Source.DRAIN), 0.0)
    assert delivered(sequencer.page_ended(0.0)) == [7, 8]


def test_the_first_seq_of_all_needs_no_waiting() -> None:
    sequencer = Sequencer(LIMITS)
    sequencer.drain_began()
    assert delivered(sequencer.offer(event(1), 0.0)) == [1]


def test_backfill_asks_for_what_came_before_the_first_offer() -> None:
    sequencer = anchored_at(9, limits=msgspec.structs.replace(LIMITS, backfill=3))
    assert of(Refetch, sequencer.wake(2 * GRACE)) == [Refetch("c", 1, 6, 9)]


def test_of_two_events_that_claim_one_place_neither_is_believed_and_the_history_decides() -> None:
    sequencer = at_mark(1)
    sequencer.offer(event(3), 0.0)
    sequencer.offer(event(3, msg_id="msg_other"), 0.0)
    ask = sequencer.wake(GRACE)[-1]
    assert ask == Refetch("c", 1, 2, 4)
    assert isinstance(ask, Refetch)
    out = sequencer.refetched(ask, [event(2), event(3, msg_id="msg_other")], 4, GRACE)
    assert [decision.event.id for decision in out if isinstance(decision, Deliver)] == ["msg_2", "msg_other"]


def test_the_servers_top_shows_a_lost_last_message() -> None:
    sequencer = at_mark(3)
    assert sequencer.stands_at("c", 3, 0.0) is False
    assert sequencer.stands_at("c", 4, 0.0) is True
    assert of(Refetch, sequencer.wake(GRACE)) == [Refetch("c", 1, 4, 5)]


def test_the_servers_top_is_no_anchor_where_something_lower_was_offered_that_could_not_be_held() -> None:
    sequencer = Sequencer(LIMITS)
    for each in range(LIMITS.held_total_max):
        sequencer.offer(event(5, conversation=f"other_{each}"), 0.0)
    sequencer.offer(event(5), 0.0)
    assert not sequencer.lines["c"].held
    assert not sequencer.stands_at("c", 9, 0.0)
    sequencer.drain_began()
    sequencer.drain_ended(0.0, complete=True)
    assert sequencer.lines["c"].anchor == 5


def test_a_top_below_the_first_seq_is_none() -> None:
    sequencer = Sequencer(LIMITS)
    assert not sequencer.stands_at("c", FIRST_SEQ - 1, 0.0)
    assert sequencer.wake(100.0) == []
    assert sequencer.lines == {}


def test_the_buffer_is_bounded_and_what_overflows_is_asked_for() -> None:
    sequencer = at_mark(0)
    for seq in range(2, 30):
        sequencer.offer(event(seq), 0.0)
    assert sequencer.held == LIMITS.held_max
    ask = next(iter(of(Refetch, sequencer.wake(GRACE))))
    assert isinstance(ask, Refetch)
    assert delivered(sequencer.refetched(ask, [event(1)], 2, 2.0)) == list(range(1, 10))
    (more,) = of(Refetch, sequencer.wake(2.0))
    assert isinstance(more, Refetch)
    assert (more.start, more.stop) == (10, 30)


def test_a_restart_with_a_known_top_asks_at_once() -> None:
    sequencer = Sequencer(LIMITS)
    line = Line("c")
    line.anchor, line.mark, line.top = 1, 4, 9
    sequencer.restore(line, 0.0)
    assert of(Refetch, sequencer.wake(0.0)) == [Refetch("c", 1, 5, 10)]


class AnyInterleaving(RuleBasedStateMachine):
    """A server, a lossy wire, a disk that survives restarts, and the sequencer between them.

    The server keeps every message until it is acked, and hides some of them from its history. Frames may be lost,
    repeated and reordered; the daemon may restart at any moment, with what it had committed and nothing else. In the
    end everything is let through, and then the books must agree.
    """

    @initialize(first=st.integers(1, 5))
    def begin(self, first: int) -> None:
        self.now = 0.0
        self.first = first
        self.next_seq = first
        self.visible: dict[int, Event] = {}
        self.hidden: set[int] = set()
        self.unacked: set[int] = set()
        self.wire: list[Event] = []
        self.asks: list[Refetch] = []
        self.checks: list[tuple[Event, int]] = []
        self.journal: list[Event] = []
        self.line: Line | None = None
        self.sequencer = Sequencer(LIMITS)

    # the disk: one transaction holds the events and the marks

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Deliver):
                self.journal.append(decision.event)
                self.unacked.discard(decision.event.seq)
            elif isinstance(decision, Repeat):
                assert any(one.seq == decision.event.seq for one in self.journal), "acked without being on disk"
                self.unacked.discard(decision.event.seq)
            elif isinstance(decision, Refetch):
                self.asks.append(decision)
            elif isinstance(decision, Check):
                self.checks.append((decision.event, self.sequencer.lines["c"].epoch))
            assert not isinstance(decision, Renumbered)
        for line in self.sequencer.changed():
            if line.anchor is not None:
                self.line = as_on_disk(line)

    # the server

    @rule(lost=st.booleans(), hide=st.integers(0, 9), own=st.integers(0, 3))
    def somebody_speaks(self, lost: bool, hide: int, own: int) -> None:
        seq = self.next_seq
        self.next_seq += 1
        message = event(seq, own=own == 0)
        if own == 0:
            self.visible[seq] = message
            return
        self.unacked.add(seq)
        if hide == 0:
            self.hidden.add(seq)
        else:
            self.visible[seq] = message
        if not lost:
            self.wire.append(message)

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), keep=st.booleans())
    def a_frame_arrives(self, data: st.DataObject, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.wire) - 1))
        message = self.wire[at] if keep else self.wire.pop(at)
        self.take(self.sequencer.offer(message, self.now))

    @rule(cut=st.booleans())
    def the_backlog_is_drained(self, cut: bool) -> None:
        self.sequencer.drain_began()
        rows = sorted(self.unacked)
        for seq in rows[: len(rows) // 2] if cut else rows:
            row = self.visible.get(seq) or event(seq)
            self.take(self.sequencer.offer(msgspec.structs.replace(row, source=Source.DRAIN), self.now))
        self.take(self.sequencer.page_ended(self.now))
        self.take(self.sequencer.drain_ended(self.now, complete=not cut))

    @rule(seconds=st.sampled_from([0.1, 0.6, 1.5, 9.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.sequencer.wake(self.now))

    @precondition(lambda self: self.asks)
    @rule(fails=st.booleans(), page=st.integers(1, 4))
    def the_history_answers(self, fails: bool, page: int) -> None:
        ask = self.asks.pop(0)
        if fails:
            self.sequencer.refetch_failed(ask, self.now)
            return
        rows = [self.visible[seq] for seq in sorted(self.visible) if seq >= ask.start][:page]
        self.take(self.sequencer.refetched(ask, rows, rows[-1].seq + 1 if rows else ask.stop, self.now))

    @precondition(lambda self: self.checks)
    @rule()
    def the_disk_answers(self) -> None:
        asked, epoch = self.checks.pop(0)
        recorded = next((one.id for one in self.journal if one.seq == asked.seq), None)
        self.take(self.sequencer.checked(asked, epoch, recorded, self.now))

    @rule()
    def the_daemon_is_killed_and_started(self) -> None:
        self.asks.clear()
        self.checks.clear()
        self.sequencer = Sequencer(LIMITS)
        if self.line is not None:
            self.sequencer.restore(as_on_disk(self.line), self.now)

    # what must hold at every moment

    @invariant()
    def nothing_is_delivered_twice_and_order_holds(self) -> None:
        in_order = [one.seq for one in self.journal if not one.late]
        assert in_order == sorted(set(in_order))
        every = [one.seq for one in self.journal]
        assert len(every) == len(set(every))

    @invariant()
    def the_buffer_is_bounded(self) -> None:
        assert self.sequencer.held <= LIMITS.held_total_max

    @invariant()
    def a_gap_is_open_for_as_long_as_something_of_it_is_missing(self) -> None:
        line = self.sequencer.lines.get("c")
        assert line is None or line.gap is None or line.mark + 1 < line.gap.stop

    def teardown(self) -> None:
        """Let everything through; then every seq must be accounted for."""
        if not hasattr(self, "sequencer"):
            return
        for _ in range(200):
            self.the_backlog_is_drained(cut=False)
            while self.asks or self.checks:
                if self.asks:
                    self.the_history_answers(fails=False, page=4)
                if self.checks:
                    self.the_disk_answers()
            if self.visible:
                self.sequencer.stands_at("c", max(self.visible), self.now)
            self.time_passes(9.0)
            if not self.asks and not self.unacked and not self.sequencer.held:
                break
        assert not self.unacked, "the server still holds what it gave"
        line = self.sequencer.lines.get("c")
        if line is None or line.anchor is None:
            return
        got = {one.seq for one in self.journal}
        for seq in range(line.anchor, line.mark + 1):
            assert (seq in got) != (seq in line.absent), f"seq {seq} is not accounted for once"
        assert all(seq in got for seq in range(self.first, self.next_seq) if seq in self.hidden), (
            "given, not in history"
        )
        assert all(seq in got for seq in self.visible if seq >= line.anchor)
        assert line.mark == line.top == max(self.visible.keys() | self.hidden)


AnyInterleaving.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyInterleaving = AnyInterleaving.TestCase


class AnyReset(RuleBasedStateMachine):
    """The same, with a server that now and then loses its history and numbers anew, and nothing else goes wrong.

    What was under way when it did so is gone. A reset is measured, and made a while later; meanwhile frames come in.
    """

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.ids = 0
        self.history: dict[int, Event] = {}
        self.unacked: dict[str, Event] = {}
        self.wire: list[Event] = []
        self.asks: list[Refetch] = []
        self.checks: list[Check] = []
        self.resets: list[Renumbered] = []
        self.measured: tuple[Renumbered, int] | None = None
        self.journal: list[Event] = []
        self.line: Line | None = None
        self.sequencer = Sequencer(LIMITS)

    def take(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Deliver():
                    self.journal.append(decision.event)
                    self.unacked.pop(decision.event.id, None)
                case Repeat():
                    assert any(one.id == decision.event.id for one in self.journal), "acked without being on disk"
                    self.unacked.pop(decision.event.id, None)
                case Refetch():
                    self.asks.append(decision)
                case Check():
                    self.checks.append(decision)
                case Renumbered():
                    self.resets.append(decision)
                case _:
                    pass
        for line in self.sequencer.changed():
            if line.anchor is not None:
                self.line = as_on_disk(line)

    @rule(lost=st.booleans())
    def somebody_speaks(self, lost: bool) -> None:
        self.ids += 1
        seq = len(self.history) + 1
        message = self.history[seq] = event(seq, msg_id=f"id_{self.ids}")
        self.unacked[message.id] = message
        if not lost:
            self.wire.append(message)

    @precondition(lambda self: self.history)
    @rule()
    def the_server_numbers_anew(self) -> None:
        self.history.clear()
        self.unacked.clear()
        self.wire.clear()
        self.asks.clear()

    @precondition(lambda self: self.history and not (self.checks or self.resets or self.measured))
    @rule(data=st.data())
    def the_server_numbers_some_of_it_anew(self, data: st.DataObject) -> None:
        kept = data.draw(st.lists(st.sampled_from(sorted(self.history)), min_size=1, unique=True))
        messages = [self.history[seq] for seq in sorted(kept)]
        self.the_server_numbers_anew()
        for seq, message in enumerate(messages, 1):
            self.history[seq] = msgspec.structs.replace(message, seq=seq)
            self.unacked[message.id] = self.history[seq]

    @rule()
    def the_daemon_is_killed_and_started(self) -> None:
        self.asks.clear()
        self.checks.clear()
        self.resets.clear()
        self.measured = None
        self.sequencer = Sequencer(LIMITS)
        if self.line is not None:
            line = as_on_disk(self.line)
            if line.epoch > FIRST_EPOCH:
                line.known_ids = frozenset(one.id for one in self.journal)
            self.sequencer.restore(line, self.now)

    @precondition(lambda self: self.wire)
    @rule()
    def a_frame_arrives(self) -> None:
        self.take(self.sequencer.offer(self.wire.pop(0), self.now))

    @rule()
    def the_backlog_is_drained(self) -> None:
        self.sequencer.drain_began()
        for row in list(self.unacked.values()):
            self.take(self.sequencer.offer(msgspec.structs.replace(row, source=Source.DRAIN), self.now))
        self.take(self.sequencer.page_ended(self.now))
        self.take(self.sequencer.drain_ended(self.now, complete=True))

    @rule(seconds=st.sampled_from([0.6, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.sequencer.wake(self.now))

    @precondition(lambda self: self.asks)
    @rule()
    def the_history_answers(self) -> None:
        ask = self.asks.pop(0)
        rows = [row for seq, row in self.history.items() if seq >= max(1, ask.start - 1)][:4]
        ahead = rows and rows[-1].seq >= ask.start
        self.take(self.sequencer.refetched(ask, rows, rows[-1].seq + 1 if ahead else ask.stop, self.now))

    @precondition(lambda self: self.checks)
    @rule()
    def the_disk_answers(self) -> None:
        check = self.checks.pop(0)
        place = (check.epoch, check.event.seq)
        self.take(self.sequencer.checked(check.event, check.epoch, self.recorded(check.event, place), self.now))

    def recorded(self, shown: Event, place: tuple[int, int]) -> str | None:
        there = next((one.id for one in self.journal if (one.epoch, one.seq) == place), None)
        return there or next((one.id for one in self.journal if one.id == shown.id), None)

    @precondition(lambda self: self.resets and self.measured is None)
    @rule()
    def a_reset_is_measured(self) -> None:
        cause = self.resets.pop(0)
        if cause.epoch != self.sequencer.lines["c"].epoch:
            self.take(self.sequencer.offer(cause.event, self.now))
        else:
            self.measured = cause, max(self.history, default=0)

    @precondition(lambda self: self.measured is not None)
    @rule()
    def a_reset_is_made(self) -> None:
        assert self.measured is not None
        cause, top = self.measured
        self.measured = None
        known = frozenset(one.id for one in self.journal)
        top = max(top, cause.event.seq)
        self.take(self.sequencer.reset("c", self.now, top=top, adopt=False, known_ids=known))

    @invariant()
    def nothing_is_delivered_twice_and_order_holds_in_each_epoch(self) -> None:
        ids = [one.id for one in self.journal]
        assert len(ids) == len(set(ids))
        in_order = [(one.epoch, one.seq) for one in self.journal if not one.late]
        assert in_order == sorted(set(in_order))

    def teardown(self) -> None:
        """Let everything through, and what the server shows at the mark be compared; then all it has is on disk."""
        if not hasattr(self, "sequencer"):
            return
        for _ in range(60):
            while self.wire:
                self.a_frame_arrives()
            self.the_backlog_is_drained()
            while self.asks or self.checks or self.resets or self.measured:
                if self.asks:
                    self.the_history_answers()
                if self.checks:
                    self.the_disk_answers()
                if self.measured:
                    self.a_reset_is_made()
                if self.resets:
                    self.a_reset_is_measured()
            self.audit()
            self.time_passes(9.0)
        assert not self.unacked
        got = {one.id for one in self.journal}
        assert {one.id for one in self.history.values()} <= got

    def audit(self) -> None:
        line = self.sequencer.lines.get("c")
        if line is None or line.anchor is None or not self.history:
            return
        row = self.history.get(line.mark) or self.history[max(self.history)]
        if row.seq > line.mark:
            self.sequencer.stands_at("c", row.seq, self.now)
        elif row.seq not in line.absent and self.recorded(row, (line.epoch, row.seq)) != row.id:
            self.resets.append(self.sequencer.doubted(row))


AnyReset.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyReset = AnyReset.TestCase
