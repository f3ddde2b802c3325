"""Starts the process that is to take over: the program as it is installed now, with the same arguments.

    this process ── launcher ── successor          it starts, and asks to take over
    this process    (gone)      successor          it was accepted: the service manager is its parent from here on

Under a service manager it has to be started from here. Only so it has the service's control group, user, sandbox,
credentials and log; what is started from a terminal has none of them, and the manager would not take it for the main
process. It has to be the manager's own child as well: of any other, systemd notices no end, and at a stop it kills it
without waiting. A process becomes the manager's child when its parent ends, and that is what the launcher is for.

Always true: before the manager is told of the successor, the launcher has ended. What was started takes over, or ends.
If it ends before it was accepted, the launcher tells how.
Not here: what the two say to each other (departing, arriving), when it may be done (the daemon).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

from agentd.control.refusal import ControlError
from agentd.handover.departing import Departure

log = logging.getLogger("agentd.handover")

_BEGIN_S = 600.0  # for it to read its configuration, load its plugins and set them up; these have bounds of their own
_RELEASE_S = 5.0  # for the launcher to end; it does nothing but that
_EXIT_CONFIG = 78

_GOES_ON = "this one goes on as if nothing had been"

FORMER = "AGENTD_FORMER"
"""In the environment of the process that is started: who started it. It takes over from that one, or ends: else there
would be two daemons for the same accounts."""

# Kept as text, so that it is of this version also where the one that is installed by now is another. It starts the
# program with our own output, tells its pid, and waits: for its end, which it tells, or for ours to close the pipe.
_LAUNCHER = """
import os, select, sys
output, *command = sys.argv[1:]
pid = os.posix_spawn(command[0], command, os.environ, file_actions=[
    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    (os.POSIX_SPAWN_DUP2, int(output), 1),
    (os.POSIX_SPAWN_CLOSE, int(output)),
])
print(pid, flush=True)
end = os.pidfd_open(pid)
if end in select.select([0, end], [], [])[0]:
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Upgrade:
    """One process that is to take over, and whether it does. pid: its own.

    `refused` or `accepted` when it has asked; after the latter `kept`, if nothing came of it.
    """

    def __init__(self, launcher: Process, pid: int) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self._launcher = launcher
        self._accepted: asyncio.Future[tuple[Departure, str]] = loop.create_future()
        self._kept: asyncio.Future[None] = loop.create_future()
        self._refusal: ControlError | None = None
        self._is_over = False

    @classmethod
    async def begin(cls, command: list[str]) -> Upgrade:
        """Start it. Raises ControlError if that cannot be."""
        output = os.dup(1)
        try:
            launcher = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(output), *command),
                stdin=PIPE,
                stdout=PIPE,
                env={**os.environ, FORMER: str(os.getpid())},
                pass_fds=(output,),
            )
        except OSError as error:
            raise _not_started(f"{sys.executable} ({error.strerror})") from None
        finally:
            os.close(output)
        assert launcher.stdout is not None
        if not (told := await launcher.stdout.readline()):
            await launcher.wait()
            raise _not_started(command[0])
        log.info("started %s, which is to take over, pid %d", " ".join(command), int(told))
        return cls(launcher, int(told))

    def refused(self, refusal: ControlError) -> None:
        """It has asked, and was told this."""
        self._refusal = refusal

    def accepted(self, departure: Departure, version: str) -> None:
        """It has asked, and takes over if nothing comes between."""
        self._accepted.set_result((departure, version))
        self._let_go()

    def kept(self) -> None:
        """Everything is here again."""
        if self._accepted.done() and not self._kept.done():
            self._kept.set_result(None)

    async def released(self) -> None:
        """Return when it is the manager's child."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._launcher.wait(), _RELEASE_S)

    def _let_go(self) -> None:
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()

    async def outcome(self) -> tuple[Departure, str]:
        """Its version, once everything runs there. Raises ControlError if that is not to be."""
        assert self._launcher.stdout is not None
        ended = asyncio.ensure_future(self._launcher.stdout.readline())
        either: list[asyncio.Future[Any]] = [ended, self._accepted]
        await asyncio.wait(either, timeout=_BEGIN_S, return_when=asyncio.FIRST_COMPLETED)
        if self._accepted.done():
            departure, version = self._accepted.result()
            either = [departure.serves, self._kept]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if departure.serves.done():
                return departure, version
            raise _not_upgraded("the new process has not taken over", "see the log")
        if not (in_time := ended.done()):
            self.call_off()
        code = int(await ended or b"0")
        self._is_over = True
        self._let_go()
        await self.released()
        if self._refusal is not None:
            raise ControlError(409, "NOT_UPGRADED", self._refusal.message, self._refusal.remedy)
        if not in_time:
            raise _not_upgraded(f"the new process has asked for nothing within {_BEGIN_S:g} s", "see the log")
        broken = ": its configuration or a plugin is broken" if code == _EXIT_CONFIG else ""
        raise _not_upgraded(f"the new process has ended with code {code}{broken}", "mend what the log says")

    def call_off(self) -> None:
        """End it, if it was not accepted yet. It has no journal, so that nothing is lost with it."""
        if not (self._accepted.done() or self._is_over):
            # Nobody else can have this number: the launcher, which alone could bury it, tells when it has.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def _not_started(what: str) -> ControlError:
    return _not_upgraded(f"{what} cannot be started", "install agentd there again")


def _not_upgraded(told: str, remedy: str) -> ControlError:
    return ControlError(409, "NOT_UPGRADED", told, f"{remedy}; {_GOES_ON}")


def own_command() -> list[str]:
    """How this program was started, and that it is to take over."""
    words = [*sys.argv[1:], *(["--take-over"] if "--take-over" not in sys.argv else [])]
    program = Path(sys.argv[0])
    if program.name != "__main__.py" and os.access(program, os.X_OK) and program.is_file():
        return [str(program), *words]
    return [sys.executable, "-m", "agentd", *words]
