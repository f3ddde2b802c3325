"""Nothing is acknowledged, rung or forgotten before the disk has it."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import pytest

from agentd import metrics
from agentd.core.events import Position, Source, Typing
from agentd.core.sequencer import Check, Refetch
from agentd.errors import JournalError
from agentd.journal.storage import Appended, Change, Conversation, CursorMoved, GapNoted
from agentd.wire.agentchat.types import decode_server_frame
from tests.intake.rig import Bench, frame


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    await made.intake.load()
    made.journal.handed_in.clear()
    return made


async def test_an_ack_leaves_only_after_the_commit_that_holds_its_event(bench: Bench) -> None:
    bench.push(1, 2, 3)
    await asyncio.sleep(0)
    assert (bench.wire.acked, bench.records) == ([], [])
    await bench.journal.sync()
    assert bench.wire.acked == ["msg_1", "msg_2", "msg_3"]
    assert [record.event.seq for record in bench.records] == [1, 2, 3]


async def test_a_burst_is_one_commit_with_its_marks(bench: Bench) -> None:
    bench.push(1, 2, 3)
    ((changes, _),) = bench.journal.handed_in
    assert [type(change) for change in changes] == [Appended, Appended, Appended, Conversation]
    assert bench.changes(Conversation)[0].mark == 3


async def test_the_ack_of_a_repeat_waits_for_the_commit_of_its_first_copy(bench: Bench) -> None:
    bench.push(1)
    bench.push(1)
    await asyncio.sleep(0)
    assert bench.wire.acked == []
    await bench.journal.sync()
    assert bench.wire.acked == ["msg_1", "msg_1"]
    assert len(bench.changes(Appended)) == 1


async def test_a_repeat_that_memory_cannot_vouch_for_is_looked_up_only_after_the_commit(bench: Bench) -> None:
    bench.push(1, 2, 3)
    bench.push(1)
    await asyncio.sleep(0)
    assert bench.questions == []
    await bench.journal.sync()
    assert [type(question) for question in bench.questions] == [Check]
    assert bench.wire.acked == ["msg_1", "msg_2", "msg_3"]


async def test_what_is_held_behind_a_hole_is_neither_journaled_nor_acknowledged_but_its_top_is_kept(
    bench: Bench,
) -> None:
    bench.push(1)
    bench.push(3)
    await bench.journal.sync()
    assert bench.wire.acked == ["msg_1"]
    assert (bench.changes(Conversation)[-1].mark, bench.changes(Conversation)[-1].top) == (1, 3)
    await asyncio.sleep(0.05)
    assert bench.questions == [Refetch("conv_1", 1, 2, 3)]
    assert [gap.outcome for gap in bench.changes(GapNoted)] == [""]


async def test_a_closed_gap_is_noted_in_the_commit_that_closes_it(bench: Bench) -> None:
    bench.push(1)
    bench.push(3)
    await asyncio.sleep(0.05)
    (ask,) = bench.questions
    missing = bench.intake.platform.decode(frame(2))
    row = msgspec.structs.replace(missing, source=Source.REFETCH)  # type: ignore[type-var]  # a message, as made above
    bench.intake.apply(bench.intake.sequencer.refetched(ask, [row], 3, asyncio.get_running_loop().time()))
    changes, _ = bench.journal.handed_in[-1]
    assert [type(change) for change in changes] == [Appended, Appended, GapNoted, Conversation]
    assert bench.intake.gaps_open == 0
    await bench.journal.sync()
    assert bench.wire.acked == ["msg_1", "msg_2", "msg_3"], "a refetched message is still stored for us: settle it"


async def test_drained_rows_are_left_to_the_cumulative_cursor_instead_of_an_ack_each(bench: Bench) -> None:
    row = bench.intake.platform.revive(
        bytes(decode_server_frame(frame(1)).payload),
        epoch=1,
        late=False,
        source=Source.DRAIN,
    )
    bench.intake.drain_cursor.row((row.conversation, row.seq), "del_1")
    bench.intake.apply(bench.intake.sequencer.offer(row, 0.0))
    assert bench.intake.drain_cursor.take() is None, "not on disk yet"
    await bench.journal.sync()
    assert (bench.wire.acked, bench.intake.drain_cursor.take()) == ([], "del_1")


async def test_a_new_life_reads_the_marks_behind_the_commits_of_the_one_before(bench: Bench) -> None:
    bench.push(1)
    barrier = asyncio.Event()
    commit = bench.journal.commit

    def held(*changes: Change) -> asyncio.Future[None]:
        barrier.set()
        assert not changes
        return commit(CursorMoved("plugin", 1, 1))

    bench.journal.commit = held  # type: ignore[method-assign]  # the barrier's future, which the test completes
    loading = asyncio.create_task(bench.intake.load())
    await barrier.wait()
    await asyncio.sleep(0.01)
    assert not loading.done()
    await bench.journal.sync()
    await loading


async def test_own_words_are_journaled_and_never_acknowledged(bench: Bench) -> None:
    bench.push(1)
    bench.push(2, sender="me")
    await bench.journal.sync()
    assert bench.wire.acked == ["msg_1"]
    assert [record.event.own for record in bench.records] == [False, True]


async def test_a_failed_commit_is_fatal_and_acknowledges_nothing(bench: Bench) -> None:
    bench.push(1)
    bench.journal.handed_in[0][1].set_exception(JournalError("the disk is gone"))
    await asyncio.sleep(0)
    assert (bench.wire.acked, bench.records) == ([], [])
    assert [str(failure) for failure in bench.failures] == ["the disk is gone"]


async def test_without_the_capability_no_ack_is_sent(bench: Bench) -> None:
    bench.wire.acks = False
    bench.push(1)
    await bench.journal.sync()
    assert bench.wire.acked == []
    assert len(bench.records) == 1


async def test_while_shedding_messages_are_left_with_the_server_and_signals_still_pass(bench: Bench) -> None:
    bench.intake.shedding = True
    bench.push(1)
    typing = {"type": "typing.start", "payload": {"conversation_id": "conv_1", "sender": "bob"}}
    bench.intake.frame(msgspec.json.encode(typing))
    assert bench.journal.handed_in == []
    assert bench.intake.has_shed
    assert [type(signal) for signal in bench.signals] == [Typing]


async def test_a_server_that_keeps_nothing_is_not_shed(bench: Bench) -> None:
    bench.wire.acks = False
    bench.intake.shedding = True
    bench.push(1)
    assert len(bench.changes(Appended)) == 1


async def test_a_malformed_frame_is_counted_and_logged_without_its_content(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.intake.frame(b'{"type":"message.new","payload":{"id":"msg_1","seq":"top secret"}}')
    bench.push(1)
    assert bench.intake.counters.malformed == 1
    assert "secret" not in caplog.text
    assert len(bench.changes(Appended)) == 1, "the connection goes on"


async def test_frames_of_a_kind_that_is_not_known_are_counted_and_told_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = metrics.UNKNOWN_FRAMES.value(bench.intake.identity)
    for kind in ("poll.opened", "poll.closed"):
        bench.intake.frame(b'{"type":"%s","payload":{}}' % kind.encode())
    assert bench.intake.counters.unknown_frames == 2
    assert metrics.UNKNOWN_FRAMES.value(bench.intake.identity) - before == 2
    (told,) = [each.getMessage() for each in caplog.records]
    assert told.endswith(": poll.opened")


async def test_acks_that_the_socket_does_not_take_are_not_counted_as_sent(bench: Bench) -> None:
    bench.wire.writable = False
    bench.push(1)
    await bench.journal.sync()
    assert bench.intake.counters.acked == 0
    assert len(bench.records) == 1


async def test_a_conversation_met_in_its_middle_asks_for_a_drain(bench: Bench) -> None:
    bench.push(7)
    await asyncio.sleep(0.05)
    assert bench.surveys == 1
    assert bench.changes(Appended) == []


async def test_a_restart_takes_up_a_hole_that_was_known_before(bench: Bench) -> None:
    bench.journal.stored = [Conversation(1, "mine", "conv_1", 1, 1, 4, "msg_4", 9, 4, ((0, 1),))]
    await bench.intake.load()
    bench.intake.attach(bench.wire)
    await asyncio.sleep(0.02)
    assert bench.questions == [Refetch("conv_1", 1, 5, 10)]


async def test_a_replay_that_a_restart_cut_short_hands_on_nothing_that_an_earlier_numbering_had(bench: Bench) -> None:
    bench.push(1, 2, 3)
    await bench.journal.sync()
    now = asyncio.get_running_loop().time()
    known = frozenset(await bench.journal.ids_of(1))
    bench.intake.apply(bench.intake.sequencer.reset("conv_1", now, top=4, adopt=False, known_ids=known))
    bench.push(1)
    await bench.journal.sync()
    again = Bench()
    again.journal.stored = [bench.changes(Conversation)[-1]]
    again.journal.recorded = dict(bench.journal.recorded)
    await again.intake.load()
    again.push(2, 3, 4)
    await again.journal.sync()
    assert [(record.event.epoch, record.event.seq) for record in again.records] == [(2, 4)]
    assert sorted(again.wire.acked) == ["msg_2", "msg_3", "msg_4"]


async def test_a_hole_in_a_conversation_with_a_send_under_way_waits_for_its_answer(bench: Bench) -> None:
    bench.push(1)
    bench.intake.sending("@bob")
    bench.push(3)
    await asyncio.sleep(0.05)
    assert bench.questions == []
    own = bench.intake.platform.decode(frame(2, sender="me"))
    bench.intake.own(own, "@bob")  # type: ignore[arg-type]  # a message, as made above
    bench.intake.sending_over("@bob")
    await bench.journal.sync()
    assert [record.event.seq for record in bench.records] == [1, 2, 3]
    assert bench.questions == []


async def test_a_talk_that_goes_on_in_another_conversation_leaves_no_hole_of_the_first_waiting(bench: Bench) -> None:
    bench.push(1)
    bench.intake.sending("@bob")
    own = bench.intake.platform.decode(frame(1, sender="me", conversation="conv_2", msg_id="msg_own"))
    bench.intake.own(own, "@bob")  # type: ignore[arg-type]  # a message, as made above
    bench.intake.sending_over("@bob")
    bench.push(3)
    for later in range(1, 10):
        bench.intake.apply(bench.intake.sequencer.wake(asyncio.get_running_loop().time() + later))
    assert bench.questions == [Refetch("conv_1", 1, 2, 3)]


async def test_a_direct_conversation_is_known_by_its_handle_and_again_after_a_restart(bench: Bench) -> None:
    bench.push(1, 2, sender="bob", conversation="conv_1")
    bench.push(1, sender="carol", conversation="grp_1")
    assert (bench.intake.address("conv_1"), bench.intake.address("@bob")) == ("@bob", "@bob")
    assert bench.intake.address("@Bob") == "@bob", "the platform tells no cases of a handle apart"
    assert (bench.intake.address("grp_1"), bench.intake.address("@carol")) == ("grp_1", "@carol")
    told = {change.conversation: change for change in bench.changes(Conversation)}
    assert {name: change.address for name, change in told.items()} == {"conv_1": "@bob", "grp_1": ""}
    again = Bench()
    again.journal.stored = list(told.values())
    await again.intake.load()
    assert again.intake.address("conv_1") == "@bob"
    assert again.intake.position("@bob") == Position("conv_1", 1, 2)


async def test_where_a_conversation_stands_is_its_highest_seq_and_nothing_where_nobody_was_heard(bench: Bench) -> None:
    bench.push(1)
    bench.push(4)
    assert bench.intake.position("@bob") == bench.intake.position("conv_1") == Position("conv_1", 1, 4)
    assert bench.intake.position("@stranger") is None
    assert bench.intake.position("grp_new") is None
