"""What an error of SQLite means for the journal.

Always true: no text names anything but the file, the table and SQLite's own code; never content.
Not here: what is done about it (group_commit.py waits, opening.py refuses).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

from agentd.errors import JournalError, JournalUnusable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}

# As much as a commit of ordinary size needs. A filesystem with less is full to us.
_ROOM_BYTES = 65_536


class MustWait(JournalError):
    """The same write will succeed later.

    full: for want of room; else another process holds the file. at_limit: the journal's own limit leaves none.
    """

    def __init__(self, why: str, *, full: bool, at_limit: bool = False) -> None:
        self.full = full
        self.at_limit = at_limit
        super().__init__(why)


class BrokenChange(Exception):
    """A change that the journal cannot ever hold. The text never quotes its values."""


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 for an error that the Python module raised by itself."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def verdict(error: sqlite3.Error, path: Path, *, limited: bool = False) -> MustWait | JournalUnusable | None:
    """What to do about a failed statement: wait, give the file up, or None where the statement itself is to blame.

    limited: the file may not grow past `max_mb`, so it can be full on a disk that has room.
    """
    code = primary_code(error)
    if code == sqlite3.SQLITE_FULL and limited and has_room(path.parent):
        why = f"{path} has reached agentd.journal.max_mb; raise it and start again"
        return MustWait(why, full=True, at_limit=True)
    if code == sqlite3.SQLITE_FULL or (code in _DISK and not has_room(path.parent)):
        return MustWait(f"no room for {path}", full=True)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return MustWait(f"{path} is held by another process", full=False)
    remedy = _REMEDIES.get(code)
    return unusable(path, error, remedy) if remedy else None


def unusable(path: Path, error: sqlite3.Error, remedy: str) -> JournalUnusable:
    """The refusal of a file, with its name, SQLite's word for the fault, and the remedy."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return JournalUnusable(f"{path} cannot be used ({name}). {remedy.format(path=path)}")


def has_room(folder: Path) -> bool:
    """Try to write and sync a small file.

    Free-space figures would miss a quota, which SQLite reports as an I/O error like any other.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_ROOM_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno not in _NO_ROOM
    return True


DAMAGED = (
    "It is damaged, and agentd leaves it as it is. Keep a copy of it and of the -wal file beside it; then put a backup "
    "in its place, or save what can be read: sqlite3 '{path}' .recover | sqlite3 '{path}.recovered'"
)
UNEXPECTED = "It is not as this version of agentd expects it, which leaves it as it is. Put a backup in its place."
_DISK = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
_REMEDIES = {
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_IOERR: "The disk answered with an error: see the kernel log, check the disk, then start again.",
    sqlite3.SQLITE_CANTOPEN: "Check that the file and its folder exist and belong to the user that runs agentd.",
    sqlite3.SQLITE_PERM: "Check that the file and its folder belong to the user that runs agentd.",
    sqlite3.SQLITE_READONLY: "It cannot be written: check its owner, its mode, and whether the disk is mounted rw.",
    sqlite3.SQLITE_NOLFS: "The filesystem cannot hold a file of this size.",
    sqlite3.SQLITE_PROTOCOL: "Its locks do not work: put it on a local disk.",
}
