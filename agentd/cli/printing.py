"""Answers on stdout: JSON for programs, tables and text for people.

Always true: what came from a platform cannot steer a terminal.
Not here: how a table fits its width (tables.py), what is said (the verbs).
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click

from agentd.cli.tables import Column, Row, number, table
from agentd.logs import printable


def echo_json(value: Any) -> None:
    """For programs, and for people who look at it: what could steer a terminal is written as JSON may write it."""
    click.echo(paragraph(json.dumps(value, indent=2, ensure_ascii=False)))


def echo_json_line(value: Any) -> None:
    """The same on one line."""
    click.echo(printable(json.dumps(value, ensure_ascii=False)))


def echo_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """For people; as wide as the terminal, or as it needs where the output goes to a program."""
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
    for line in table(columns, rows, width):
        click.echo(line)


def count_column(title: str, key: str, rank: int) -> Column:
    """A column of numbers under this key."""
    return Column(title, lambda row: number(row.get(key)), rank, right=True)


def word(text: str) -> str:
    """One word of a command that somebody may copy."""
    return shlex.quote(printable(text))


def paragraph(text: str) -> str:
    """Text of several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))
