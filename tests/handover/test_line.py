"""The connection between two processes, over a real socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd.handover import messages
from agentd.handover.line import Line
from agentd.host.pipe import FRAME_MAX_BYTES, FrameTooLarge

_decode = msgspec.msgpack.Decoder(messages.ToSuccessor).decode


class Ends:
    """Two ends of one line; what the second is told is in `heard`."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.near = Line(_decode, lambda message: None)
        self.far = Line(_decode, self.heard.append)

    async def connect(self, path: Path) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(lambda: self.far, str(path))
        await loop.create_unix_connection(lambda: self.near, str(path))
        await self.far.opened
        return server


async def test_messages_come_in_the_order_in_which_they_were_told_and_before_the_end(tmp_path: Path) -> None:
    ends = Ends()
    server = await ends.connect(tmp_path / "line")
    told = [messages.Progressed(number, b"x" * 100_000) for number in range(20)]
    for each in told:
        ends.near.tell(each)
    ends.near.close()
    await ends.far.ended
    assert ends.heard == told
    server.close()


async def test_what_was_told_has_left_once_nothing_is_unsent(tmp_path: Path) -> None:
    ends = Ends()
    server = await ends.connect(tmp_path / "line")
    ends.near.tell(messages.GaveBack(1))
    while ends.near.unsent:
        await asyncio.sleep(0)
    ends.near.opened.result().abort()
    await ends.far.ended
    assert ends.heard == [messages.GaveBack(1)]
    server.close()


async def test_a_message_that_makes_no_sense_ends_the_line(tmp_path: Path) -> None:
    ends = Ends()
    server = await ends.connect(tmp_path / "line")
    ends.near.opened.result().write(b"\0\0\0\2\xc1\xc1")
    await ends.near.ended
    await ends.far.ended
    assert ends.heard == []
    server.close()


async def test_a_message_that_is_too_long_is_refused_where_it_is_told_and_the_line_goes_on(tmp_path: Path) -> None:
    ends = Ends()
    server = await ends.connect(tmp_path / "line")
    with pytest.raises(FrameTooLarge):
        ends.near.tell(messages.Progressed(1, bytes(FRAME_MAX_BYTES)))
    ends.near.tell(messages.GaveBack(1))
    ends.near.close()
    await ends.far.ended
    assert ends.heard == [messages.GaveBack(1)]
    server.close()


async def test_nothing_is_told_to_an_end_that_has_gone() -> None:
    Line(_decode, lambda message: None).tell(messages.GaveBack(1))
