"""Nothing is acknowledged, rung or forgotten before the disk has it. The journal here commits when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agentd import config
from agentd.core.events import Record, Signal, Source, Typing
from agentd.core.sequencer import Check, Refetch
from agentd.errors import JournalError
from agentd.intake.actor import Intake
from agentd.journal.storage import Appended, Change, Conversation, GapNoted, Totals
from agentd.wire.agentchat import AgentChat


class SlowJournal:
    """The part of the journal that intake writes to; commits wait for `sync`."""

    def __init__(self) -> None:
        self.handed_in: list[tuple[tuple[Change, ...], asyncio.Future[None]]] = []
        self.stored: list[Conversation] = []
        self._next = 0

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.handed_in.append((changes, future))
        if not changes:
            future.set_result(None)
        return future

    async def sync(self, count: int | None = None) -> None:
        """The first so many commits reach the disk."""
        for _, future in self.handed_in[:count]:
            if not future.done():
                future.set_result(None)
        await asyncio.sleep(0)

    def next_position(self) -> int:
        self._next += 1
        return self._next

    next_conversation = next_gap = next_position

    async def conversations(self, identity: str) -> list[Conversation]:
        return self.stored

    async def gaps(self, identity: str, *, open_only: bool, limit: int) -> list[Any]:
        return []

    async def totals(self, identity: str) -> Totals:
        return Totals(0, 0, 0, {})


class Wire:
    """Acks that went out."""

    acks = True
    writable = True

    def __init__(self) -> None:
        self.acked: list[str] = []

    def send_burst(self, frames: list[bytes]) -> bool:
        if self.writable:
            self.acked += [msgspec.json.decode(frame)["message_id"] for frame in frames]
        return self.writable


class Bench:
    """An intake with everything around it in the test's hands."""

    def __init__(self) -> None:
        self.journal = SlowJournal()
        self.wire = Wire()
        self.records: list[Record] = []
        self.signals: list[Signal] = []
        self.questions: list[Any] = []
        self.surveys = 0
        self.failures: list[BaseException] = []
        platform = AgentChat("mine", "http://127.0.0.1:1", lambda: "key", "me")
        self.intake = Intake(
            "mine",
            platform,
            self.journal,  # type: ignore[arg-type]  # the part of it that intake uses
            config.Intake(gap_grace_s=0.01),
            on_records=self._records,
            on_signal=self.signals.append,
            on_question=self.questions.append,
            on_survey=self._survey,
            on_fatal=self.failures.append,
        )
        self.intake.attach(self.wire)

    def _records(self, records: Sequence[Record]) -> None:
        self.records += records

    def _survey(self) -> None:
        self.surveys += 1

    def push(self, *seqs: int, sender: str = "bob", conversation: str = "conv_1") -> None:
        for seq in seqs:
            self.intake.frame(frame(seq, sender=sender, conversation=conversation))
        self.intake.flush()

    def changes(self, kind: type[Change]) -> list[Any]:
        return [change for changes, _ in self.journal.handed_in for change in changes if isinstance(change, kind)]


def frame(seq: int, *, sender: str = "bob", conversation: str = "conv_1", msg_id: str = "") -> bytes:
    row = {
        "id": msg_id or f"msg_{seq}",
        "conversation_id": conversation,
        "sender": sender,
        "seq": seq,
        "content": {"text": "hi"},
    }
    return msgspec.json.encode({"type": "message.new", "payload": row})


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
