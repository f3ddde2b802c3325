"""Following the log: what a reader costs, over a real journal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agentd.config import JournalSettings
from agentd.core.events import Message, Record
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Appended, Conversation
from agentd.operations.following import Followers
from agentd.operations.reading import Reading


async def test_whoever_follows_a_quiet_identity_is_not_shown_the_whole_of_a_busy_one_at_each_record(
    tmp_path: Path, monkeypatch: Any
) -> None:
    journal = await open_journal(tmp_path / "journal.db", JournalSettings())
    seqs = {"quiet": 0, "busy": 0}
    followers = Followers(1_000)

    async def said_by(identity: str) -> None:
        seqs[identity] += 1
        seq, number = seqs[identity], 1 + list(seqs).index(identity)
        event = Message(
            identity=identity, conversation=f"c{number}", seq=seq, epoch=1, id=f"m{seq}", sender="@b", payload=b"{}"
        )
        record = Record(journal.next_position(), number, event, 1.5)
        mark = Conversation(number, identity, event.conversation, 1, 1, seq, event.id, seq, seq)
        await journal.commit(mark, Appended(record))
        followers.offer([record])

    begun: list[int] = []
    looked = asyncio.Event()
    read_log = journal.read_log

    async def counted(identity: str | None, after: int, limit: int) -> Any:
        begun.append(after)
        found = await read_log(identity, after, limit)
        looked.set()
        return found

    monkeypatch.setattr(journal, "read_log", counted)
    parts: Any = SimpleNamespace(
        journal=journal,
        stopping=asyncio.Event(),
        record=lambda row: Record(
            row.position,
            row.conversation,
            Message(identity="quiet", conversation="c1", seq=1, id="m", sender="@b"),
            1.5,
        ),
    )
    await said_by("quiet")
    tail = Reading(parts, followers).tail("quiet", 0)
    assert (await anext(tail))["position"] == 1
    following = asyncio.ensure_future(anext(tail))
    for _ in range(20):
        looked.clear()
        await said_by("busy")
        await looked.wait()
    await said_by("quiet")
    assert (await following)["position"] == 22, "and it misses nothing"
    assert begun == sorted(begun)
    assert begun[-1] >= 20, "what was looked through is not looked through again"
    await tail.aclose()
    await journal.close()
