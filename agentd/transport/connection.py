"""The WebSocket library's connection, with its frames taken out at the source and its pulse watched.

Text frames leave through a plain call out of the socket's own callback: no queue, await or task per frame. One more
call tells that a read is finished.

Always true: a ping of the far end is answered by the very read that brings it, whatever callbacks make of its frames.
Reading is never paused, since a paused socket answers no ping. A far end that has fallen silent is cut off within
interval + timeout, and a connection that is closing within CLOSE_GRACE_S, whatever else is stuck.
Not here: dialling and the hello (link.py), what frames mean (wire/).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Event, State

from agentd.config import Link as LinkSettings

CLOSE_GRACE_S = 2.0
"""How long a connection that is closing may take until it is cut. Nothing of worth comes after a close frame."""

PONG_OVERDUE = 3
"""A pong may stand in line behind a drain on a slow line, so data that still comes counts as life; up to this many
deadlines, since data that comes does not prove that ours arrives."""


def nothing() -> None:
    """For a burst that nobody waits for."""


class Connection(ClientConnection):
    """One connection after its upgrade. Frames are held until `receive` says where they go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.last_inbound = self.last_pong = self.loop.time()
        self.binary_dropped = 0
        self.write_buffer_max_bytes = LinkSettings().write_buffer_max_bytes
        self._take: Callable[[bytes], None]
        self._burst: Callable[[], None]
        self.hold()
        self._taken = False
        self._partial: bytearray | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self._ping_payload = b""
        self._pings = 0
        self._pinged_at = 0.0
        self._cut_timer: asyncio.TimerHandle | None = None
        self._leaving = False
        self._why_cut = ""
        self._fault: Exception | None = None

    # Frames in

    def hold(self) -> None:
        """Keep what comes for the next `receive`. Meant for a turn or two of the loop, since nothing bounds it."""
        self._held: list[bytes] = []
        self._take, self._burst = self._held.append, nothing

    def receive(self, take: Callable[[bytes], None], burst: Callable[[], None]) -> None:
        """Give what was held, and from now on every text message, to `take`, and call `burst` after each read.

        `take` may call `hold`; what follows is then held again. What either raises ends the connection.
        """
        if self._leaving:
            return
        held = self._held
        self._take, self._burst = take, burst
        try:
            for data in held:
                self._take(data)
            if held:
                self._burst()
        except Exception as fault:
            self._fail(fault)

    def data_received(self, data: bytes) -> None:
        """Take one read: the library answers pings, then hands each frame to `process_event`."""
        self.last_inbound = self.loop.time()
        self._taken = False
        try:
            super().data_received(data)
            if self._taken:
                self._burst()
        except Exception as fault:
            self._fail(fault)
        if self.protocol.close_expected():
            self._expect_end()

    def process_event(self, event: Event) -> None:
        """Take one frame, synchronously; binary messages are counted and dropped."""
        if self.response is None:
            super().process_event(event)
            return
        assert isinstance(event, Frame)
        opcode = event.opcode
        if opcode is Opcode.TEXT:
            if event.fin:
                self._hand_on(bytes(event.data))
            else:
                self._partial = bytearray(event.data)
        elif opcode is Opcode.CONT:
            self._continue(event)
        elif opcode is Opcode.BINARY:
            self.binary_dropped += 1
        elif opcode is Opcode.PONG:
            self._pong(bytes(event.data))

    def _hand_on(self, data: bytes) -> None:
        self._taken = True
        self._take(data)

    def _continue(self, fragment: Frame) -> None:
        # Without a beginning it is the rest of a binary message. The library bounds the sum by max_size; it lets any
        # number of empty fragments pass, and a bytearray is not the larger for them.
        if self._partial is None:
            return
        self._partial += fragment.data
        if fragment.fin:
            whole, self._partial = bytes(self._partial), None
            self._hand_on(whole)

    # Frames out

    def send_burst(self, frames: Sequence[bytes]) -> bool:
        """Write each of `frames` as a text message, all with one write; False if nothing was written.

        It declines while the far end has left `write_buffer_max_bytes` unread.
        """
        transport, protocol = self.transport, self.protocol
        if protocol.state is not State.OPEN or transport.is_closing():
            return False
        if transport.get_write_buffer_size() >= self.write_buffer_max_bytes:
            return False
        for frame in frames:
            protocol.send_text(frame)
        transport.write(b"".join(protocol.data_to_send()))
        return True

    # Pulse

    def watch(self, interval_s: float, timeout_s: float) -> None:
        """Ping every `interval_s`, and cut the connection when nothing came back for `timeout_s`."""
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._arm(interval_s, self._ping)

    def _arm(self, delay_s: float, then: Callable[[], None]) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        self._ping_timer = self.loop.call_later(delay_s, then)

    def _ping(self) -> None:
        if self.protocol.state is not State.OPEN:
            return
        self._pings += 1
        self._ping_payload = self._pings.to_bytes(8, "big")
        self._pinged_at = self.loop.time()
        self.protocol.send_ping(self._ping_payload)
        self.send_data()
        self._arm(self._timeout_s / 2, self._wait_on)

    def _wait_on(self) -> None:
        # The deadline comes in two halves so that a loop that was blocked past it reads what waits in the socket before
        # it judges: after a slow read callback, uvloop runs timers before it reads again.
        self._arm(self._timeout_s / 2, self._judge)

    def _judge(self) -> None:
        now = self.loop.time()
        heard_at = max(self._pinged_at, self.last_inbound)
        overdue_at = self._pinged_at + PONG_OVERDUE * self._timeout_s
        left_s = min(heard_at + self._timeout_s, overdue_at) - now
        if left_s > 0:
            self._arm(left_s, self._judge)
        else:
            self._cut(f"no pong within {now - self._pinged_at:.1f} s")

    def _pong(self, payload: bytes) -> None:
        if payload != self._ping_payload:
            return
        self._ping_payload = b""
        self.last_pong = self.last_inbound
        self._arm(max(0.0, self._pinged_at + self._interval_s - self.last_pong), self._ping)

    # End

    def leave(self, code: int, reason: str) -> None:
        """Send a close frame if there is still anyone to read it, and hand on nothing more."""
        self._leaving = True
        self._take, self._burst = _ignore, nothing
        if self.protocol.state is State.OPEN:
            self.protocol.send_close(code, reason)
            self.send_data()
        self._expect_end()

    def _expect_end(self) -> None:
        if self._cut_timer is None and not self.connection_lost_waiter.done():
            self._cut_timer = self.loop.call_later(CLOSE_GRACE_S, self._cut, "the close took too long")

    def _cut(self, why: str) -> None:
        self._why_cut = self._why_cut or why
        self.transport.abort()

    def _fail(self, fault: Exception) -> None:
        self._fault = self._fault or fault
        self._cut("a callback failed")

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, for whatever reason."""
        super().connection_lost(exc)
        for timer in (self._ping_timer, self._cut_timer):
            if timer is not None:
                timer.cancel()

    async def gone(self) -> None:
        """Wait until the TCP connection is gone; cancelled after a `leave`, cut it at once."""
        try:
            await asyncio.shield(self.connection_lost_waiter)
        finally:
            if self._leaving:
                self.transport.abort()

    def farewell(self) -> tuple[Close | None, bool, str]:
        """After the end: the far end's close frame, whether both sides sent one, and our words for an end without.

        Raises what `take` or `burst` raised, if that was the end.
        """
        if self._fault is not None:
            raise self._fault
        said, cause = self.protocol.close_rcvd, self.protocol.parser_exc or self.connection_exc
        both = said is not None and self.protocol.close_sent is not None
        return said, both, self._why_cut or str(cause or "the connection was cut")


def _ignore(_: bytes) -> None:
    return
