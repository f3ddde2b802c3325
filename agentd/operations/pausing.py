"""Keeping handlers out of a conversation, and letting them in again.

Always true: mail of a paused conversation is kept, and handled in order once it goes on.
Not here: pauses that nobody asked for (takeover, the guard against loops, stale mail), what a pause does (dispatcher).
"""

from __future__ import annotations

import time
from typing import Any

from agentd.control.refusal import ControlError
from agentd.journal.storage import Paused
from agentd.operations.naming import find_conversation
from agentd.operations.parts import Parts
from agentd.operations.rows import pause_row

_REASON = "by command"


class Pausing:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def pause(self, identity: str | None, conversation: str, for_s: float | None) -> dict[str, Any]:
        """See control.api.Daemon."""
        found = await find_conversation(self._parts, self._parts.names(identity), conversation)
        now = time.time()
        pause = Paused(
            number=found.number,
            identity=found.identity,
            conversation=found.conversation,
            at=now,
            until=None if for_s is None else now + for_s,
            reason=_REASON,
        )
        await self._parts.dispatcher.pause(pause)
        return pause_row(pause)

    async def resume(self, identity: str | None, conversation: str) -> dict[str, Any]:
        """See control.api.Daemon."""
        found = await find_conversation(self._parts, self._parts.names(identity), conversation)
        pause = self._parts.dispatcher.paused(found.number)
        if pause is None:
            raise ControlError(
                409,
                "NOT_PAUSED",
                f"conversation {found.conversation} of {found.identity} is not paused",
                "see which are: agentd status; one that is held behind a dead letter goes on with: agentd release",
            )
        await self._parts.dispatcher.resume(found.number)
        return pause_row(pause)
