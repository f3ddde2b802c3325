"""Own words that agentd did not say stop its handlers, and those that it did say do not, whatever their key."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentd.config import Conduct
from agentd.core.events import Message, Record, Source
from agentd.journal.storage import Paused
from agentd.takeover import Takeover


class Outbox:
    """Knows the one send under a key that a person chose."""

    async def outbox_find(self, client_msg_id: str, identity: str) -> Any:
        return "its row" if (client_msg_id, identity) == ("chosen", "me") else None


def said(client_msg_id: str) -> Record:
    fields: dict[str, Any] = {"identity": "me", "conversation": "conv_1", "seq": 1, "id": "m", "sender": "me"}
    message = Message(**fields, own=True, source=Source.LIVE, client_msg_id=client_msg_id)
    return Record(1, 7, message, 1_000.0)


@pytest.mark.parametrize(
    ("client_msg_id", "is_somebody_else"), [("", True), ("of another client", True), ("chosen", False)]
)
async def test_what_is_in_the_outbox_was_said_by_us(client_msg_id: str, is_somebody_else: bool) -> None:
    assert await paused_after(said(client_msg_id)) == [7] * is_somebody_else


async def test_what_we_said_ourselves_does_not_cover_what_somebody_else_had_said_before() -> None:
    assert await paused_after(said(""), said("agentd-1-0"), said("cli-1")) == [7]


async def paused_after(*records: Record) -> list[int]:
    pauses: list[Paused] = []
    takeover = Takeover(Outbox(), {"me": Conduct()}, pauses.append, lambda number: None, lambda: 1_000.0)
    running = asyncio.create_task(takeover.run())
    takeover.records(records)
    for _ in range(5):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running])
    return [pause.number for pause in pauses]
