"""Copies of a journal, and what is done to one that no daemon holds: backup, restore, vacuum, a look at its version.

For a command, not for the daemon: everything here blocks. A backup reads through a connection of its own in one
transaction, so it is consistent and holds up no commit, whether a daemon runs or not.

Always true: a copy has its name only when it is whole, checked and on disk, and has mode 0600. What is replaced is kept
beside. What writes holds the owner's lock (lock.py).
Not here: the copy before an upgrade (opening.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agentd.config import JournalSettings
from agentd.errors import JournalFull, JournalUnusable
from agentd.journal.sqlite import faults, opening, resealing, trimming
from agentd.journal.sqlite.events import Part
from agentd.journal.sqlite.lock import OwnerLock
from agentd.journal.sqlite.opening import SCHEMA, Schema
from agentd.journal.storage import Room

Progress = Callable[[int, int], None]
"""Told how many pages are done, of how many."""

_PAGES_PER_STEP = 1_024
_ANY = JournalSettings()

WAL_MAX_MB = 1_024
"""What a daemon may write while it is copied, unless told otherwise: an hour of some 50 messages a second."""


def nobody_watches(done: int, of: int) -> None:
    """For a copy whose progress is not shown."""


class _Bounded:
    """Progress of a copy that ends when the daemon's -wal file has grown too large: it is not emptied while it is read.

    remedy: what to do then. Raises JournalUnusable with it.
    """

    def __init__(self, path: Path, wal_max_mb: int, remedy: str, progress: Progress) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._wal_max_bytes = self._wal_bytes() + wal_max_mb * 1_000_000
        self._max_mb = wal_max_mb
        self._remedy = remedy
        self._progress = progress

    def __call__(self, done: int, of: int) -> None:
        if self._wal_bytes() > self._wal_max_bytes:
            raise JournalUnusable(
                f"{self._wal} has grown by more than {self._max_mb} MB while {100 * done // max(1, of)} % of "
                f"{self._path} were copied; {self._remedy}"
            )
        self._progress(done, of)

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0


class Standing(msgspec.Struct, frozen=True):
    """How a journal's file stands to this program. version: of its tables; known: what this program writes.

    steps: what would run when it is opened, each with its version and what it says about itself.
    """

    version: int
    known: int
    steps: tuple[tuple[int, str], ...]

    @property
    def readable(self) -> bool:
        """This program can open it, after the steps."""
        return self.version <= self.known


def standing(path: Path, schema: Schema = SCHEMA) -> Standing:
    """Look at a journal or a backup of one; nothing is changed. Raises JournalUnusable with the remedy."""
    with reading(path) as connection:
        version = opening.version_of(connection, path)
    steps = ((step, _said(schema.steps[step])) for step in range(version + 1, schema.version + 1))
    return Standing(version, schema.version, tuple(steps))


def rehearse(path: Path, folder: Path, schema: Schema = SCHEMA) -> float:
    """Upgrade a copy of it in this folder, to see that it can be done. Returns the seconds that the upgrade took."""
    copy = folder / "rehearsal.db"
    remedy = "rehearse on a backup: agentd upgrade-check FILE --rehearse"
    with _undisturbed(path):
        _copy(path, copy, _Bounded(path, WAL_MAX_MB, remedy, nobody_watches))
    started = time.monotonic()
    opening.open_writer(copy, JournalSettings(), schema, content=False).close()
    return time.monotonic() - started


def back_up(
    path: Path,
    target: Path,
    *,
    force: bool = False,
    wal_max_mb: int = WAL_MAX_MB,
    progress: Progress = nobody_watches,
) -> int:
    """Copy the journal, also while a daemon writes. Returns the copy's size in bytes.

    force: replace what is at `target`. wal_max_mb: growth of the daemon's -wal file at which this gives up.
    Raises JournalUnusable with the remedy.
    """
    if target.exists() and not force:
        raise JournalUnusable(f"{target} is there already; name another file, or add --force to replace it")
    if target.exists() and path.exists() and target.samefile(path):
        raise JournalUnusable(f"{target} is the journal itself; name another file")
    remedy = "copy to a faster disk, at a quieter hour, or allow more: --wal-max-mb"
    try:
        with _undisturbed(path):
            return _copy(path, target, _Bounded(path, wal_max_mb, remedy, progress))
    except OSError as error:
        raise JournalUnusable(
            f"{target} cannot be written: {error.strerror}. Name a file in another folder."
        ) from error


def restore(backup: Path, path: Path, *, progress: Progress = nobody_watches, schema: Schema = SCHEMA) -> Path | None:
    """Put a backup in the journal's place. Returns where the former journal is kept, or None if there was none.

    Raises JournalUnusable if a daemon holds the journal, or if the backup is not one that this program can read.
    """
    found = standing(backup, schema)
    if not found.readable:
        raise JournalUnusable(
            f"{backup} was written by a newer agentd (version {found.version} of its tables; this one knows "
            f"{found.known}). Restore it with that agentd."
        )
    try:
        with owned(path):
            return _put_in_place(backup, path, progress)
    except OSError as error:
        raise JournalUnusable(f"{path} cannot be replaced: {error.strerror}. Check its folder and owner.") from error


def vacuum(path: Path, settings: JournalSettings = _ANY, progress: Progress = nobody_watches) -> tuple[int, int]:
    """Give the room of what was let go back to the disk. Returns the file's size before and after.

    What is not encrypted as the settings say is written anew, so that nothing of it is left.
    Raises JournalUnusable if a daemon holds it, JournalFull if the disk has no room for the copy that this takes.
    """
    if not path.exists():
        raise _missing(path)
    with owned(path), contextlib.closing(opening.open_writer(path, settings)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.stat().st_size
        with opening.told(path):
            resealing.reseal(connection, progress)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # one of an older agentd becomes as a new one
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return before, path.stat().st_size


@contextlib.contextmanager
def owned(path: Path) -> Iterator[None]:
    """Hold the journal, so that no daemon starts on it. Raises JournalUnusable, which names who has it."""
    lock = OwnerLock(path)
    try:
        yield
    finally:
        lock.release()


def _undisturbed(path: Path) -> contextlib.AbstractContextManager[None]:
    """A daemon that starts while a file at rest is copied would write under the copy's hands."""
    # What no daemon ever had, such as a backup, has no lock beside it, and needs none.
    had = path.with_name(f"{path.name}.lock").exists()
    return owned(path) if had and _is_at_rest(path) else contextlib.nullcontext()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads a journal or a backup of one, whoever else has it open. Raises JournalUnusable."""
    if not path.is_file():
        raise _missing(path)
    with opening.told(path), contextlib.closing(opening.open_reader(path, at_rest=_is_at_rest(path))) as connection:
        opening.version_of(connection, path)
        yield connection


class Look:
    """A look at a journal that somebody else may have open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def trimmable(self, stretch: trimming.Stretch) -> trimming.Found:
        """See journal.retention.Looking."""
        return trimming.find(self._connection, stretch)

    async def newest_in(self, after: int, upto: int) -> float | None:
        """See journal.retention.Looking."""
        return trimming.newest_in(self._connection, after, upto)

    async def parts(self, what: str) -> list[Part]:
        """See journal.retention.Looking."""
        return trimming.parts(self._connection, what)

    def room(self) -> Room:
        """What its pages are used for."""
        return trimming.room(self._connection)


def trimmed(path: Path, limit: int) -> list[trimming.Trimmed]:
    """What retention let go, the last run first."""
    with reading(path) as connection:
        return trimming.trimmed(connection, limit)


def _is_at_rest(path: Path) -> bool:
    """Nobody has it open: whoever does has a -wal file beside it."""
    return not path.with_name(f"{path.name}-wal").exists()


def _missing(path: Path) -> JournalUnusable:
    return JournalUnusable(f"there is no journal at {path}; name its folder with --state")


@contextlib.contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    """An empty file beside the target to build it in, for its owner only and for nobody else to build in meanwhile."""
    path = target.with_name(f"{target.name}.unfinished")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _is_ours(file, path):
            raise JournalUnusable(f"{target} is being written by another process; wait for that, or name another file")
        os.fchmod(file, 0o600)
        os.ftruncate(file, 0)  # one that was killed has left its part
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(file)


def _is_ours(file: int, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(file).st_ino  # else who had it has finished just now
    except (BlockingIOError, FileNotFoundError):
        return False


@contextlib.contextmanager
def _room_for(target: Path) -> Iterator[None]:
    """Tell that there is none of this file's disk, not of the one that is read."""
    try:
        yield
    except sqlite3.Error as error:
        verdict = faults.verdict(error, target)
        if isinstance(verdict, faults.MustWait) and verdict.full:
            raise JournalFull(f"{verdict}; make room on its disk, or name a file on another") from error
        raise


def _copy(path: Path, target: Path, progress: Progress) -> int:
    with _unfinished(target) as unfinished:
        with (
            reading(path) as source,
            _room_for(target),
            contextlib.closing(sqlite3.connect(unfinished, isolation_level=None)) as copy,
        ):
            # Without a transaction of its own, a backup in steps begins anew at each commit of the daemon's.
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            copy.execute("PRAGMA synchronous = OFF")  # it is synced below, once and whole
            source.backup(
                copy, pages=_PAGES_PER_STEP, progress=lambda _, remaining, total: progress(total - remaining, total)
            )
            # One file, whatever the source's mode is: a backup is often on a disk where -wal files are not welcome.
            copy.execute("PRAGMA journal_mode = DELETE")
            if (found := copy.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise JournalUnusable(f"the copy of {path} is not sound ({found}); see: agentd doctor")
        opening.sync(unfinished)
        unfinished.rename(target)
    opening.sync(target.parent)
    return target.stat().st_size


def _put_in_place(backup: Path, path: Path, progress: Progress) -> Path | None:
    new = path.with_name(f"{path.name}.restored")
    _copy(backup, new, progress)
    shutil.chown(new, path.parent.stat().st_uid, path.parent.stat().st_gid)  # root restores for the daemon's user
    kept = _keep(path) if path.exists() else _keep_last_commits(path)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    # Marks of calls that ran when a process died, by positions that now mean other events.
    path.with_name("running").unlink(missing_ok=True)
    new.rename(path)
    opening.sync(path.parent)
    return kept


def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")


def _keep_last_commits(path: Path) -> Path | None:
    """The journal has gone, and should it be found, what was committed last belongs to it."""
    wal, kept = path.with_name(f"{path.name}-wal"), _kept(path)
    if not wal.exists() or not wal.stat().st_size:
        return None
    return wal.rename(kept.with_name(f"{kept.name}-wal"))


def _keep(path: Path) -> Path:
    """Give the present journal a second name, with its -wal file if that cannot be written into it."""
    kept = _kept(path)
    wal, kept_wal = path.with_name(f"{path.name}-wal"), kept.with_name(f"{kept.name}-wal")
    # Links, so that at no moment there is no journal: a daemon that starts then would make a new one. First of all,
    # because SQLite removes the -wal file of a journal whose first page is damaged.
    if wal.exists():
        os.link(wal, kept_wal)
    os.link(path, kept)
    with contextlib.suppress(JournalUnusable, JournalFull):  # what cannot be opened is kept as it is
        # The last connection to close writes the -wal file into the journal.
        opening.open_writer(path, JournalSettings(), content=False).close()
        kept_wal.unlink(missing_ok=True)
    opening.sync(path.parent)
    return kept


def _said(step: str) -> str:
    """The first line of a migration's comment."""
    first = step.lstrip().splitlines()[0]
    return first.removeprefix("--").strip() if first.startswith("--") else ""
