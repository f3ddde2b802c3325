"""What turns came to, and events that were passed over.

Always true: rows are only ever added.
Not here: who says so (plugins, the dispatcher).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from agentd.errors import ValueDamaged
from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Outcome


def write(connection: sqlite3.Connection, plugins: Names, changes: Sequence[Outcome]) -> None:
    """Add outcomes in the order given."""
    seals = seals_of(connection)
    write_rows(
        connection,
        SQL["outcome_add"],
        [_row(plugins.number(o.plugin), o, seals) for o in changes],
    )


def _row(plugin: int, o: Outcome, seals: Seals) -> Row:
    data = None if o.data is None else seals.seal(o.data, "outcome.data", plugin, o.conversation, o.first, o.last)
    return (plugin, o.conversation, o.first, o.last, o.word, data, o.at)


def outcomes(connection: sqlite3.Connection, plugin: str, conversation: int, position: int) -> list[Outcome]:
    """Those of one recorded event with a plugin, oldest first."""
    seals = seals_of(connection)
    found = connection.execute(SQL["outcome_list"], (plugin, conversation, position))
    return [_outcome(seals, number, Outcome(*row)) for number, *row in found]


def _outcome(seals: Seals, plugin: int, o: Outcome) -> Outcome:
    if o.data is None:
        return o
    place = (plugin, o.conversation, o.first, o.last)
    try:
        data = seals.open(o.data, "outcome.data", *place)
    except ValueDamaged as damage:
        data = msgspec.json.encode(str(damage))
    return msgspec.structs.replace(o, data=data)
