"""The hub's SQLite file, or the same in memory.

Statements run on the event loop: each takes microseconds, and a hub is one process for a few people or one test.

Always true: what a transaction wrote survives a killed process (WAL, synchronous=NORMAL), though not a lost machine.
The file, and what SQLite puts beside it, is for its owner only from the first byte: mail and digests of keys are in it.
Not here: what the tables mean (their modules).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from agentd.errors import AgentdError

_MODE = 0o600


class StoreUnusable(AgentdError):
    """The hub's file cannot be used; the text names it and the remedy."""


class Database:
    """One open database. `tag`: eight hex digits, random per database, part of every id that the hub gives out."""

    def __init__(self, path: str) -> None:
        """Raises StoreUnusable."""
        in_memory = path == ":memory:"
        with _told_as_unusable(path):
            if not in_memory:
                _make(path)
            self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        with contextlib.ExitStack() as failed:
            failed.callback(self._connection.close)
            with _told_as_unusable(path):
                self._begin(in_memory)
                if not in_memory:
                    _keep_private(path)
            failed.pop_all()

    def _begin(self, in_memory: bool) -> None:
        if in_memory:
            self._connection.execute("PRAGMA journal_mode=MEMORY")
            self._connection.execute("PRAGMA synchronous=OFF")
        else:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.executescript(resources.files(__package__).joinpath("schema.sql").read_text())
        self.tag = self._own_tag()

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        self._connection.close()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """Every row of a query, as tuples."""
        return self._connection.execute(sql, values).fetchall()

    def row(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first row of a query as a tuple, or None."""
        return self._connection.execute(sql, values).fetchone()

    def write(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out one change. Returns the number of rows it touched."""
        return self._connection.execute(sql, values).rowcount

    def write_each(self, sql: str, values: Iterable[Sequence[Any]]) -> int:
        """Carry out one change for each set of values. Returns the number of rows touched in all."""
        return self._connection.executemany(sql, values).rowcount

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the changes inside one whole, or none of them if an exception leaves the block. Does not nest."""
        self._connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _own_tag(self) -> str:
        self.write("INSERT OR IGNORE INTO meta (name, value) VALUES ('tag', ?)", (secrets.token_hex(4),))
        return str(self.row("SELECT value FROM meta WHERE name = 'tag'")[0])


@contextlib.contextmanager
def _told_as_unusable(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StoreUnusable(f"{path} cannot be the hub's store ({why}); name another file") from None


def _make(path: str) -> None:
    """Make the file, which SQLite would do with whatever mode the umask leaves. What it puts beside gets this mode."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE))


def _keep_private(path: str) -> None:
    """Close a file of before to others; not before it is known to be a hub's."""
    for each in (path, f"{path}-wal", f"{path}-shm"):
        with contextlib.suppress(FileNotFoundError):
            Path(each).chmod(_MODE)
