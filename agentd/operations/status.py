"""How the daemon, its identities and its plugins fare; and letting a plugin go on where it stands still.

Always true: answered from memory, at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from agentd import __version__, logs
from agentd.core.moments import iso
from agentd.host.isolated import Isolated
from agentd.operations.parts import Parts
from agentd.operations.rows import pause_row
from agentd.supervisor import Change

_CHANGES_REMEMBERED = 20_000  # changes of state, which look the same from one question to the next


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
                    "worker": self._worker(name),
                    "state_bytes": parts.journal.state_bytes(name),
                    "state_max_bytes": plugin.state_max_mb << 20,
                    "state_full": name in parts.plugins and parts.plugins[name].state.full,
                    **parts.dispatcher.standing(name),
                }
                for name, plugin in parts.settings.plugin.items()
            ],
            "pauses": [pause_row(pause) for pause in parts.dispatcher.pauses()],
            "journal": self._journal(),
            "tracing": None if parts.tracer is None else parts.tracer.status(),
            "signals_dropped": parts.dispatcher.signals_dropped,
            "log_lines_dropped": logs.dropped(),
            "loop_stalls": parts.stalls.stalls,
            "turns_in_predecessor": parts.dispatcher.inherited,
            "undispatched": parts.dispatcher.undispatched,
            "undispatched_bytes": parts.dispatcher.undispatched_bytes,
            **parts.vitals.status(self._loop.time()),
        }

    def _is_whole(self, name: str) -> bool:
        """It is not on its way in or out."""
        return name in self._parts.settings.identity and name in self._parts.dispatcher.handled

    def _worker(self, plugin: str) -> dict[str, Any] | None:
        """How the process of a plugin that has one of its own fares."""
        hosted = self._parts.plugins.get(plugin)
        return hosted.standing() if isinstance(hosted, Isolated) else None

    def _identity(self, name: str) -> dict[str, Any]:
        parts = self._parts
        status = parts.supervisors[name].status()
        committed = parts.journal.last_commit_at
        return {
            **status,
            "url": parts.settings.identity[name].url,
            "state_since": iso(status["state_since"]),
            "history": [_change_row(change) for change in status["history"]],
            "plugins": list(parts.settings.identity[name].plugins),
            "handled": parts.dispatcher.handled[name],
            "pending": parts.dispatcher.pending[name],
            "dead": parts.journal.dead_count(name),
            "last_commit_age_s": None if committed is None else round(self._loop.time() - committed, 3),
        }

    def _journal(self) -> dict[str, Any]:
        journal, settings = self._parts.journal, self._parts.settings.agentd.journal
        waiting = journal.waiting_since
        return {
            "full": journal.full,
            "behind": journal.waiting > settings.waiting_max,
            "bytes": journal.size_bytes,
            "wal_bytes": journal.wal_bytes,
            "max_bytes": settings.max_mb << 20 or None,
            "at_limit": journal.at_limit,
            "commits": journal.commits,
            "changes": journal.changes,
            "last_commit_s": journal.last_commit_s,
            "waiting_s": None if waiting is None else round(self._loop.time() - waiting, 3),
        }

    def release(self, plugin: str, identity: str | None, conversation: str) -> int:
        """See control.api.Daemon."""
        names = [identity] if identity is not None else self._parts.served_by(plugin)
        return sum(self._parts.dispatcher.release(plugin, name, conversation) for name in names)


@lru_cache(maxsize=_CHANGES_REMEMBERED)
def _change_row(change: Change) -> dict[str, Any]:
    return {"state": change.state, "at": iso(change.at), "reason": change.reason}
