"""Deliveries that were given up.

Always true: one row per delivery, the newest death of it.
Not here: the record itself, which stays in the log (events.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from agentd.journal.sqlite.faults import BrokenChange
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Dead, DeadDropped, DeadRow

_LETTER_COLUMNS = 8


def write(connection: sqlite3.Connection, plugins: Names, changes: Sequence[Dead | DeadDropped]) -> None:
    """Put deliveries with the dead letters, then mark those that somebody is through with.

    Raises BrokenChange for a dead letter that there is not.
    """
    seals = seals_of(connection)
    write_rows(
        connection,
        SQL["dead_put"],
        [_row(plugins, change, seals) for change in changes if isinstance(change, Dead)],
    )
    for change in changes:
        if isinstance(change, DeadDropped):
            result = connection.execute(SQL["dead_dropped"], (change.at, change.number))
            if result.rowcount != 1:
                raise BrokenChange("no dead letter has this number")


def _row(plugins: Names, d: Dead, seals: Seals) -> Row:
    place = (plugins.number(d.plugin), d.conversation, d.position)
    error = seals.seal_text(d.error, "dead.error", *place)
    traceback = seals.seal_text(d.traceback, "dead.traceback", *place)
    return (*place, d.attempts, error, traceback, d.plugin_version, d.died_at)


def dead(connection: sqlite3.Connection, identity: str | None, limit: int, dropped_too: bool) -> list[DeadRow]:
    """Dead letters of one identity or of all, newest first."""
    return [
        _dead_row(seals_of(connection), row)
        for row in connection.execute(SQL["dead_list"], (identity, limit, dropped_too))
    ]


def find(connection: sqlite3.Connection, number: int) -> DeadRow | None:
    """One dead letter."""
    row = connection.execute(SQL["dead_find"], (number,)).fetchone()
    return _dead_row(seals_of(connection), row) if row else None


def at(connection: sqlite3.Connection, conversation: int, position: int) -> list[DeadRow]:
    """The dead letters of one event."""
    return [
        _dead_row(seals_of(connection), row) for row in connection.execute(SQL["dead_at"], (conversation, position))
    ]


def _dead_row(seals: Seals, row: Sequence[Any]) -> DeadRow:
    name, conversation, position, attempts, error, traceback, *rest = row[:_LETTER_COLUMNS]
    number, identity, conversation_id, dropped_at, plugin = row[_LETTER_COLUMNS:]
    place = (plugin, conversation, position)
    return DeadRow(
        name,
        conversation,
        position,
        attempts,
        seals.told(error, "dead.error", *place),
        seals.told(traceback, "dead.traceback", *place),
        *rest,
        number=number,
        identity=identity,
        conversation_id=conversation_id,
        dropped_at=dropped_at,
    )
