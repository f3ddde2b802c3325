"""The connection between the process that hands over and its successor: messages, framed as on the pipe of a worker.

Always true: messages are taken in the order in which they were told, and what was told before the other end died is
taken before its end is.
Not here: who connects to whom, and what a message makes one do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import msgspec

from agentd.host.pipe import FRAME_MAX_BYTES, Frames, FrameTooLarge

log = logging.getLogger("agentd.handover")

_HEAD_BYTES = 4
_encode = msgspec.msgpack.Encoder().encode


class Line(asyncio.Protocol):
    """One end. take: gets each message, decoded by `decode`.

    opened: done when it is connected. ended: done when the other end is gone, or the line is cut.
    broken: it was cut here, since what came made no sense.
    """

    def __init__(self, decode: Callable[[bytes], Any], take: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[asyncio.Transport] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.broken = False
        self._decode = decode
        self._take = take
        self._frames = Frames()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        made = cast(asyncio.Transport, transport)  # uvloop's are not called so
        if self.opened.done():
            made.abort()
        else:
            self.opened.set_result(made)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            for body in self._frames.fed(data):
                self._take(self._decode(body))
        except Exception:  # what it meant is lost: whoever waits for it must not wait for ever
            log.exception("a message of the other process cannot be used")
            self.broken = True
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if not self.ended.done():
            self.ended.set_result(None)

    def tell(self, message: msgspec.Struct) -> None:
        """Send one message; to nobody if the line has ended. Raises FrameTooLarge."""
        body = _encode(message)
        if len(body) > FRAME_MAX_BYTES:
            raise FrameTooLarge(len(body))
        if self.opened.done() and not self.ended.done():
            self.opened.result().write(len(body).to_bytes(_HEAD_BYTES, "big") + body)

    @property
    def unsent(self) -> bool:
        """Something that was told has not left this process."""
        return not self.ended.done() and self.opened.result().get_write_buffer_size() > 0

    def close(self) -> None:
        """Send what was told, and end."""
        if self.opened.done():
            self.opened.result().close()
