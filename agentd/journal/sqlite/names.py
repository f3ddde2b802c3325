"""Numbers for names, so that hot tables hold integers.

Always true: a number that is remembered is on disk. What a transaction adds is remembered when it commits.
Not here: transactions (writer.py), and reading by name, which joins.
"""

from __future__ import annotations

import sqlite3

from agentd.journal.sqlite.statements import SQL


class Names:
    """The interned names of one table. table: "identity" or "plugin"."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._add = SQL[f"{table}_add"]
        self._find = SQL[f"{table}_find"]
        self._known: dict[str, int] = dict(connection.execute(SQL[f"{table}_numbers"]))
        self._fresh: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The number of a name, added within the running transaction if it is new."""
        known = self._known.get(name)
        return known if known is not None else self._number_of_new(name)

    def _number_of_new(self, name: str) -> int:
        if name not in self._fresh:
            self._connection.execute(self._add, (name,))
            self._fresh[name] = self._connection.execute(self._find, (name,)).fetchone()[0]
        return self._fresh[name]

    def committed(self) -> None:
        """The transaction is on disk."""
        self._known.update(self._fresh)
        self._fresh.clear()

    def rolled_back(self) -> None:
        """The transaction, or a part of it, is undone: ask again for every name that it may have added."""
        self._fresh.clear()
