"""What retention lets go: payloads of events, contents of settled sends, what turns came to; and room in the file.

Always true: no event and no send is lost, since its id or key is taken for ever; only its content goes. What may go is
decided in the transaction that lets it go, so that nothing that has become needed meanwhile goes with it. Whatever goes
leaves a trace.
Not here: how old is old, when to look (journal/retention.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from agentd.journal.sqlite import events
from agentd.journal.sqlite.events import Part
from agentd.journal.sqlite.statements import SQL, write_rows
from agentd.journal.storage import SUBSCRIPTIONS, Room, Shrink, Trim

_FIND = {
    "event": SQL["trimmable_event"],
    "outbox": SQL["trimmable_outbox"],
    "outcome": SQL["trimmable_outcome"],
}
_STAYS = {"event": SQL["trimmed_event"], "outbox": SQL["trimmed_outbox"]}
_REMOVE = {"event": SQL["event_remove"], "outbox": SQL["outbox_remove"], "outcome": SQL["outcome_remove"]}
_PUT_BACK = {"event": SQL["event_append"], "outbox": SQL["outbox_put_back"]}
_INCREMENTAL = 2  # what `PRAGMA auto_vacuum` says of a file whose pages know who refers to them
_LAST = {"outbox": SQL["outbox_last"], "outcome": SQL["outcome_last"]}


class Stretch(NamedTuple):
    """A stretch of the log or the outbox, half-open at its start, and what in it may go."""

    what: str
    after: int
    upto: int
    before: float
    ignoring: tuple[str, ...]


class Found(NamedTuple):
    """What may go. first, last: positions or outbox numbers. oldest, newest: Unix seconds."""

    rows: int = 0
    bytes: int = 0
    first: int = 0
    last: int = 0
    oldest: float = 0.0
    newest: float = 0.0

    def joined(self, later: Found) -> Found:
        """This and what was found in a later stretch."""
        if not self.rows or not later.rows:
            return later if later.rows else self
        return Found(
            self.rows + later.rows,
            self.bytes + later.bytes,
            self.first,
            later.last,
            min(self.oldest, later.oldest),
            max(self.newest, later.newest),
        )


class Trimmed(msgspec.Struct, frozen=True):
    """What one run let go, for people to read. start, stop: half-open. at: Unix seconds of its end."""

    number: int
    what: str
    start: int
    stop: int
    rows: int
    bytes: int
    reason: str
    at: float


def write(connection: sqlite3.Connection, changes: Sequence[Trim]) -> None:
    """Let go of what still may, and note it."""
    for change in changes:
        stretch = Stretch(change.what, change.after, change.upto, change.before, change.ignoring)
        rows = _rows(connection, stretch)
        if rows:
            numbers = msgspec.json.encode([row[0] for row in rows]).decode()
            stays = connection.execute(_STAYS[change.what], (numbers,)).fetchall() if change.what in _STAYS else []
            connection.execute(_REMOVE[change.what], (numbers,))
            if change.what == "event":
                connection.execute(SQL["dead_emptied"], (numbers,))
            if stays:
                write_rows(connection, _PUT_BACK[change.what], stays)
            size = sum(row[1] for row in rows)
            trace = (change.run, change.what, rows[0][0], rows[-1][0] + 1, len(rows), size, change.reason, change.at)
            connection.execute(SQL["trimmed_put"], trace)


def find(connection: sqlite3.Connection, stretch: Stretch) -> Found:
    """What may go in a stretch, as things stand."""
    rows = _rows(connection, stretch)
    if not rows:
        return Found()
    moments = [row[2] for row in rows]
    return Found(len(rows), sum(row[1] for row in rows), rows[0][0], rows[-1][0], min(moments), max(moments))


def _rows(connection: sqlite3.Connection, stretch: Stretch) -> list[tuple[int, int, float]]:
    ignoring = msgspec.json.encode(stretch.ignoring).decode()
    values = (stretch.after, stretch.upto, stretch.before, ignoring, SUBSCRIPTIONS)
    return connection.execute(_FIND[stretch.what], values).fetchall()


def newest_in(connection: sqlite3.Connection, after: int, upto: int) -> float | None:
    """When the last event of a stretch came, or None if there is none."""
    newest: float | None = connection.execute(SQL["event_newest_in"], (after, upto)).fetchone()[0]
    return newest


def parts(connection: sqlite3.Connection, what: str) -> list[Part]:
    """The parts that a table is walked in."""
    if what == "event":
        return events.parts(connection)
    return [Part(0, connection.execute(_LAST[what]).fetchone()[0], False)]


def last_run(connection: sqlite3.Connection) -> int:
    """The number of the last trace, or 0."""
    number: int = connection.execute(SQL["trimmed_last"]).fetchone()[0]
    return number


def trimmed(connection: sqlite3.Connection, limit: int) -> list[Trimmed]:
    """What was let go, the last run first."""
    return [Trimmed(*row) for row in connection.execute(SQL["trimmed_list"], (limit,))]


def give_back(connection: sqlite3.Connection, changes: Sequence[Shrink]) -> None:
    """Move pages from the file's end into free ones. The file is cut when this is checkpointed."""
    for change in changes:
        # The statement goes a page per row and sqlite3 takes rows without columns for the end, so one page at a time.
        for _ in range(change.pages):
            connection.execute("PRAGMA incremental_vacuum(1)")


def room(connection: sqlite3.Connection) -> Room:
    """What the file takes. What was let go leaves room for what comes; the file itself stays as long."""
    pages, free, size, kind = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size", "auto_vacuum")
    )
    return Room((pages - free) * size, free * size, kind == _INCREMENTAL)
