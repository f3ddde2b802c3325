"""Conversations in which no handler runs for the time being.

Always true: within a group the last word on a conversation stands.
Not here: when a pause ends by itself (the dispatcher).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agentd.journal.sqlite.statements import SQL, write_rows
from agentd.journal.storage import Paused, Resumed


def write(connection: sqlite3.Connection, changes: Sequence[Paused | Resumed]) -> None:
    """Pause conversations, and resume them."""
    newest = {change.number: change for change in changes}.values()
    paused = [(p.number, p.at, p.until, p.reason, p.watchers) for p in newest if isinstance(p, Paused)]
    write_rows(connection, SQL["pause_put"], paused)
    for change in newest:
        if isinstance(change, Resumed):
            connection.execute(SQL["pause_delete"], (change.number,))


def pauses(connection: sqlite3.Connection) -> list[Paused]:
    """All of them, the oldest first."""
    return [
        Paused(
            number=number,
            identity=identity,
            conversation=conversation,
            at=at,
            until=until,
            reason=reason,
            watchers=bool(watchers),
        )
        for number, identity, conversation, at, until, reason, watchers in connection.execute(SQL["pause_list"])
    ]
