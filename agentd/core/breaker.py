"""Whether a plugin is out of order, so that its lanes wait instead of failing one after the other.

One breaker stands for the plugin as a whole, and one for each identity in which calls fail: what fails in one identity
alone (a key of its own, what its peers write) makes that one wait, and only when a second one fails as well is it the
plugin.

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
    """One breaker. troubled: something failed since the last success, so that it must be asked and told.

    owners: how many must have failing lanes before it opens. until: monotonic seconds of the next trial, while open.
    """

    __slots__ = ("_failing", "_limits", "_opened", "_trial", "owners", "standing", "troubled", "until")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.owners = 1
        self._failing: dict[Hashable, str] = {}
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

    def failed(
        self, lane: Hashable, now: float, *, owner: str = "", asked_s: float | None = None, whole_plugin: bool = False
    ) -> bool:
        """A call of this lane has failed. Returns whether that is the lane's own fault and counts as an attempt.

        owner: of the lane. asked_s: the plugin wants to be left alone for so long. whole_plugin: it says that no lane
        would fare better.
        """
        self.troubled = True
        if self.closed:
            self._failing[lane] = owner
            if whole_plugin or self._are_many:
                self._open(now, asked_s)
        elif lane == self._trial:
            longest = self._pause_s() >= self._limits.max_s
            self._open(now, asked_s)
            return longest and not whole_plugin
        elif whole_plugin and asked_s is not None and math.isfinite(asked_s) and self.standing is Standing.OPEN:
            self.until = max(self.until, now + asked_s)
        return self.closed

    @property
    def _are_many(self) -> bool:
        return len(self._failing) >= self._limits.lanes and len({*self._failing.values()}) >= self.owners

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


class Breakers:
    """Those of one plugin, by the owners of its lanes. troubled: as of a breaker, for any of them.

    whole: of all owners. shared: there are several, so that one of them alone is not the whole.
    """

    __slots__ = ("_limits", "_of", "_shared", "troubled", "whole")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._of: dict[str, Breaker] = {}
        self._shared = False
        self.whole = Breaker(limits)
        self.troubled = False

    @property
    def shared(self) -> bool:
        """See the class."""
        return self._shared

    @shared.setter
    def shared(self, is_so: bool) -> None:
        self._shared = is_so
        self.whole.owners = 2 if is_so else 1

    def barred(self, now: float) -> list[str]:
        """Owners of whom no call may begin, though it may of others."""
        return [owner for owner, breaker in self._of.items() if not breaker.may_begin(now)]

    def standing(self, owner: str) -> Breaker:
        """The one that keeps this owner's lanes waiting, if one does."""
        return self._of[owner] if owner in self._of and self.whole.closed else self.whole

    def waiting(self) -> dict[str, Breaker]:
        """Those of owners that wait, while the plugin as a whole does not."""
        return (
            {owner: breaker for owner, breaker in self._of.items() if not breaker.closed} if self.whole.closed else {}
        )

    def trials(self) -> list[float]:
        """When the next trials are, in monotonic seconds."""
        return [each.until for each in (self.whole, *self._of.values()) if each.standing is Standing.OPEN]

    def began(self, owner: str, lane: Hashable) -> None:
        """A call of this lane begins."""
        for breaker in self._both(owner):
            breaker.began(lane)

    def succeeded(self, owner: str, lane: Hashable) -> None:
        """A call of this lane has done its work, or knew what it could not do."""
        for breaker in self._both(owner):
            breaker.succeeded(lane)
        if (own := self._of.get(owner)) is not None and not own.troubled:
            del self._of[owner]
        self._look()

    def failed(
        self, owner: str, lane: Hashable, now: float, *, asked_s: float | None = None, whole_plugin: bool = False
    ) -> bool:
        """A call of this lane has failed. Returns and takes what Breaker.failed does."""
        if self._shared and not whole_plugin and owner not in self._of:
            self._of[owner] = Breaker(self._limits)
        self.troubled = True
        counts = [
            breaker.failed(lane, now, owner=owner, asked_s=asked_s, whole_plugin=whole_plugin and breaker is self.whole)
            for breaker in self._both(owner)
        ]
        return all(counts)

    def died(self, owner: str, lane: Hashable, now: float) -> None:
        """The process of a call has ended, which says nothing of the lane; but it may have been a trial."""
        for breaker in self._both(owner):
            if not breaker.closed:
                breaker.failed(lane, now)

    def forget(self, owner: str) -> None:
        """It has no lanes any more."""
        self._of.pop(owner, None)
        self._look()

    def _both(self, owner: str) -> list[Breaker]:
        own = self._of.get(owner)
        return [self.whole] if own is None else [own, self.whole]

    def _look(self) -> None:
        self.troubled = self.whole.troubled or bool(self._of)
