"""The plugins' durable values.

Always true: within a group the last value of a key wins.
Not here: bounds on size (host/context.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL, write_rows
from agentd.journal.storage import StatePut


def write(connection: sqlite3.Connection, plugins: Names, changes: Sequence[StatePut]) -> None:
    """Put values, and remove those that became None."""
    newest = {(plugins.number(c.plugin), c.conversation, c.key): c.value for c in changes}
    kept = [(*place, value) for place, value in newest.items() if value is not None]
    write_rows(connection, SQL["state_put"], kept)
    for place, value in newest.items():
        if value is None:
            connection.execute(SQL["state_delete"], place)


def get(connection: sqlite3.Connection, plugin: str, conversation: int, key: str) -> bytes | None:
    """A plugin's value, or None."""
    row = connection.execute(SQL["state_get"], (plugin, conversation, key)).fetchone()
    return row[0] if row else None
