"""What people ask of a running daemon, and what it answers. Implements `agentd.control.api.Daemon`.

    parts.py      what the answers are made of
    status.py     the whole state; letting a held conversation go on
    sending.py    saying something, and waiting for what becomes of it
    outbox.py     sends that wait, were refused or expired
    letters.py    dead letters
    reading.py    what is recorded: the log as it grows, exports, gaps
    explaining.py what the plugins make of an event
    rows.py       how all this looks as JSON
    following.py  records on their way to those who wait for them

Always true: nothing here decides what happens to an event or a send; that is asked of the part which does.
Not here: who may ask, and how (control); building the parts (daemon).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from agentd.control.api import HandOverRequest
from agentd.operations.explaining import Explaining
from agentd.operations.following import Followers
from agentd.operations.letters import Letters
from agentd.operations.outbox import Outbox
from agentd.operations.parts import Parts
from agentd.operations.reading import Reading
from agentd.operations.sending import Sending
from agentd.operations.status import Status

__all__ = ["Followers", "Operations", "Parts", "Sending"]


class Operations:
    """Every operation under the name that `agentd.control.api.Daemon` gives it, where it is described."""

    def __init__(
        self,
        parts: Parts,
        sending: Sending,
        followers: Followers,
        hand_over: Callable[[HandOverRequest], Awaitable[dict[str, Any]]],
    ) -> None:
        status, outbox, letters, reading = Status(parts), Outbox(parts), Letters(parts), Reading(parts, followers)
        self.status = status.status
        self.release = status.release
        self.send = sending.send
        self.outbox = outbox.listed
        self.outbox_show = outbox.show
        self.outbox_retry = outbox.retry
        self.outbox_drop = outbox.drop
        self.dead = letters.listed
        self.dead_show = letters.show
        self.dead_drop = letters.drop
        self.gaps = reading.gaps
        self.tail = reading.tail
        self.export = reading.export
        self.explain = Explaining(parts).explain
        self._hand_over = hand_over
        self._stop = parts.stop

    async def hand_over(self, wanted: HandOverRequest) -> dict[str, Any]:
        """See control.api.Daemon."""
        return await self._hand_over(wanted)

    async def stop(self) -> None:
        """See control.api.Daemon."""
        self._stop()
