"""Values as text for people: tables that fit the terminal, ages, states in colour.

Always true: nothing here can steer a terminal, except by the colours that it puts there itself.
Not here: asking the daemon, printing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click

from agentd.logs import printable

Row = Mapping[str, Any]

_SPACE = "  "
_CELL_MIN = 8  # a cell that must be cut keeps at least this many characters

STATE_COLOURS = {
    "live": "green",
    "connecting": "yellow",
    "catching_up": "yellow",
    "throttled": "yellow",
    "parked": "red",
    "deaf": "red",
    "off": "bright_black",
}


class Column(NamedTuple):
    """One column.

    cell: its text from a row. rank: where the terminal is narrow, the highest goes first; 0 stays. colour: click's
    name for the cell's colour, from a row.
    """

    title: str
    cell: Callable[[Row], str]
    rank: int = 0
    right: bool = False
    colour: Callable[[Row], str | None] = lambda row: None


def table(columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> list[str]:
    """Lines, the heading first, of the columns that fit into `width` characters; None is any width."""
    shown = list(columns)
    while True:
        widths = [_needed(column, rows) for column in shown]
        excess = 0 if width is None else sum(widths) + len(_SPACE) * (len(widths) - 1) - width
        dispensable = max(shown, key=lambda column: column.rank)
        if excess <= 0 or dispensable.rank == 0:
            break
        shown.remove(dispensable)
    while excess > 0 and max(widths) > _CELL_MIN:
        widest = widths.index(max(widths))
        cut = min(excess, widths[widest] - _CELL_MIN)
        widths[widest] -= cut
        excess -= cut
    spaces = list(zip(shown, widths, strict=True))
    heading = [_fitted(column.title, width, column.right, "bold") for column, width in spaces]
    body = [[_fitted(_text(each, row), width, each.right, each.colour(row)) for each, width in spaces] for row in rows]
    return [_SPACE.join(cells).rstrip() for cells in [heading, *body]]


def columns_of(text: str) -> int:
    """How many columns of a terminal the text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _needed(column: Column, rows: Sequence[Row]) -> int:
    return max(columns_of(text) for text in [column.title, *(_text(column, row) for row in rows)])


def _text(column: Column, row: Row) -> str:
    return printable(column.cell(row))


def _fitted(text: str, width: int, right: bool, colour: str | None) -> str:
    if columns_of(text) > width:
        while text and columns_of(text) > width - 1:
            text = text[:-1]
        text += "…"
    padding = " " * (width - columns_of(text))
    painted = click.style(text, bold=True) if colour == "bold" else click.style(text, fg=colour) if colour else text
    return padding + painted if right else painted + padding


def age(seconds: float | None) -> str:
    """A duration in its two largest units at most; a dash for never."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{max(whole, 0)} s"
    if whole < 3_600:
        return f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3_600} h {whole % 3_600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3_600} h"


def size(count: int) -> str:
    """So many bytes."""
    left, units = float(count), ["B", "kB", "MB", "GB"]
    while left >= 1_000 and len(units) > 1:
        left, units = left / 1_000, units[1:]
    return f"{left:.0f} {units[0]}" if units[0] == "B" else f"{left:.1f} {units[0]}"


def since(moment: str | None, now: datetime) -> str:
    """How long ago an ISO 8601 moment was."""
    return age(None if moment is None else (now - parsed(moment)).total_seconds())


def clock(moment: str) -> str:
    """The local time of day of an ISO 8601 moment."""
    return parsed(moment).astimezone().strftime("%H:%M:%S")


def parsed(moment: str) -> datetime:
    """An ISO 8601 moment; without a zone it is UTC."""
    when = datetime.fromisoformat(moment)
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def number(value: Any) -> str:
    """A count with thousands apart; a dash for none."""
    return f"{value:,}" if isinstance(value, int) else "-" if value is None else str(value)


def counted(count: int, noun: str) -> str:
    """So many of them."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"
