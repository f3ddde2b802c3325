"""How far a long piece of work is, on a terminal.

Always true: nothing is printed where nobody looks, nor before a second has passed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import click

_FIRST_S = 1.0
_EVERY_S = 0.2


class Progress:
    """One line on stderr that says how much is done and how long the rest may take. Call it with done and total."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._began = clock()
        self._told_at = self._began + _FIRST_S - _EVERY_S
        self._shown = False
        self._terminal = sys.stderr.isatty()

    def __call__(self, done: int, of: int) -> None:
        """So much of it is done."""
        now = self._clock()
        if self._terminal and 0 < done < of and now - self._told_at >= _EVERY_S:
            self._told_at, self._shown = now, True
            left_s = (now - self._began) / done * (of - done)
            click.echo(f"\r\x1b[K{self._what}: {100 * done // of} %, about {left_s:.0f} s left", err=True, nl=False)

    def over(self) -> None:
        """It is done: the line goes."""
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
