"""What the service manager hears while the daemon runs: that it is alive, and what its identities are doing.

Alive means that the loop breathes (or nobody would call this) and that commits are carried out, or the disk is known to
be full. A platform that does not answer is no reason to restart the daemon, nor is a disk that a restart cannot empty.
Not here: the words and the socket (control/systemd.py), being ready and stopping (the daemon).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from agentd.control.systemd import ServiceManager
from agentd.journal.storage import Journal
from agentd.supervisor import Supervisor


class Keepalive:
    """One process's. `look` is called several times a second."""

    def __init__(self, manager: ServiceManager, journal: Journal, supervisors: Mapping[str, Supervisor]) -> None:
        self._manager = manager
        self._journal = journal
        self._supervisors = supervisors
        self._loop = asyncio.get_running_loop()
        self._fed_at = float("-inf")
        self._by_itself: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Tell what is to be told now."""
        self._feed()
        if self._manager.listens:
            states = Counter(supervisor.state for supervisor in self._supervisors.values())
            told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            self._manager.status(told or "no identities")

    def _feed(self) -> None:
        watchdog_s = self._manager.watchdog_s
        if watchdog_s is None or self._loop.time() - self._fed_at < watchdog_s / 4:
            return
        waiting = self._journal.waiting_since
        if waiting is None or self._journal.full or self._loop.time() - waiting < watchdog_s:
            self._fed_at = self._loop.time()
            self._manager.alive()

    def goes_by_the_loop(self) -> None:
        """While the journal changes hands there are no commits to go by, and nobody looks: the loop alone tells."""
        if self._manager.watchdog_s is not None:
            self._by_itself = asyncio.ensure_future(self._each(self._manager.watchdog_s / 4))

    async def _each(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._manager.alive()

    def goes_by_the_journal(self) -> None:
        """The journal is here again, or nothing more is to be told."""
        if self._by_itself is not None:
            self._by_itself.cancel()
