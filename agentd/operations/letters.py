"""Dead letters: shown, delivered again, and taken off the list.

Always true: a letter that nobody needs to look at any more stays in the journal.
Not here: what becomes one (dispatcher).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from agentd.control.refusal import ControlError
from agentd.core.events import Record
from agentd.journal.storage import DeadDropped, DeadRow
from agentd.operations.explaining import tried_since
from agentd.operations.parts import Parts
from agentd.operations.rows import dead_row, record_row


class Letters:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._journal = parts.journal
        # Each decision is made on a letter as it is on disk: two at once would both have it delivered.
        self._deciding = asyncio.Lock()

    async def listed(self, identity: str | None, dropped_too: bool, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        return [dead_row(row) for row in await self._journal.dead(identity, limit, dropped_too=dropped_too)]

    async def show(self, number: int) -> dict[str, Any]:
        """See control.api.Daemon."""
        row = await self._find(number)
        record = await self._record(row)
        event = None if record is None else record_row(record)
        return {**dead_row(row), "held": self._is_held(row), "traceback": row.traceback, "event": event}

    async def replay(self, number: int) -> dict[str, Any]:
        """See control.api.Daemon."""
        async with self._deciding:
            await self._replay(number)
        return await self.show(number)

    async def _replay(self, number: int) -> None:
        row = await self._find(number)
        if row.dropped_at is not None and await self._is_tried(row):
            return  # as one of a batch, or somebody was quicker
        if row.plugin not in self._parts.plugins or row.identity not in self._parts.served_by(row.plugin):
            raise ControlError(
                409,
                "NOT_SERVED",
                f"plugin {row.plugin} does not serve identity {row.identity} any more",
                "configure it as it was, or take the letter off the list: agentd dead drop",
            )
        if await self._record(row) is None:
            raise ControlError(
                409,
                "UNREADABLE_EVENT",
                f"the event of dead letter {number} cannot be read",
                f"take it off the list: agentd dead drop {number}",
            )
        await self._parts.dispatcher.try_again(row, await self._beside(row))

    async def _is_tried(self, row: DeadRow) -> bool:
        outcomes = await self._journal.outcomes(row.plugin, row.conversation, row.position)
        return tried_since(row, outcomes)

    async def _beside(self, row: DeadRow) -> list[DeadRow]:
        """The letters of the other events of its turn."""
        places = [(row.conversation, position) for position in self._parts.dispatcher.held_with(row)]
        found = [each for place in places for each in await self._journal.dead_at(*place)]
        return [each for each in found if each.plugin == row.plugin and each.dropped_at is None]

    async def drop(self, number: int) -> dict[str, Any]:
        """See control.api.Daemon."""
        async with self._deciding:
            row = await self._find(number)
            if row.dropped_at is None:
                await self._journal.commit(DeadDropped(number, time.time()))
        return await self.show(number)

    async def _record(self, row: DeadRow) -> Record | None:
        # Its identity may be gone, or that it cannot be read is the very reason why it is dead.
        stored = await self._journal.read_lane(row.conversation, row.position - 1, 1)
        return self._parts.record(stored[0]) if stored and stored[0].position == row.position else None

    def _is_held(self, row: DeadRow) -> bool:
        held = self._parts.dispatcher.standing(row.plugin).get("held", ())
        place = (row.identity, row.conversation_id)
        return row.dropped_at is None and any((each["identity"], each["conversation"]) == place for each in held)

    async def _find(self, number: int) -> DeadRow:
        if (row := await self._journal.dead_find(number)) is None:
            raise ControlError(404, "UNKNOWN_LETTER", f"there is no dead letter {number}", "see: agentd dead ls --all")
        return row
