"""The plugins' durable values, and how much of them each plugin keeps.

Always true: within a group the last value of a key wins. The count of a plugin's bytes is that of its rows on disk.
Not here: bounds on size (host/state.py).
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import seals_of
from agentd.journal.sqlite.statements import SQL, read_rows, write_rows
from agentd.journal.sqlite.tallies import Tally
from agentd.journal.storage import SUBSCRIPTIONS, StatePut


def sizes(connection: sqlite3.Connection) -> Tally:
    """Bytes of keys and values per plugin."""
    return Tally(connection, SQL["state_sizes"], SQL["state_size"])


def write(connection: sqlite3.Connection, plugins: Names, sizes: Tally, changes: Sequence[StatePut]) -> None:
    """Put values, and remove those that became None."""
    names = {plugins.number(c.plugin): c.plugin for c in changes}
    seal = seals_of(connection).seal
    newest = {
        (plugins.number(c.plugin), c.conversation, c.key): c.value
        if c.value is None or c.plugin == SUBSCRIPTIONS  # retention asks the disk for these
        else seal(c.value, "state.value", plugins.number(c.plugin), c.conversation, c.key)
        for c in changes
    }
    grown: Counter[int] = Counter()
    for number, size in read_rows(connection, SQL["state_replaced"], list(newest)):
        grown[number] -= size
    for (number, _, key), value in newest.items():
        grown[number] += 0 if value is None else len(key.encode()) + len(value)
    for number, by in grown.items():
        sizes.grown(names[number], by)
    kept = [(*place, value) for place, value in newest.items() if value is not None]
    write_rows(connection, SQL["state_put"], kept)
    for place, value in newest.items():
        if value is None:
            connection.execute(SQL["state_delete"], place)


def get(connection: sqlite3.Connection, plugin: str, conversation: int, key: str) -> bytes | None:
    """A plugin's value, or None."""
    row = connection.execute(SQL["state_get"], (plugin, conversation, key)).fetchone()
    return seals_of(connection).open(row[0], "state.value", row[1], conversation, key) if row else None
