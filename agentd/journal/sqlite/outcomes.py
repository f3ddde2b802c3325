"""What turns came to, and events that were passed over.

Always true: rows are only ever added.
Not here: who says so (plugins, the dispatcher).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL, write_rows
from agentd.journal.storage import Outcome


def write(connection: sqlite3.Connection, plugins: Names, changes: Sequence[Outcome]) -> None:
    """Add outcomes in the order given."""
    write_rows(
        connection,
        SQL["outcome_add"],
        [(plugins.number(o.plugin), o.conversation, o.first, o.last, o.word, o.data, o.at) for o in changes],
    )


def outcomes(connection: sqlite3.Connection, plugin: str, conversation: int, position: int) -> list[Outcome]:
    """Those of one recorded event with a plugin, oldest first."""
    return [Outcome(*row) for row in connection.execute(SQL["outcome_list"], (plugin, conversation, position))]
