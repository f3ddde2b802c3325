"""Whether a plugin as a whole is out of order, so that its lanes wait instead of failing one after the other.

    CLOSED ── so many lanes fail in a row, or the plugin says so ──> OPEN ── its time ──> HALF_OPEN (one trial)
      ^                                                                ^                    │       │
      └──────────────────────────── the trial succeeds ────────────────┼────────────────────┘       │
                                                                       └── it fails: twice as long ─┘

Always true: one lane that fails for ever opens nothing. While not closed at most one call is begun, the trial. The time
that it stays open doubles up to a limit, and never ends sooner than the plugin asked for. A trial that fails costs no
attempt until that limit is reached; from then on it does, unless the plugin says that no lane would fare better: or an
event that nothing can mend, alone at the head of all that waits, would keep the breaker open for ever.
Not here: the clock (callers pass `now`), what an attempt costs (retry.py), who waits (the dispatcher).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable

import msgspec


class Standing(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a breaker opens, and for how long."""

    lanes: int = 5  # fewer may be poison of their own
    first_s: float = 1.0
    max_s: float = 60.0  # a mended dependency is noticed within a minute


class Breaker:
    """The breaker of one plugin. troubled: something failed since the last success, so that it must be asked and told.

    until: monotonic seconds of the next trial, while open.
    """

    __slots__ = ("_failing", "_limits", "_opened", "_trial", "standing", "troubled", "until")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._failing: set[Hashable] = set()
        self._opened = 0
        self._trial: Hashable | None = None
        self.standing = Standing.CLOSED
        self.troubled = False
        self.until = 0.0

    @property
    def closed(self) -> bool:
        """Calls may begin freely."""
        return self.standing is Standing.CLOSED

    def may_begin(self, now: float) -> bool:
        """Whether a call may begin; `began` says that it does."""
        if self.standing is Standing.OPEN and now >= self.until:
            self.standing = Standing.HALF_OPEN
        return self.closed or (self.standing is Standing.HALF_OPEN and self._trial is None)

    def began(self, lane: Hashable) -> None:
        """A call of this lane begins."""
        if self.standing is Standing.HALF_OPEN and self._trial is None:
            self._trial = lane

    def succeeded(self, lane: Hashable) -> None:
        """A call of this lane has done its work, or knew what it could not do."""
        if self.closed:
            self._failing.clear()
            self.troubled = False
        elif lane == self._trial:
            self._close()

    def untold(self, lane: Hashable) -> None:
        """A call of this lane ended without a word on the plugin: if it was the trial, another one is let through."""
        if lane == self._trial:
            self._trial = None

    def failed(self, lane: Hashable, now: float, *, asked_s: float | None = None, whole_plugin: bool = False) -> bool:
        """A call of this lane has failed. Returns whether that is the lane's own fault and counts as an attempt.

        asked_s: the plugin wants to be left alone for so long. whole_plugin: it says that no lane would fare better.
        """
        self.troubled = True
        if self.closed:
            self._failing.add(lane)
            if whole_plugin or len(self._failing) >= self._limits.lanes:
                self._open(now, asked_s)
        elif lane == self._trial:
            longest = self._pause_s() >= self._limits.max_s
            self._open(now, asked_s)
            return longest and not whole_plugin
        elif whole_plugin and asked_s is not None and math.isfinite(asked_s) and self.standing is Standing.OPEN:
            self.until = max(self.until, now + asked_s)
        return self.closed

    def _open(self, now: float, asked_s: float | None) -> None:
        self._opened += 1
        pause_s = self._pause_s()
        if asked_s is not None and math.isfinite(asked_s):
            pause_s = max(pause_s, asked_s)
        self.standing = Standing.OPEN
        self.until = now + pause_s
        self._trial = None
        self._failing.clear()

    def _pause_s(self) -> float:
        """Of the opening that was the last."""
        return min(self._limits.max_s, self._limits.first_s * 2.0 ** min(max(0, self._opened - 1), 60))

    def _close(self) -> None:
        self.standing = Standing.CLOSED
        self.troubled = False
        self._opened = 0
        self._trial = None
