"""Numbers that tell how many rows there are, or how large they are: kept as rows change, so that nobody counts them.

Always true: what `of` tells is true of the rows on disk, of all of them.
Not here: which change counts how much (the modules of the tables).
"""

from __future__ import annotations

import sqlite3
from collections import Counter


class Tally:
    """One number for each name. all_: the statement that counts for every name, read once. one: the same for one."""

    def __init__(self, connection: sqlite3.Connection, all_: str, one: str) -> None:
        self._connection = connection
        self._one = one
        self._known: dict[str, int] = dict(connection.execute(all_))
        self._grown: Counter[str] = Counter()
        self._doubtful: set[str] = set()

    def of(self, name: str) -> int:
        """What is on disk. The one method that another thread may call."""
        return self._known.get(name, 0)

    def grown(self, name: str, by: int) -> None:
        """The running transaction makes it so much larger, or smaller."""
        self._grown[name] += by

    def committed(self) -> None:
        """The transaction is on disk."""
        for name, by in self._grown.items():
            self._known[name] = self._known.get(name, 0) + by
        self._grown.clear()
        while self._doubtful:
            name = self._doubtful.pop()
            self._known[name] = self._connection.execute(self._one, (name,)).fetchone()[0]

    def rolled_back(self) -> None:
        """All or a part is undone, and which part is not known here: what is on disk in the end is counted again."""
        self._doubtful.update(self._grown)
        self._grown.clear()
