"""Starts the process that is to take over: the program as it is installed now, with the same arguments.

Under a service manager it has to be started from here. Only so it has the service's control group, user, sandbox,
credentials and log; whoever starts it from a terminal has none of them, and the manager would not know it.

Always true: until it has the journal, its end is waited for here; from then on never. When this process has ended, the
manager is its parent, and hears how it ended even where that was before: it restarts it as one of its own.
Not here: what the two say to each other (departing, arriving), when it may be done (the daemon).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agentd.control.refusal import ControlError
from agentd.handover.departing import Departure

log = logging.getLogger("agentd.handover")

_BEGIN_S = 600.0  # for it to read its configuration, load its plugins and set them up; these have bounds of their own
_END_S = 5.0  # from SIGKILL to its end
_EXIT_CONFIG = 78

_GOES_ON = "this one goes on as if nothing had been"


class Upgrade:
    """One process that is to take over, and whether it does. pid: its own."""

    def __init__(self, command: list[str]) -> None:
        loop = asyncio.get_running_loop()
        # Not asyncio's or subprocess's: both would take the news of its end from the manager.
        self.pid = os.posix_spawn(command[0], command, os.environ, setsigmask=())
        self._departure: asyncio.Future[tuple[Departure, str]] = loop.create_future()
        self._refusal: ControlError | None = None
        self._ended: asyncio.Future[int] = loop.create_future()
        self._process = os.pidfd_open(self.pid)
        loop.add_reader(self._process, self._reap)
        log.info("started %s, which is to take over, pid %d", " ".join(command), self.pid)

    def _reap(self) -> None:
        self._let_go()
        self._ended.set_result(os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]))

    def _let_go(self) -> None:
        asyncio.get_running_loop().remove_reader(self._process)
        os.close(self._process)

    def refused(self, refusal: ControlError) -> None:
        """It has asked, and was told this."""
        self._refusal = refusal

    def accepted(self, departure: Departure, version: str) -> None:
        """It has asked, and takes over if nothing comes between."""
        if not self._departure.done():
            self._departure.set_result((departure, version))

    def taken(self) -> None:
        """It has the journal: its end is for the manager to hear of."""
        if not self._ended.done():
            self._let_go()

    async def outcome(self) -> tuple[Departure, str]:
        """Its version, once everything runs there. Raises ControlError if it is not to be: it has ended then."""
        await asyncio.wait((self._departure, self._ended), timeout=_BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
        if not self._departure.done():
            gave_up = not self._ended.done()
            await self.call_off()
            raise self._failure(gave_up)
        departure, version = self._departure.result()
        serves: list[asyncio.Future[Any]] = [departure.serves, self._ended]
        await asyncio.wait(serves, return_when=asyncio.FIRST_COMPLETED)
        if not departure.serves.done():
            raise self._failure(gave_up=False)
        return departure, version

    def _failure(self, gave_up: bool) -> ControlError:
        if self._refusal is not None:
            return ControlError(409, "NOT_UPGRADED", self._refusal.message, self._refusal.remedy)
        if gave_up:
            told = f"the new process has not asked for anything within {_BEGIN_S:g} s"
            return ControlError(409, "NOT_UPGRADED", told, f"see the log; {_GOES_ON}")
        code = self._ended.result()
        told = f"the new process has ended with code {code}"
        if code == _EXIT_CONFIG:
            told += ": its configuration or a plugin is broken"
        return ControlError(409, "NOT_UPGRADED", told, f"mend what the log says; {_GOES_ON}")

    async def call_off(self) -> None:
        """End it, if it has not asked yet. It has no journal, so that nothing is lost with it."""
        if self._departure.done() or self._ended.done():
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        await asyncio.wait((self._ended,), timeout=_END_S)


def own_command() -> list[str]:
    """How this program was started, and that it is to take over."""
    words = [*sys.argv[1:], *(["--take-over"] if "--take-over" not in sys.argv else [])]
    program = Path(sys.argv[0])
    if program.name != "__main__.py" and os.access(program, os.X_OK) and program.is_file():
        return [str(program), *words]
    return [sys.executable, "-m", "agentd", *words]
