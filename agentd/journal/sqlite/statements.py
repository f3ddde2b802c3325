"""The statements of queries.sql by name, and one way to write many rows at once.

Always true: a name that is missing, doubled or unexplained stops the import, not the running daemon.
Not here: what the statements mean (queries.sql), transactions (writer.py).
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

Row = tuple[int | float | str | bytes | None, ...]

_NAME = re.compile(r"^-- name: (\w+)$")
_ROW = re.compile(r"(?<=VALUES )\(\?(?:, \?)*\)")

# Rows per statement, the widest that fits first. The sqlite3 module gives up the GIL around every step of a statement,
# and under a busy event loop it waits up to 5 ms to get it back. So executemany over 512 rows took 600 ms beside a
# busy loop, and these widths take 32 ms; on an idle machine they cost the same. The widest stays far below SQLite's
# 32,766 parameters.
_WIDTHS = (256, 64, 16, 4, 1)


def parse(text: str) -> dict[str, str]:
    """Split a file of named statements into name -> SQL.

    Raises ValueError for a name that comes twice, or a statement without a line that says what it is for.
    """
    statements: dict[str, str] = {}
    for block in re.split(r"^(?=-- name: )", text, flags=re.MULTILINE)[1:]:
        head, *lines = block.splitlines()
        name = _NAME.match(head)
        if name is None or name[1] in statements:
            raise ValueError(f"queries.sql: no name, or one that is taken: {head!r}")
        if not lines or not lines[0].startswith("-- "):
            raise ValueError(f"queries.sql: {name[1]} does not say what it is for")
        statements[name[1]] = "\n".join(line for line in lines if not line.startswith("--")).strip().rstrip(";")
    return statements


SQL = parse((resources.files(__package__) / "queries.sql").read_text("utf-8"))


@functools.cache
def widened(statement: str, rows: int) -> str:
    """The same statement with its `VALUES (?, ...)` repeated for this many rows."""
    widened_statement, found = _ROW.subn(lambda row: ", ".join([row[0]] * rows), statement)
    assert found == 1, "only a statement with one VALUES list can be widened"
    return widened_statement


def write_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> None:
    """Run an insert for every row, in order, in as few statements as the widths allow."""
    for _ in _run_wide(connection, statement, rows):
        pass


def read_rows(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> Iterator[Any]:
    """What a query says of these rows, which stand in its VALUES; a query that groups does so per statement."""
    for cursor in _run_wide(connection, statement, rows):
        yield from cursor


def _run_wide(connection: sqlite3.Connection, statement: str, rows: Sequence[Row]) -> Iterator[sqlite3.Cursor]:
    done = 0
    for width in _WIDTHS:
        while len(rows) - done >= width:
            values = [value for row in rows[done : done + width] for value in row]
            yield connection.execute(widened(statement, width), values)
            done += width
