"""The hub's SQLite file, or the same in memory.

Statements run on the event loop: each takes microseconds, and a hub is one process for a few people or one test.

Always true: what a transaction wrote survives a killed process (WAL, synchronous=NORMAL), though not a lost machine.
Not here: what the tables mean (their modules).
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from typing import Any


class Database:
    """One open database. `tag`: eight hex digits, random per database, part of every id that the hub gives out."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        if path == ":memory:":
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
