"""The standard streams of the command, made fit to be read from and written to.

Always true: after `prepare` none of them is missing, so that no file which is opened later takes a place that
everything else writes to; and no answer fails for what the terminal's encoding lacks.
"""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Once, before anything is opened."""
    # The lowest place that is free is the one that is missing.
    sys.stdin = sys.stdin or _nothing("r")
    sys.stdout = sys.stdout or _nothing("w")
    sys.stderr = sys.stderr or _nothing("w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _nothing(mode: str) -> io.TextIOWrapper:
    descriptor = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(descriptor, True)  # as these are for every program that is started
    opened = os.fdopen(descriptor, mode)
    assert isinstance(opened, io.TextIOWrapper)
    return opened
