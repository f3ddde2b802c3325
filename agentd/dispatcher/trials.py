"""Lanes whose event may have killed the process: each has the floor for a moment, with nothing beside it.

A trial is called before anything else of its scope runs: at start for the whole process, after a death for the worker
of one plugin. Whoever dies in it is found out; whoever does not soon is taken for innocent, and others begin.

Always true: while a trial goes on nothing else of its scope is handed out. A trial lasts `trial_s` at most, and all
that are called together `trials_s`, so that a crowd of suspects holds nobody up for long; those who had no turn are
tried at the next death.
Not here: who is suspect (core/quarantine), the clock (callers pass monotonic seconds).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from agentd.dispatcher.backlog import Key, Served

log = logging.getLogger("agentd.dispatcher")


class Trial(NamedTuple):
    """A lane that has the floor. whole: over all plugins, not only its own."""

    served: Served
    key: Key
    whole: bool


class Trials:
    """Those of one dispatcher. The time that all may take begins with the first turn. trial_s, trials_s: see above."""

    def __init__(self, trial_s: float, trials_s: float) -> None:
        self._trial_s = trial_s
        self._trials_s = trials_s
        self._called: deque[Trial] = deque()
        self._all_end_at: float | None = None
        self._ends_at: float | None = None

    def __bool__(self) -> bool:
        """There is one."""
        return bool(self._called)

    def call(self, trial: Trial) -> None:
        """Give a lane the floor, once those before it had it."""
        if not self._called:
            self._all_end_at = None
        self._called.append(trial)

    def current(self, now: float) -> Trial | None:
        """Who has the floor."""
        if self._all_end_at is not None and now >= self._all_end_at:
            log.warning("%d suspects of the last crash were not tried in time: see trials_s", len(self._called))
            self._called.clear()
            self._ends_at = self._all_end_at = None
        elif self._ends_at is not None and now >= self._ends_at:
            self._called.popleft()
            self._ends_at = None
        return self._called[0] if self._called else None

    def began(self, now: float) -> None:
        """The turn of who has the floor begins."""
        self._ends_at = now + self._trial_s
        if self._all_end_at is None:
            self._all_end_at = now + self._trials_s

    def over(self, served: Served, key: Key) -> None:
        """This lane's turn has ended, or cannot begin."""
        if self._called and (self._called[0].served, self._called[0].key) == (served, key):
            self._called.popleft()
            self._ends_at = None

    def leave(self, served: Served, keys: Collection[Key]) -> None:
        """These lanes are gone."""
        ours = [each for each in self._called if each.served is served and each.key in keys]
        if self._called and self._called[0] in ours:
            self._ends_at = None
        self._called = deque(each for each in self._called if each not in ours)

    def next_end(self) -> float | None:
        """When somebody else may begin at the latest."""
        ends = [each for each in (self._ends_at, self._all_end_at) if each is not None]
        return min(ends) if self._called and ends else None
