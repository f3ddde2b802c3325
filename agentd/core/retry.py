"""A failed attempt becomes a delay or a dead letter.

Always true: the bound on the delay doubles up to a limit, and each delay lies in the upper half of its bound, so that
lanes which failed together do not come back together. It is never shorter than what the handler asked for.
Not here: chance (callers pass a number), the clock, what counts as a failure.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

_ASKED_SPREAD = 0.1  # of what the handler asked for: it knows best, so only enough to keep lanes from coming as one


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """How delays grow: doubling from `first_s`, at most `max_s`."""

    first_s: float = 1.0  # long enough for a dropped connection to be made again
    max_s: float = 300.0  # a mended dependency is noticed within five minutes


class Again(NamedTuple):
    """Run it again, not before this many seconds from now."""

    after_s: float


class Bury(NamedTuple):
    """Its attempts are spent: a dead letter."""

    failures: int


def after_failure(
    failures: int, attempts: int, backoff: Backoff, chance: float, asked_s: float | None = None
) -> Again | Bury:
    """What follows a failure.

    failures: how often this event has failed, this time included. attempts: how often it may run at all.
    chance: at random from [0, 1). asked_s: what the handler asked for, or None.
    """
    assert failures >= 1, failures
    if failures >= attempts:
        return Bury(failures)
    if asked_s is not None and math.isfinite(asked_s):
        asked_s = max(0.0, asked_s)
        return Again(asked_s * (1.0 + _ASKED_SPREAD * chance))
    whole = min(backoff.max_s, backoff.first_s * 2.0 ** min(failures - 1, 60))
    return Again(whole * (1.0 + chance) / 2.0)
