"""Wake-ups that plugins asked for.

Always true: within a group the last word on a timer stands.
Not here: when they are due (the dispatcher).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import TimerGone, TimerSet


def write(
    connection: sqlite3.Connection, plugins: Names, identities: Names, changes: Sequence[TimerSet | TimerGone]
) -> None:
    """Set timers, and remove those that are gone."""
    newest = {change.id: change for change in changes}.values()
    write_rows(
        connection,
        SQL["timer_put"],
        [_row(plugins, identities, change) for change in newest if isinstance(change, TimerSet)],
    )
    for change in newest:
        if isinstance(change, TimerGone):
            connection.execute(SQL["timer_delete"], (change.id,))


def _row(plugins: Names, identities: Names, t: TimerSet) -> Row:
    place = (plugins.number(t.plugin), identities.number(t.identity), t.conversation, t.conversation_id)
    return (t.id, *place, t.name, t.due_at, t.data, t.failures, t.error, t.position, t.again, t.progress)


def timers(connection: sqlite3.Connection, plugin: str) -> list[TimerSet]:
    """Every timer of a plugin, the earliest first."""
    return [TimerSet(*row) for row in connection.execute(SQL["timer_list"], (plugin,))]
