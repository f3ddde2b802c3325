"""Whether this process hands over when it is asked to, or when it is told to have itself replaced.

Always true: of those who ask one is accepted at a time, and nothing has happened to whoever is refused.
Not here: the hand-over itself (departing.py, the daemon), the new process (upgrading.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from agentd import __version__
from agentd.control.api import HandOverRequest
from agentd.control.refusal import ControlError
from agentd.control.systemd import ServiceManager
from agentd.handover.departing import Departure
from agentd.handover.messages import PROTOCOL
from agentd.handover.upgrading import Upgrade, own_command

log = logging.getLogger("agentd")

RESTART = "stop this one, then start that one"

Why = tuple[str, str]
"""What stands against it, and what to do instead."""


class Asked:
    """What came of being asked. departing: done when somebody was accepted.

    tables: the version of the journal's. keeps: what the daemon itself has against handing over now.
    """

    def __init__(self, manager: ServiceManager, tables: int, keeps: Callable[[], Why | None]) -> None:
        self._manager = manager
        self._tables = tables
        self._keeps = keeps
        self._loop = asyncio.get_running_loop()
        self._upgrading: asyncio.Future[Upgrade] | None = None
        self.departing: asyncio.Future[Departure] = self._loop.create_future()

    @property
    def upgrade(self) -> Upgrade | None:
        """The process that was started to take over, while nothing has come of it."""
        begun = self._upgrading
        return begun.result() if begun is not None and begun.done() and not begun.exception() else None

    def kept(self) -> None:
        """Nothing came of it: everything is here, and somebody may ask again."""
        if (upgrade := self.upgrade) is not None:
            upgrade.kept()
        self.departing = self._loop.create_future()

    async def have_replaced(self) -> dict[str, Any]:
        """See control.api.Daemon.upgrade."""
        if (why := self._keeps_to_itself()) is not None:
            raise ControlError(409, "NOT_UPGRADED", *why)
        if not self._manager.listens:
            told = "no service manager looks after this daemon, nor would any after its successor"
            raise ControlError(409, "NOT_UPGRADED", told, "start that one yourself: agentd run --take-over")
        if self._upgrading is not None:
            raise ControlError(409, "NOT_UPGRADED", "another process is to take over already", "wait for it")
        self._upgrading = asyncio.ensure_future(Upgrade.begin(own_command()))
        try:
            upgrade = await self._upgrading
            departure, version = await upgrade.outcome()
        except ControlError as refused:
            log.warning("not upgraded: %s", refused)
            raise
        finally:
            self._upgrading = None
        former = {"former_version": __version__, "former_pid": os.getpid()}
        return {"version": version, "pid": upgrade.pid, **former, "turns": departure.open}

    async def hand_over(self, wanted: HandOverRequest) -> dict[str, Any]:
        """See control.api.Daemon."""
        upgrade = self.upgrade
        ours = upgrade is not None and upgrade.pid == wanted.pid
        try:
            departure = await self._accepted(wanted)
        except ControlError as refused:
            if upgrade is not None and ours:
                upgrade.refused(refused)
            raise
        if upgrade is not None and ours:
            upgrade.accepted(departure, wanted.version)
        return {"version": __version__, "pid": os.getpid()}

    async def _accepted(self, wanted: HandOverRequest) -> Departure:
        if (why := self._keeps_everything(wanted)) is not None:
            raise ControlError(409, "NOT_HANDED_OVER", *why)
        departure = Departure(wanted.pid)
        try:
            await departure.connect(wanted.socket)
        except OSError as error:
            why = f"nobody listens at {wanted.socket} ({error.strerror})", "start that one again"
            raise ControlError(409, "NOT_HANDED_OVER", *why) from None
        if (begun := self._keeps_everything(wanted)) is not None:  # meanwhile
            departure.forget()
            raise ControlError(409, "NOT_HANDED_OVER", *begun)
        log.info("agentd %s takes over, pid %d", wanted.version, wanted.pid)
        self.departing.set_result(departure)
        return departure

    def _keeps_everything(self, wanted: HandOverRequest) -> Why | None:
        """What stands against a hand-over to this process."""
        if (why := self._keeps_to_itself()) is not None:
            return why
        theirs = f"agentd {wanted.version}"
        if wanted.protocol != PROTOCOL:
            return f"it hands over by protocol {PROTOCOL}, and {theirs} takes over by {wanted.protocol}", RESTART
        if wanted.tables != self._tables:
            told = f"its journal is of version {self._tables}, and {theirs} works with {wanted.tables}"
            return told, f"{RESTART}, which upgrades it (agentd upgrade-check)"
        if self._manager.listens and wanted.manager != self._manager.address:
            return "its service manager would lose sight of its successor", "have it start that one: agentd upgrade"
        return None

    def _keeps_to_itself(self) -> Why | None:
        """What stands against a hand-over to anybody."""
        if self.departing.done():
            return "another process is taking over already", "look at that one: agentd status"
        return self._keeps()
