"""One client's socket from the hub's side: bytes out, liveness, and the ways in which it can fail.

Writing never waits: a client that reads more slowly than it is written to is closed with 1013, as on the platform.

Always true: after `close`, `abort` or `freeze` nothing more is written. Every timer is gone after `finish`.
Not here: which frames there are (sockets.py), and when a fault happens (faults.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agentd.hub.accounts import Account
from agentd.hub.frames import close_frame, ping_frame, pong_frame
from agentd.hub.settings import HubSettings
from agentd.wire.agentchat.types import CloseCode

_NORMAL_SILENT = 1005
"""What a library reports for a close frame without a code. It must not be written."""


class Connection:
    """A socket whose client has named itself. acks: the client asked for, and got, the ack capability.

    deaf: nothing is pushed. no_pong: pings are read and not answered. held: a frame that waits to be overtaken.
    """

    __slots__ = (
        "_closed",
        "_frozen",
        "_loop",
        "_settings",
        "_stalled",
        "_timer",
        "_transport",
        "account",
        "acks",
        "deaf",
        "held",
        "no_pong",
        "tasks",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        settings: HubSettings,
        account: Account,
        tasks: asyncio.TaskGroup,
        *,
        acks: bool,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._frozen = False
        self._stalled = False
        self.account = account
        self.tasks = tasks
        self.acks = acks
        self.deaf = False
        self.no_pong = False
        self.held: bytes | None = None

    @property
    def is_open(self) -> bool:
        """Whether what is written may still arrive."""
        return not (self._closed or self._frozen or self._transport.is_closing())

    @property
    def unsent_bytes(self) -> int:
        """How much the client has not yet read."""
        return self._transport.get_write_buffer_size()

    def write(self, frames: bytes) -> bool:
        """Write whole frames. Returns whether they went out; a client that lags too far is closed instead."""
        if not self.is_open:
            return False
        self._transport.write(frames)
        if self.unsent_bytes > self._settings.unsent_max_bytes:
            self.close(CloseCode.OVERLOAD, "overload")
        return True

    # --- liveness ---

    def start_heartbeat(self) -> None:
        """Ping the client for as long as the connection lives."""
        self._arm(self._settings.ping_interval_s, self._ping)

    def heard_pong(self) -> None:
        """The client answered a ping."""
        if self.is_open:
            self._arm(self._settings.ping_interval_s, self._ping)

    def heard_ping(self, payload: bytes) -> None:
        """The client pings."""
        if not self.no_pong:
            self.write(pong_frame(payload))

    def _ping(self) -> None:
        if self.write(ping_frame()):
            self._arm(self._settings.pong_timeout_s, self._give_up)

    def _give_up(self) -> None:
        self.close(CloseCode.GOING_AWAY, "Heartbeat timeout")

    # --- ending, in every way ---

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, and abort if the client does not answer in time."""
        if self.is_open:
            self._transport.write(close_frame(code, reason))
            self._closed = True
            self._arm(self._settings.close_timeout_s, self._transport.abort)

    def heard_close(self, code: int | None) -> None:
        """The client sent a close frame, or answered ours."""
        if self.is_open:
            sendable = code if code is not None and code != _NORMAL_SILENT else CloseCode.NORMAL
            self._transport.write(close_frame(sendable, ""))
        self._closed = True

    def abort(self) -> None:
        """End the connection without a close frame; what was not yet sent is lost."""
        self._closed = True
        self._transport.abort()

    def cut_mid_frame(self, frame: bytes) -> None:
        """Send the first half of a frame, then end the connection without a close frame."""
        if self.is_open:
            self._transport.write(frame[: len(frame) // 2])
            self._closed = True
            self._transport.close()

    def freeze(self) -> None:
        """Neither read nor write any more, and leave the connection open: half-open, as a dead network leaves it."""
        self._frozen = True
        self._disarm()
        self.stop_reading()

    def stop_reading(self) -> None:
        """Read nothing more, so that what the client writes backs up on its side."""
        self._stalled = True
        self.keep_stalled()

    def keep_stalled(self) -> None:
        """Stay with it: the HTTP library resumes reading by itself once it has worked off what it had queued."""
        if self._stalled and self._transport.is_reading() and not self._transport.is_closing():
            self._transport.pause_reading()

    def finish(self) -> None:
        """Release everything, after the last byte has been read."""
        self._closed = True
        self._disarm()
        self._transport.close()

    def _arm(self, delay_s: float, call: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._loop.call_later(delay_s, call)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
