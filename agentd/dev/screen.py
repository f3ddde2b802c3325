"""What is shown while somebody types: each piece above the line that is being typed, which stays as it is.

Always true: what came from a plugin or a peer cannot steer the terminal. Any thread may show something.
Not here: what is worth showing (world).
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any, Literal

from agentd.logs import printable

Kind = Literal["said", "answer", "log", "trouble", "note"]

_COLOURS: dict[Kind, str] = {"answer": "1", "log": "2", "trouble": "31", "note": "36"}
_TO_STDERR: tuple[Kind, ...] = ("log", "trouble", "note")
_CLEARED = "\r\x1b[K"


class Screen:
    """The terminal, or two pipes: what was said and answered on stdout, everything about it on stderr.

    prompt: shown before what is typed; "" while nothing is asked for.
    """

    def __init__(self, *, interactive: bool) -> None:
        self.prompt = ""
        self._interactive = interactive
        self._colour = interactive and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._readline = _readline() if interactive else None

    def show(self, kind: Kind, text: str) -> None:
        """Show some lines."""
        lines = [printable(line) for line in text.splitlines()] or [""]
        if self._colour and kind in _COLOURS:
            lines = [f"\x1b[{_COLOURS[kind]}m{line}\x1b[0m" for line in lines]
        with self._lock:
            if not self._interactive:
                stream = sys.stderr if kind in _TO_STDERR else sys.stdout
                stream.write("".join(f"{line}\n" for line in lines))
                stream.flush()
            elif kind != "said":  # which stands there as it was typed
                sys.stdout.write(_CLEARED + "\n".join(lines) + "\n" + self._typed())
                sys.stdout.flush()

    def ask(self, prompt: str) -> str:
        """A line that somebody types. Raises EOFError at the end of input, KeyboardInterrupt."""
        with self._lock:
            self.prompt = prompt
        try:
            return input(prompt)
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            raise
        finally:
            with self._lock:
                self.prompt = ""

    def _typed(self) -> str:
        if not self.prompt or self._readline is None:
            return self.prompt
        return f"{self.prompt}{self._readline.get_line_buffer()}"


def _readline() -> Any:
    """What edits the line that is typed, from its import on; None where this Python was built without it."""
    try:
        return importlib.import_module("readline")
    except ImportError:
        return None
