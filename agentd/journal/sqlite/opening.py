"""Opens the journal's file, or says why not and what to do about it.

Always true: a file that is there is never replaced or emptied; what is damaged, foreign, newer or locked is refused
with the remedy. A new file appears under its name only when it is whole. Before an upgrade the whole file was copied.
Not here: the lock between daemons (lock.py), and every statement on the tables.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import msgspec

from agentd.config import Encryption, JournalSettings
from agentd.errors import JournalFull, JournalUnusable
from agentd.journal.sqlite import faults, sealing

_APPLICATION_ID = 0x41676474  # "Agdt": tells a journal from any other SQLite file
_VERSION = re.compile(r"^PRAGMA user_version = (\d+);$", re.MULTILINE)
_STEP = re.compile(r"^(\d{4})_\w+\.sql$")

# Another process that holds the file for longer is a mistake of its operator; while running we ask again anyway.
_BUSY_TIMEOUT_S = 1.0
# A whole check reads about 1 GB a second from memory and is worth that at a start. A larger file is checked page by
# page as it is used.
_CHECK_MAX_BYTES = 1 << 30
# 4 MB: checkpoints stay short, and larger ones were not measurably cheaper.
_CHECKPOINT_PAGES = 1_000
_CACHE_KIB = 16_384  # the upper pages of every index stay in memory with 10,000 conversations
_STATEMENTS = 512  # every named statement in every width stays prepared

LIBRARY = sqlite3.sqlite_version
LIBRARY_MIN = "3.37.0"
"""The SQLite that is here, and the oldest that will do: it has STRICT tables."""


class Schema(msgspec.Struct, frozen=True):
    """The tables of one version: how to make them, and how to get there from older ones.

    steps: version -> the SQL that makes it from the one before.
    """

    version: int
    create: str
    steps: dict[int, str]


def load_schema(folder: Traversable) -> Schema:
    """Read schema.sql and migrations/NNNN_what.sql. Raises ValueError if a step is missing or doubled."""
    create = (folder / "schema.sql").read_text("utf-8")
    version = _VERSION.search(create)
    if version is None:
        raise ValueError("schema.sql does not say its user_version")
    names = [entry for entry in (folder / "migrations").iterdir() if _STEP.match(entry.name)]
    steps = {int(entry.name[:4]): entry.read_text("utf-8") for entry in names}
    if sorted(int(entry.name[:4]) for entry in names) != list(range(2, int(version[1]) + 1)):
        raise ValueError(f"migrations/ must hold one step for each version from 2 to {version[1]}")
    return Schema(int(version[1]), create, steps)


SCHEMA = load_schema(resources.files(__package__))


def open_writer(
    path: Path, settings: JournalSettings, schema: Schema = SCHEMA, *, checked: bool = False, content: bool = True
) -> sealing.Connection:
    """The one connection that writes: file made if it is new, checked, upgraded, and set to sync every commit.

    A file that is larger than `max_mb` allows is opened all the same: it is full. checked: its pages were, by whoever
    had it until now. content: what people wrote will be read or written, for which there has to be the key.

    Raises JournalUnusable (damaged, foreign, newer, locked, not ours to write), JournalFull, or ConfigError for a key
    that cannot be read.
    """
    try:
        with told(path):
            if not path.exists():
                _create(path, schema)
            return _open_existing(path, settings, schema, checked=checked, content=content)
    except OSError as error:
        raise JournalUnusable(f"{path} cannot be opened: {error.strerror}. Check its folder and owner.") from error


def open_reader(path: Path, *, at_rest: bool = False, encryption: Encryption | None = None) -> sealing.Connection:
    """A connection that only reads; in WAL it never waits for the writer.

    at_rest: nobody has the file open, so that it is read without locks and without files beside it. encryption: what
    its values are sealed with; None for who reads none.
    """
    with told(path):
        connection = _connect(path, "ro&immutable=1" if at_rest else "ro")
        try:
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            if encryption is not None:
                sealing.unlock(connection, encryption, to_write=False)
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into a refusal with its remedy."""
    try:
        yield
    except sqlite3.Error as error:
        verdict = faults.verdict(error, path)
        if isinstance(verdict, faults.MustWait):
            raise _refusal_to_wait(path, verdict) from error
        raise verdict or faults.unusable(path, error, faults.UNEXPECTED) from error


def _refusal_to_wait(path: Path, wait: faults.MustWait) -> JournalFull | JournalUnusable:
    if wait.full:
        return JournalFull(f"{wait}. Make room on its disk, then start again.")
    return JournalUnusable(
        f"{wait}. Find it with `fuser '{path}'` (a sqlite3 shell, a backup?), end it, then start again."
    )


def _connect(path: Path, mode: str) -> sealing.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        factory=sealing.Connection,
        isolation_level=None,  # transactions are begun and ended by name, in writer.py
        cached_statements=_STATEMENTS,
    )


def _create(path: Path, schema: Schema) -> None:
    """Build the file under another name and rename it: an empty journal is then always a damaged one."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise JournalUnusable(f"{path} is missing, but {wal} has its last commits. Put the file back beside it.")
    new = path.with_name(path.name + ".new")
    for leftover in (new, new.with_name(new.name + "-journal")):
        leftover.unlink(missing_ok=True)
    make_private(new)
    with contextlib.closing(_connect(new, "rw")) as connection:
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};\n{schema.create}\nCOMMIT;"
        )
    new.rename(path)
    sync(path.parent)


def _open_existing(
    path: Path, settings: JournalSettings, schema: Schema, *, checked: bool, content: bool
) -> sealing.Connection:
    if path.is_file() and not path.stat().st_size:
        raise JournalUnusable(f"{path} is empty, and a journal never is. Put a backup in its place, or remove it.")
    connection = _connect(path, "rw")
    try:
        connection.execute("PRAGMA synchronous = FULL")
        _refuse_unknown(connection, path, schema)
        if not checked:
            _check(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {settings.wal_max_mb << 20}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        _upgrade(connection, path, schema)
        if settings.max_mb:
            pages = (settings.max_mb << 20) // _pragma(connection, "page_size")
            connection.execute(f"PRAGMA max_page_count = {pages}")
        connection.execute("PRAGMA foreign_keys = ON")
        if content:
            sealing.unlock(connection, settings.encryption, to_write=True)
        connection.executescript("BEGIN IMMEDIATE; ROLLBACK;")  # a lock that another process holds shows now
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of a journal's tables. Raises JournalUnusable if it is another program's database."""
    if _pragma(connection, "application_id") != _APPLICATION_ID:
        raise JournalUnusable(f"{path} is a database, but not a journal of agentd. Name another file.")
    return _pragma(connection, "user_version")


def _refuse_unknown(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    version = version_of(connection, path)
    if version > schema.version:
        raise JournalUnusable(
            f"{path} was written by a newer agentd (version {version} of its tables; this one knows "
            f"{schema.version}). Run that agentd, or put the backup of before its upgrade in place: {path}.v*.backup"
        )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if path.stat().st_size > _CHECK_MAX_BYTES:
        return
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise JournalUnusable(f"{path} cannot be used (quick_check). {faults.DAMAGED.format(path=path)}")


def _upgrade(connection: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Run the missing steps, each in its own transaction with its new version number."""
    version = _pragma(connection, "user_version")
    if version < schema.version:
        _back_up(connection, path, version)
    for step in range(version + 1, schema.version + 1):
        # executescript ends a transaction that was begun before it, so the script begins its own.
        script = f"BEGIN IMMEDIATE;\n{schema.steps[step]}\nPRAGMA user_version = {step};\nCOMMIT;"
        try:
            connection.executescript(script)
        except sqlite3.Error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _back_up(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the whole journal beside it; the copy has its name only when it is whole and on disk."""
    taken_at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    backup = path.with_name(f"{path.name}.v{version}-{taken_at}.backup")
    unfinished = path.with_name(f"{path.name}.backup-unfinished")
    unfinished.unlink(missing_ok=True)
    make_private(unfinished)  # VACUUM INTO accepts an empty file, and would make one that others can read
    connection.execute("VACUUM INTO ?", (str(unfinished),))
    sync(unfinished)
    unfinished.rename(backup)
    sync(path.parent)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def make_private(path: Path) -> None:
    """An empty file that only we can read; SQLite gives its -wal and -shm the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def sync(path: Path) -> None:
    """Put a file or folder on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
