"""Brings every value of a journal that no daemon holds under the key that it has now, or under none.

Always true: a step is one transaction, and the next run goes on where one was killed, since what is sealed as it should
be is left as it is. What old data keys were derived with is forgotten once nothing needs it. One value at a time is in
memory.
Not here: the room that former values took (VACUUM writes the file anew).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from agentd.journal.sqlite.sealing import HEAD_MAX, Part, Seals, seals_of
from agentd.journal.sqlite.statements import SQL
from agentd.journal.storage import SUBSCRIPTIONS

_ROWS_PER_STEP = 1_000


class Column(NamedTuple):
    """A column that holds content. keys: columns by which its row is known, and which its values are bound to.

    bound: those that a value is bound to, where they are others.
    """

    table: str
    name: str
    keys: tuple[str, ...]
    bound: tuple[str, ...] = ()
    where: str = "TRUE"


_LANE = ("plugin", "conversation", "position")
_NOT_OURS = f"plugin IS NOT (SELECT number FROM plugin WHERE name = '{SUBSCRIPTIONS}')"  # noqa: S608 -- a constant

COLUMNS = (
    Column("event", "payload", ("position",)),
    Column("outbox", "content", ("number",), ("client_msg_id",), "content <> '{}'"),
    Column("state", "value", ("plugin", "conversation", "key"), (), _NOT_OURS),
    Column("timer", "data", ("id",)),
    Column("timer", "error", ("id",)),
    Column("timer", "progress", ("id",)),
    Column("attempt", "error", _LANE),
    Column("attempt", "progress", _LANE),
    Column("outcome", "data", ("number",), ("plugin", "conversation", "first", "last")),
    Column("dead", "error", ("number",), _LANE),
    Column("dead", "traceback", ("number",), _LANE),
)
"""Every column whose values are sealed."""


def reseal(connection: sqlite3.Connection, progress: Callable[[int, int], None]) -> int:
    """Write anew what is not sealed as it should be. Returns how many values that were.

    progress: told how many were looked at, of how many.
    """
    seals = seals_of(connection)
    counts = [
        connection.execute(f"SELECT count(*) FROM {each.table}").fetchone()[0]  # noqa: S608 -- constants
        for each in COLUMNS
    ]
    done = written = 0
    for column in COLUMNS:
        after: tuple[Part, ...] | None = None
        while (step := _step(connection, seals, column, after)) is not None:
            after, looked_at, changed = step
            done += looked_at
            written += changed
            progress(min(done, sum(counts)), sum(counts))
    connection.execute(SQL["sealing_forget"], (msgspec.json.encode(seals.kept).decode(),))
    return written


def _step(
    connection: sqlite3.Connection, seals: Seals, column: Column, after: tuple[Part, ...] | None
) -> tuple[tuple[Part, ...], int, int] | None:
    """The next rows behind these keys: (keys of the last, how many, how many of them were written); None at the end."""
    keys = ", ".join(column.keys)
    behind = "TRUE" if after is None else f"({keys}) > ({', '.join('?' * len(after))})"
    rows = connection.execute(
        f"SELECT substr({column.name}, 1, {HEAD_MAX}), {keys} FROM {column.table} "  # noqa: S608 -- constants
        f"WHERE {behind} AND {column.where} ORDER BY {keys} LIMIT {_ROWS_PER_STEP}",
        after or (),
    ).fetchall()
    if not rows:
        return None
    due = [row_keys for head, *row_keys in rows if head is not None and seals.is_due(head)]
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for row_keys in due:
            _write_anew(connection, seals, column, row_keys)
    return tuple(rows[-1][1:]), len(rows), len(due)


def _write_anew(connection: sqlite3.Connection, seals: Seals, column: Column, keys: Sequence[Part]) -> None:
    row = " AND ".join(f"{key} = ?" for key in column.keys)
    value, *bound = connection.execute(
        f"SELECT {column.name}, {', '.join(column.bound or column.keys)} FROM {column.table} WHERE {row}",  # noqa: S608 -- constants
        keys,
    ).fetchone()
    anew = _anew(seals, value, (f"{column.table}.{column.name}", *bound))
    connection.execute(f"UPDATE {column.table} SET {column.name} = ? WHERE {row}", (anew, *keys))  # noqa: S608 -- constants


def _anew(seals: Seals, value: bytes | str, place: tuple[Part, ...]) -> bytes | str:
    if isinstance(value, bytes):
        return seals.seal(seals.open(value, *place), *place)
    return seals.seal_text(seals.open_text(value, *place), *place)
