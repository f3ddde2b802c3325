"""Deliveries that were given up.

Always true: one row per delivery, the newest death of it.
Not here: the record itself, which stays in the log (events.py).
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Sequence
from typing import Any

from agentd.journal.sqlite.faults import BrokenChange
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.sqlite.tallies import Tally
from agentd.journal.storage import Dead, DeadDropped, DeadRow

_LETTER_COLUMNS = 8


def counts(connection: sqlite3.Connection) -> Tally:
    """Letters on the list of each identity, which are those that nobody is through with."""
    return Tally(connection, SQL["dead_counts"], SQL["dead_count"])


def write(connection: sqlite3.Connection, plugins: Names, counts: Tally, changes: Sequence[Dead | DeadDropped]) -> None:
    """Put deliveries with the dead letters, and mark those that somebody is through with, in the order given.

    Raises BrokenChange for a dead letter that there is not.
    """
    for are_drops, group in itertools.groupby(changes, lambda change: isinstance(change, DeadDropped)):
        if are_drops:
            _drop(connection, counts, [change for change in group if isinstance(change, DeadDropped)])
        else:
            _put(connection, plugins, counts, [change for change in group if isinstance(change, Dead)])


def _put(connection: sqlite3.Connection, plugins: Names, counts: Tally, letters: Sequence[Dead]) -> None:
    seals = seals_of(connection)
    places = dict.fromkeys((plugins.number(d.plugin), d.conversation, d.position) for d in letters)
    listed = [connection.execute(SQL["dead_listed"], place).fetchone() for place in places]
    write_rows(connection, SQL["dead_put"], [_row(plugins, letter, seals) for letter in letters])
    for place, row in zip(places, listed, strict=True):
        if row is None:
            counts.grown(_identity(connection, place[1]), 1)


def _drop(connection: sqlite3.Connection, counts: Tally, drops: Sequence[DeadDropped]) -> None:
    for change in drops:
        row = connection.execute(SQL["dead_standing"], (change.number,)).fetchone()
        if row is None:
            raise BrokenChange("no dead letter has this number")
        conversation, dropped_at = row
        if dropped_at is None:
            counts.grown(_identity(connection, conversation), -1)
        connection.execute(SQL["dead_dropped"], (change.at, change.number))


def _identity(connection: sqlite3.Connection, conversation: int) -> str:
    name: str = connection.execute(SQL["conversation_identity"], (conversation,)).fetchone()[0]
    return name


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
