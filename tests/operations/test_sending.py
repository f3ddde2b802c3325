"""Whoever has something said, and waits for what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentd.config import JournalSettings
from agentd.core.events import Content, Send
from agentd.journal.sqlite import open_journal
from agentd.journal.storage import Carried, OutboxRow
from agentd.operations.following import Followers
from agentd.operations.sending import Sending

SEND = Send(identity="alice", target="@bob", content=Content(text="x"), client_msg_id="k", state="ready")


class Outbox:
    """The part of a journal that is asked. row: what it has under the key."""

    def __init__(self) -> None:
        self.row = OutboxRow(SEND, "", 0.0, None, None, None, 0.0)

    async def outbox_find(self, client_msg_id: str, identity: str) -> OutboxRow:
        return self.row


def sending() -> Sending:
    journal: Any = Outbox()
    return Sending(journal, {}, Followers(10), queued=lambda sends: None, room=lambda identity: 1, speaker=None)


def carried(identity: str) -> Carried:
    return Carried("k", identity, "sent", 1, at=0.0)


async def test_each_of_several_who_wait_for_one_send_is_told_when_it_settles() -> None:
    ours = sending()
    soon = asyncio.ensure_future(ours.send("alice", "@bob", SEND.content, 0.01, "k"))
    later = asyncio.ensure_future(ours.send("alice", "@bob", SEND.content, 3_600.0, "k"))
    assert (await soon)["state"] == "ready"
    ours.settled(carried("bob"))
    await asyncio.sleep(0.01)
    assert not later.done(), "another identity's send may have the same key"
    ours.settled(carried("alice"))
    assert (await asyncio.wait_for(later, 10))["client_msg_id"] == "k"


@asynccontextmanager
async def outbox_on_disk(folder: Path) -> AsyncIterator[tuple[Sending, list[str], asyncio.Event]]:
    """One over a journal, with the keys that it rings the sender for, and an event that tells of a commit."""
    journal: Any = await open_journal(folder / "journal.db", JournalSettings())
    commit, committing, rung = journal.commit, asyncio.Event(), []

    def watched(*changes: Any) -> asyncio.Future[None]:
        committing.set()
        future: asyncio.Future[None] = commit(*changes)
        return future

    def queued(sends: Sequence[Send]) -> None:
        rung.extend(send.client_msg_id for send in sends)

    journal.commit = watched
    try:
        yield (
            Sending(journal, {}, Followers(10), queued=queued, room=lambda identity: 1, speaker=None),
            rung,
            committing,
        )
        await commit()
    finally:
        await journal.close()


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_was_put_into_the_outbox_leaves_although_nobody_waits_for_it_any_more(
    tmp_path: Path, at_once: bool
) -> None:
    async with outbox_on_disk(tmp_path) as (ours, rung, committing):
        waits = ours.send_now(SEND) if at_once else ours.send("alice", "@bob", SEND.content, 60.0, "k")
        impatient = asyncio.ensure_future(waits)
        await committing.wait()
        impatient.cancel()
        with pytest.raises(asyncio.CancelledError):
            await impatient
    assert rung == ["k"]


async def test_two_who_say_the_same_under_one_key_at_the_same_time_put_it_there_once(tmp_path: Path) -> None:
    async with outbox_on_disk(tmp_path) as (ours, rung, _):
        answers = [ours.send("alice", "@bob", SEND.content, 0.0, "k") for _ in range(2)]
        assert [each["state"] for each in await asyncio.gather(*answers)] == ["ready", "ready"]
    assert rung == ["k"]
