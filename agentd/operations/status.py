"""How the daemon, its identities and its plugins fare; and letting a plugin go on where it stands still.

Always true: answered from memory, at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from agentd import __version__
from agentd.core.moments import iso
from agentd.operations.parts import Parts


class Status:
    """See control.api.Daemon."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._loop = asyncio.get_running_loop()

    def status(self) -> dict[str, Any]:
        """See control.api.Daemon."""
        parts = self._parts
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - parts.began, 3),
            "state_dir": str(Path(parts.settings.agentd.state).absolute()),
            "hub_url": parts.hub_url,
            "identities": [self._identity(name) for name in parts.supervisors if self._is_whole(name)],
            "plugins": [
                {
                    "name": name,
                    "use": plugin.use,
                    "identities": parts.served_by(name),
                    **parts.generations.standing(name),
                    **parts.dispatcher.standing(name),
                }
                for name, plugin in parts.settings.plugin.items()
            ],
            "journal": self._journal(),
            "loop_stalls": parts.stalls.stalls,
        }

    def _is_whole(self, name: str) -> bool:
        """It is not on its way in or out."""
        return name in self._parts.settings.identity and name in self._parts.dispatcher.handled

    def _identity(self, name: str) -> dict[str, Any]:
        parts = self._parts
        status = parts.supervisors[name].status()
        committed = parts.journal.last_commit_at
        return {
            **status,
            "url": parts.settings.identity[name].url,
            "state_since": iso(status["state_since"]),
            "history": [{**change, "at": iso(change["at"])} for change in status["history"]],
            "plugins": list(parts.settings.identity[name].plugins),
            "handled": parts.dispatcher.handled[name],
            "pending": parts.dispatcher.pending[name],
            "dead": parts.dispatcher.dead[name],
            "last_commit_age_s": None if committed is None else round(self._loop.time() - committed, 3),
        }

    def _journal(self) -> dict[str, Any]:
        journal = self._parts.journal
        waiting = journal.waiting_since
        return {
            "full": journal.full,
            "commits": journal.commits,
            "changes": journal.changes,
            "last_commit_s": journal.last_commit_s,
            "waiting_s": None if waiting is None else round(self._loop.time() - waiting, 3),
        }

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        """See control.api.Daemon."""
        names = [identity] if identity is not None else self._parts.served_by(plugin)
        return sum(self._parts.dispatcher.release(plugin, name, conversation) for name in names)
