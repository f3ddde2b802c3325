"""Tells the service manager what it asks to be told: ready, status, reloading, stopping, alive.

A unit with Type=notify sets $NOTIFY_SOCKET, and WatchdogSec sets $WATCHDOG_USEC; without them every call does nothing.

Always true: telling never raises and never blocks: a service manager that does not listen is no reason to stop. What it
must not miss is told again until it has room for it, in order; what will be told anew anyway is not.
Not here: what "alive" means (the daemon).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Mapping

_AGAIN_S = 0.05


class ServiceManager:
    """The manager that started this process, if there is one. environ: of the process."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the null byte of the abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environ)
        self._status = ""
        self._owed: deque[str] = deque()
        self._paying: asyncio.Task[None] | None = None

    @property
    def listens(self) -> bool:
        """Somebody wants to be told."""
        return bool(self._address)

    def ready(self) -> None:
        """Everything runs, from the start on or again after `reloading`."""
        self._tell_surely("READY=1")

    def reloading(self) -> None:
        """The configuration is read again; `ready` ends it, whether it was taken or refused.

        The time goes with it since systemd of Type=notify-reload waits for ever for a READY=1 behind it otherwise.
        """
        self._tell_surely(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1_000}")

    def stopping(self) -> None:
        """An orderly stop has begun."""
        self._tell_surely("STOPPING=1")

    def alive(self) -> None:
        """The watchdog may wait for another `watchdog_s`."""
        self._tell("WATCHDOG=1")

    def status(self, line: str) -> None:
        """One line for `systemctl status`; told again only when it differs."""
        if line != self._status and self._tell(f"STATUS={line}"):
            self._status = line

    @property
    def address(self) -> str:
        """Where it listens, "" if nobody does."""
        return self._address

    def succeeded_by(self, pid: int) -> None:
        """Look after this process from now on. The watchdog begins anew: it did not hear it while the two changed."""
        self._tell_surely(f"MAINPID={pid}\nWATCHDOG=1")

    async def heard(self, timeout_s: float) -> None:
        """Wait so long for it to have room for what it must not miss: a process that ends tells nothing any more."""
        if self._paying is not None:
            await asyncio.wait((self._paying,), timeout=timeout_s)

    def _tell_surely(self, state: str) -> None:
        if self._owed or not self._tell(state):
            self._owed.append(state)
            if self._paying is None or self._paying.done():
                self._paying = asyncio.get_running_loop().create_task(self._pay(), name="service manager")

    async def _pay(self) -> None:
        while self._owed:
            await asyncio.sleep(_AGAIN_S)
            while self._owed and self._tell(self._owed[0]):
                self._owed.popleft()

    def _tell(self, state: str) -> bool:
        """Whether nothing is to be gained from telling it again: only a full queue passes."""
        if self._address:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.setblocking(False)
                try:
                    manager.sendto(state.encode(), self._address)
                except BlockingIOError:
                    return False
        return True


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds within which `alive` must be told, None if nobody waits for it."""
    asked_us, meant_for = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not asked_us.isdigit() or (meant_for and meant_for != str(os.getpid())):
        return None
    return int(asked_us) / 1_000_000
