"""Times and spans as people write them on a command line.

Always true: only the standard library and click are imported, and core where a moment is given.
"""

from __future__ import annotations

import re
import time

import click

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def span(given: str) -> float:
    """Seconds in a span such as 90s, 30m, 2h or 7d. Raises ValueError."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", given)
    if found is None:
        raise ValueError(given)
    return float(found[1]) * _UNITS_S[found[2]]


def moment(given: str) -> str:
    """A moment as ISO 8601: what was given, or so long ago. Raises ValueError or OverflowError."""
    from agentd.core.moments import iso, unix

    try:
        return iso(time.time() - span(given))
    except ValueError:
        return iso(unix(given))


def given_span(ctx: click.Context, parameter: click.Parameter, given: str | None) -> float | None:
    """What an option says that takes a span."""
    if given is None:
        return None
    try:
        seconds = span(given)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise click.BadParameter(f"{given!r} is no span of time; give 90s, 30m, 2h or 7d")
    return seconds


def given_moment(ctx: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """What an option says that takes a moment."""
    if given is None:
        return None
    try:
        return moment(given)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{given!r} is no moment; give 2026-01-02T03:04Z, or 30m, 2h, 7d for so long ago"
        ) from None
