"""Deliveries that were given up.

Always true: one row per delivery, the newest death of it.
Not here: the record itself, which stays in the log (events.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Dead


def write(connection: sqlite3.Connection, plugins: Names, changes: Sequence[Dead]) -> None:
    """Put deliveries with the dead letters."""
    write_rows(
        connection,
        SQL["dead_put"],
        [_row(plugins, change) for change in changes],
    )


def _row(plugins: Names, d: Dead) -> Row:
    place = (plugins.number(d.plugin), d.conversation, d.position)
    return (*place, d.attempts, d.error, d.traceback, d.plugin_version, d.died_at)


def dead(connection: sqlite3.Connection, identity: str | None, limit: int) -> list[Dead]:
    """Dead letters of one identity or of all, newest first."""
    return [Dead(*row) for row in connection.execute(SQL["dead_list"], (identity, limit))]
