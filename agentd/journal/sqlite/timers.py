"""Wake-ups that plugins asked for.

Always true: within a group the last word on a timer stands.
Not here: when they are due (the dispatcher).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import TimerGone, TimerSet


def write(
    connection: sqlite3.Connection, plugins: Names, identities: Names, changes: Sequence[TimerSet | TimerGone]
) -> None:
    """Set timers, and remove those that are gone."""
    seals = seals_of(connection)
    newest = {change.id: change for change in changes}.values()
    write_rows(
        connection,
        SQL["timer_put"],
        [_row(plugins, identities, change, seals) for change in newest if isinstance(change, TimerSet)],
    )
    for change in newest:
        if isinstance(change, TimerGone):
            connection.execute(SQL["timer_delete"], (change.id,))


def _row(plugins: Names, identities: Names, t: TimerSet, seals: Seals) -> Row:
    place = (plugins.number(t.plugin), identities.number(t.identity), t.conversation, t.conversation_id)
    data = seals.seal(t.data, "timer.data", t.id)
    error = seals.seal_text(t.error, "timer.error", t.id)
    progress = None if t.progress is None else seals.seal(t.progress, "timer.progress", t.id)
    return (t.id, *place, t.name, t.due_at, data, t.failures, error, t.position, t.again, progress)


def timers(connection: sqlite3.Connection, plugin: str) -> list[TimerSet]:
    """Every timer of a plugin, the earliest first."""
    seals = seals_of(connection)
    return [_timer(seals, TimerSet(*row)) for row in connection.execute(SQL["timer_list"], (plugin,))]


def _timer(seals: Seals, t: TimerSet) -> TimerSet:
    return msgspec.structs.replace(
        t,
        data=seals.open(t.data, "timer.data", t.id),
        error=seals.told(t.error, "timer.error", t.id),
        progress=None if t.progress is None else seals.open(t.progress, "timer.progress", t.id),
    )
