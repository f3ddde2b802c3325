"""One daemon per journal.

The lock belongs to the kernel, so it ends with the process however that ends; what the file says is only for people.

Always true: whoever is refused is told who holds the journal. The file is never removed: a second process could hold
the lock of a removed file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

import msgspec

import agentd
from agentd.errors import JournalUnusable

_LOCKS = Path("/proc/locks")  # the kernel's own list; each line names a file as MAJOR:MINOR:INODE


class Owner(msgspec.Struct, frozen=True):
    """Who holds a journal. since: UTC."""

    host: str
    pid: int
    version: str
    since: str


def holder(journal: Path) -> Owner | None:
    """Who holds a journal, without trying to: a daemon that starts at this moment must not be refused for us."""
    file = journal.with_name(journal.name + ".lock")
    try:
        inode = file.stat().st_ino
        held = any(f":{inode} " in line for line in _LOCKS.read_text("ascii").splitlines() if "FLOCK" in line)
        return msgspec.json.decode(file.read_bytes(), type=Owner) if held else None
    except (OSError, msgspec.MsgspecError):
        return None


class OwnerLock:
    """The lock on `<journal>.lock`, held from construction until `release`."""

    def __init__(self, journal: Path) -> None:
        """Raises JournalUnusable if another process (or this one) holds it, naming the holder."""
        self._path = journal.with_name(journal.name + ".lock")
        # Not inherited by child processes (PEP 446), which would otherwise keep a dead daemon's journal locked.
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        _give_to_owner(self._fd, self._path.parent)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refusal = self._refusal(journal, error)
            os.close(self._fd)
            raise refusal from error
        self._sign()

    def _refusal(self, journal: Path, error: OSError) -> JournalUnusable:
        if not isinstance(error, BlockingIOError):
            return JournalUnusable(f"{self._path} cannot be locked ({error.strerror}). Put the state on a local disk.")
        try:
            owner = msgspec.json.decode(os.pread(self._fd, 4096, 0), type=Owner)
        except msgspec.MsgspecError:  # it has the lock, but has not written its name yet
            holder = "another process"
        else:
            holder = f"agentd {owner.version} on {owner.host}, pid {owner.pid}, since {owner.since}"
        return JournalUnusable(
            f"{journal} is in use by {holder}. Stop that one first, or give this one another state folder."
        )

    def _sign(self) -> None:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        owner = Owner(socket.gethostname(), os.getpid(), agentd.__version__, since)
        # A full disk cannot hold the name, and need not: the lock is held all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, msgspec.json.encode(owner), 0)

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._fd)


def _give_to_owner(fd: int, folder: Path) -> None:
    """What root's commands leave belongs to the folder's user, so that the daemon may lock it."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
