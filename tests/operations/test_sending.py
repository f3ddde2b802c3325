"""Whoever waits for what becomes of a send, over a journal that has it already."""

from __future__ import annotations

import asyncio
from typing import Any

from agentd.core.events import Content, Send
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
