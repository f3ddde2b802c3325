"""A far end made of a plain TCP server, so that it can misbehave in every way a socket can."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from agentd.core.reconnect import CloseMeaning
from agentd.wire.agentchat import AgentChat
from agentd.wire.platform import Hello, Malformed, Rejected, Unknown

KEY = "ac_live_0123456789abcdefghijklmnopqrstuv"
HELLO_OK = b'{"type":"hello.ok","capabilities":["ack"]}'


def text(data: bytes | str, *, fin: bool = True) -> bytes:
    return Frame(Opcode.TEXT, data.encode() if isinstance(data, str) else data, fin).serialize(mask=False)


def control(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


def closing(code: int, reason: str = "") -> bytes:
    return control(Opcode.CLOSE, Close(code, reason).serialize())


class Platform:
    """The least that a link needs to know of a platform."""

    def __init__(self, url: str, key: str = KEY) -> None:
        self.url = url
        self.key = key

    def link_url(self) -> str:
        return self.url

    def hello(self) -> bytes:
        return json.dumps({"type": "hello", "api_key": self.key}).encode()

    def decode(self, frame: str | bytes) -> Hello | Rejected | Malformed | Unknown:
        try:
            row = json.loads(frame)
        except ValueError:
            return Malformed("not JSON")
        if row["type"] == "hello.ok":
            return Hello(acks="ack" in row.get("capabilities", []))
        return Rejected(row["reason"]) if row["type"] == "auth.rejected" else Unknown(row["type"])

    def close_meaning(self, code: int | None, reason: str) -> CloseMeaning:
        return AgentChat("me", "http://far.invalid", lambda: self.key).close_meaning(code, reason)


class Far:
    """The far end of one connection. It does nothing by itself: it answers no ping and echoes no close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        # At DEBUG the library logs the hello it reads, and that is this end's business.
        quiet = logging.getLogger("far end")
        quiet.setLevel(logging.WARNING)
        self.protocol = ServerProtocol(max_size=None, logger=quiet)
        self._frames: list[Frame] = []

    async def request(self) -> Request:
        while not (events := self.protocol.events_received()):
            self.protocol.receive_data(await self.reader.read(65_536))
        assert isinstance(events[0], Request)
        return events[0]

    async def upgrade(self, *more: bytes) -> Request:
        """Accept the upgrade, with `more` in the same write."""
        request = await self.request()
        self.protocol.send_response(self.protocol.accept(request))
        self.write(*self.protocol.data_to_send(), *more)
        return request

    async def welcome(self, *more: bytes) -> Frame:
        """Upgrade, read the hello, say hello.ok, with `more` in the same write."""
        await self.upgrade()
        hello = await self.frame()
        self.write(text(HELLO_OK), *more)
        return hello

    def write(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    async def frame(self) -> Frame:
        """The next frame that came in; EOFError when no more will."""
        while not self._frames:
            data = await self.reader.read(65_536)
            if not data:
                raise EOFError
            self.protocol.receive_data(data)
            self._frames += [event for event in self.protocol.events_received() if isinstance(event, Frame)]
        return self._frames.pop(0)

    async def answer_pings(self) -> None:
        """Behave from here on: answer pings and the close frame, until the end."""
        while True:
            try:
                frame = await self.frame()
            except (EOFError, ConnectionError):
                return
            if frame.opcode is Opcode.PING:
                self.write(control(Opcode.PONG, bytes(frame.data)))
            elif frame.opcode is Opcode.CLOSE:
                self.write(control(Opcode.CLOSE, bytes(frame.data)))
                return

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Far], Awaitable[object]]
StartFarEnd = Callable[..., Awaitable[int]]
"""Called with a script, and `tls=` a server's context; gives the port."""
