"""An intake with everything around it in the test's hands: a journal that commits when told, a wire that remembers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from agentd import config
from agentd.core.events import Record, Signal
from agentd.intake.actor import Intake
from agentd.journal.storage import Appended, Change, Conversation, Totals
from agentd.wire.agentchat import AgentChat


class SlowJournal:
    """The part of the journal that intake writes to; commits wait for `sync`."""

    def __init__(self) -> None:
        self.handed_in: list[tuple[tuple[Change, ...], asyncio.Future[None]]] = []
        self.stored: list[Conversation] = []
        self.recorded: dict[tuple[int, int], str] = {}
        self._next = 0

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.handed_in.append((changes, future))
        if not changes:
            future.set_result(None)
        return future

    async def sync(self, count: int | None = None) -> None:
        """The first so many commits reach the disk."""
        for changes, future in self.handed_in[:count]:
            if not future.done():
                events = [change.record.event for change in changes if isinstance(change, Appended)]
                self.recorded.update(((event.epoch, event.seq), event.id) for event in events)
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

    async def ids_at(self, places: Sequence[tuple[int, int, int]]) -> list[str | None]:
        return [self.recorded.get((epoch, seq)) for _, epoch, seq in places]

    async def ids_of(self, conversation: int) -> set[str]:
        return set(self.recorded.values())

    async def totals(self, identity: str) -> Totals:
        return Totals(0, 0, {})


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
