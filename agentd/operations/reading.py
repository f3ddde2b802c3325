"""What is recorded: the log as it grows, and the gaps in it.

Always true: read from the journal page by page, so that neither a long log nor a slow reader costs memory.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from agentd.operations.following import Followers
from agentd.operations.parts import Parts
from agentd.operations.rows import gap_row, record_row

_PAGE = 200


class Reading:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts, followers: Followers) -> None:
        self._parts = parts
        self._journal = parts.journal
        self._followers = followers

    async def gaps(self, identity: str | None, open_only: bool, limit: int) -> list[dict[str, Any]]:
        """See control.api.Daemon."""
        found = [
            (gap.found_at, gap_row(name, conversation, gap))
            for name in self._parts.names(identity)
            for conversation, gap in await self._journal.gaps(name, open_only=open_only, limit=limit)
        ]
        found.sort(key=lambda each: each[0], reverse=True)
        return [row for _, row in found[:limit]]

    async def tail(self, identity: str | None, since: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """See control.api.Daemon."""
        position = since if since is not None else await self._journal.last_position()
        with self._followers.following() as bell:
            while not self._parts.stopping.is_set():
                stored = await self._journal.read_log(identity, position, _PAGE)
                for row in stored:
                    position = row.position
                    yield record_row(row.record(self._parts.revive(row)))
                if len(stored) < _PAGE:
                    await bell.get()
                    while not bell.empty():
                        bell.get_nowait()
