"""What people ask of a running daemon, and what it answers. Implements `agentd.control.api.Daemon`.

    parts.py      what the answers are made of
    status.py     the whole state; letting a held conversation go on
    sending.py    saying something, and waiting for what becomes of it
    outbox.py     sends that wait, were refused or expired
    letters.py    dead letters
    pausing.py    keeping handlers out of a conversation
    reading.py    what is recorded: conversations, the log as it grows, exports, gaps
    explaining.py what the plugins make of an event
    replaying.py  letting a plugin handle again what is recorded
    naming.py     which conversation a person means
    rows.py       how all this looks as JSON
    vitals.py     what the daemon notices of itself
    following.py  records on their way to those who wait for them

Always true: nothing here decides what happens to an event or a send; that is asked of the part which does.
Not here: who may ask, and how (control); building the parts (daemon).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from agentd.control.api import HandOverRequest
from agentd.operations.explaining import Explaining
from agentd.operations.following import Followers
from agentd.operations.letters import Letters
from agentd.operations.outbox import Outbox
from agentd.operations.parts import Parts
from agentd.operations.pausing import Pausing
from agentd.operations.reading import Reading
from agentd.operations.replaying import Replaying
from agentd.operations.sending import Sending
from agentd.operations.status import Status
from agentd.operations.vitals import Vitals

__all__ = ["Followers", "Operations", "Parts", "Sending", "Vitals"]


class Operations:
    """Every operation under the name that `agentd.control.api.Daemon` gives it, where it is described."""

    def __init__(
        self,
        parts: Parts,
        sending: Sending,
        followers: Followers,
        reload: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
        hand_over: Callable[[HandOverRequest], Coroutine[Any, Any, dict[str, Any]]],
        upgrade: Callable[[], Coroutine[Any, Any, dict[str, Any]]],
    ) -> None:
        status, outbox, letters, reading = Status(parts), Outbox(parts), Letters(parts), Reading(parts, followers)
        pausing = Pausing(parts)
        self.status = status.status
        self.release = status.release
        self.pause = pausing.pause
        self.resume = pausing.resume
        self.send = sending.send
        self.outbox = outbox.listed
        self.outbox_show = outbox.show
        self.outbox_retry = outbox.retry
        self.outbox_drop = outbox.drop
        self.dead = letters.listed
        self.dead_show = letters.show
        self.dead_replay = letters.replay
        self.dead_drop = letters.drop
        self.conversations = reading.conversations
        self.gaps = reading.gaps
        self.tail = reading.tail
        self.export = reading.export
        self.replay = Replaying(parts).replay
        self.explain = Explaining(parts).explain
        self.reload = reload
        self.upgrade = upgrade
        self._hand_over = hand_over
        self._stop = parts.stop

    async def hand_over(self, wanted: HandOverRequest) -> dict[str, Any]:
        """See control.api.Daemon."""
        return await self._hand_over(wanted)

    async def stop(self) -> None:
        """See control.api.Daemon."""
        self._stop()
