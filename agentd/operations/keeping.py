"""The journal kept small while the daemon runs: what is old goes now, and free room goes back to the disk.

Not here: what may go and how (journal/retention.py), the same without a daemon (journal/sqlite/copies.py).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from agentd.control.refusal import ControlError
from agentd.operations.parts import Parts


class Keeping:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._journal = parts.journal
        self._retention = parts.retention

    async def retain(self) -> dict[str, Any]:
        """See control.api.Daemon."""
        return {"rows": await self._retention.once(time.time())}

    async def vacuum(self) -> AsyncGenerator[dict[str, Any], None]:
        """See control.api.Daemon."""
        if not (await self._journal.room()).gives_back:
            why = "an older agentd made this journal, which can give room back only while no daemon runs"
            raise ControlError(409, "NOT_WHILE_RUNNING", why, "stop the daemon, run agentd vacuum once, start it again")
        return self._vacuum()

    async def _vacuum(self) -> AsyncGenerator[dict[str, Any], None]:
        before = self._journal.size_bytes
        async for given_back, of in self._retention.shrink():
            yield {"given_back": given_back, "of": of}
        room = await self._journal.room()
        now = self._journal.size_bytes
        yield {"done": True, "bytes_before": before, "bytes": now, "free_bytes": room.free_bytes}
