"""Lanes: how far each has handled, and the events that failed in it.

Always true: after a group the rows are as if its changes had been written one by one; a lane that never failed costs
one row in one insert.
Not here: whether to try again (core/retry.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from agentd.journal.sqlite.names import Names
from agentd.journal.sqlite.sealing import Seals, seals_of
from agentd.journal.sqlite.statements import SQL, Row, write_rows
from agentd.journal.storage import Attempt, CursorMoved, Rewound

Lane = tuple[int, int]

_EVERY_POSITION = (1 << 63) - 1


class FailedLanes:
    """Which lanes may have attempt rows, so that a cursor clears rows only where there can be any.

    A lane may be listed in vain, which costs one empty delete; it is never missing.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(SQL["attempt_lanes"])
        self._highest: dict[Lane, int] = {(plugin, conversation): top for plugin, conversation, top in rows}
        self._cleared: dict[Lane, int] = {}

    def __contains__(self, lane: Lane) -> bool:
        return lane in self._highest

    def noted(self, lane: Lane, position: int) -> None:
        """The running transaction writes an attempt row."""
        self._highest[lane] = max(position, self._highest.get(lane, 0))
        self._cleared.pop(lane, None)

    def cleared(self, lane: Lane, position: int) -> None:
        """The running transaction deletes the rows of a lane up to a position."""
        self._cleared[lane] = position

    def committed(self) -> None:
        """The transaction is on disk."""
        for lane, position in self._cleared.items():
            if self._highest.get(lane, 0) <= position:
                self._highest.pop(lane, None)
        self._cleared.clear()

    def rolled_back(self) -> None:
        """All or a part is undone: the rows may still be there."""
        self._cleared.clear()


def write(
    connection: sqlite3.Connection,
    plugins: Names,
    failed: FailedLanes,
    changes: Sequence[CursorMoved | Rewound | Attempt],
) -> None:
    """Move cursors and note attempts, each lane's in the order given."""
    cursors: dict[Lane, int] = {}
    rewound: dict[Lane, Rewound] = {}
    cleared: dict[Lane, int] = {}
    attempts: dict[Lane, dict[int, Attempt]] = {}
    for change in changes:
        lane = (plugins.number(change.plugin), change.conversation)
        if isinstance(change, Attempt):
            attempts.setdefault(lane, {})[change.position] = change
            continue
        cursors[lane] = change.position
        passed = change.position
        if isinstance(change, Rewound):
            rewound[lane] = change
            passed = _EVERY_POSITION
        if lane in failed:
            cleared[lane] = max(passed, cleared.get(lane, 0))
        if lane in attempts:
            attempts[lane] = {at: row for at, row in attempts[lane].items() if at > passed}
    rows = [(*lane, r.position, r.replay, r.until) for lane, r in rewound.items()]
    write_rows(connection, SQL["cursor_rewound"], rows)
    write_rows(connection, SQL["cursor_put"], [(*lane, position) for lane, position in cursors.items()])
    for lane, position in cleared.items():
        connection.execute(SQL["attempt_clear"], (*lane, position))
        failed.cleared(lane, position)
    _write_attempts(connection, failed, [(lane, row) for lane, rows in attempts.items() for row in rows.values()])


def _write_attempts(connection: sqlite3.Connection, failed: FailedLanes, rows: Sequence[tuple[Lane, Attempt]]) -> None:
    seals = seals_of(connection)
    write_rows(connection, SQL["attempt_put"], [_attempt_row(lane, attempt, seals) for lane, attempt in rows])
    for lane, attempt in rows:
        failed.noted(lane, attempt.position)


def _attempt_row(lane: Lane, a: Attempt, seals: Seals) -> Row:
    place = (*lane, a.position)
    error = seals.seal_text(a.error, "attempt.error", *place)
    progress = None if a.progress is None else seals.seal(a.progress, "attempt.progress", *place)
    return (*place, a.count, error, a.not_before, a.deaths, a.until, progress)


def cursors(connection: sqlite3.Connection, plugin: str) -> dict[int, int]:
    """Conversation number to handled position."""
    return dict(connection.execute(SQL["cursor_list"], (plugin,)))


def replays(connection: sqlite3.Connection, plugin: str) -> dict[int, tuple[int, int]]:
    """Conversation number to (how many replays, position up to which the last one goes)."""
    rows = connection.execute(SQL["cursor_replays"], (plugin,))
    return {conversation: (replay, until) for conversation, replay, until in rows}


def attempts(connection: sqlite3.Connection, plugin: str) -> list[Attempt]:
    """Every failed event of a plugin."""
    seals = seals_of(connection)
    found = connection.execute(SQL["attempt_list"], (plugin,))
    return [_attempt(seals, number, Attempt(*row)) for number, *row in found]


def _attempt(seals: Seals, plugin: int, a: Attempt) -> Attempt:
    place = (plugin, a.conversation, a.position)
    return msgspec.structs.replace(
        a,
        error=seals.told(a.error, "attempt.error", *place),
        progress=None if a.progress is None else seals.open(a.progress, "attempt.progress", *place),
    )
