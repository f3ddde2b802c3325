"""Events that were being handled when the process died: judged at start, run with care, or never again.

Always true: of the events that several deaths are blamed on, one runs at a time, so that the next death has one
culprit. A condemned event is not given to a handler again.
Not here: who is blamed (core/quarantine), the marks (journal/running), what a dead letter is (fates).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from agentd.core.quarantine import judge, runs_alone
from agentd.dispatcher.backlog import Lane
from agentd.dispatcher.commits import Log
from agentd.journal.running import Unfinished
from agentd.journal.storage import Attempt

log = logging.getLogger("agentd.dispatcher")


class ProcessDied(Exception):
    """The process ended while this event was handled, too often to try again."""

    def __init__(self, deaths: int) -> None:
        super().__init__(f"the process died {deaths} times while this event was handled")


class Suspects:
    """Those of one dispatcher."""

    def __init__(self) -> None:
        self._condemned: set[tuple[str, int]] = set()
        self._alone: Lane | None = None
        self._waiting: deque[Lane] = deque()

    async def judge(
        self,
        journal: Log,
        unfinished: Sequence[Unfinished],
        cursors: Mapping[str, Mapping[int, int]],
        attempts: Sequence[Attempt],
    ) -> list[Attempt]:
        """Blame the last death on what ran then and is not handled. Returns what must reach the disk before it runs."""
        known = {(each.plugin, each.position): each for each in attempts}
        ran: dict[tuple[str, int], int] = {}
        ends: dict[tuple[str, int], int] = {}
        for plugin, position, until in unfinished:
            found = await journal.read_log(None, position - 1, 1)
            if not found or found[0].position != position or plugin not in cursors:
                continue
            number = found[0].conversation
            if cursors[plugin].get(number, 0) < position:
                ran[plugin, position] = number
                ends[plugin, position] = until if until > position else 0
        deaths, condemned = judge(ran, {key: each.deaths for key, each in known.items()})
        if condemned is not None:
            self._condemned.add(condemned)
        blamed = []
        for (plugin, position), count in deaths.items():
            error = f"ProcessDied: the process died while this event was handled ({count})"
            log.warning("%s at position %d", error, position, extra={"plugin": plugin})
            fresh = Attempt(plugin, ran[plugin, position], position, 0, error, 0.0)
            row = known.get((plugin, position), fresh)
            until = row.until or ends[plugin, position]
            blamed.append(msgspec.structs.replace(row, deaths=count, until=until))
        return blamed

    def is_condemned(self, lane: Lane, position: int) -> bool:
        """Whether this lane's event is never to be run again."""
        return (lane.served.plugin.name, position) in self._condemned

    def must_wait(self, lane: Lane) -> bool:
        """Whether another suspect runs; if so, `ended` will name this lane once it may run."""
        if not runs_alone(lane.deaths):
            return False
        if self._alone is not None:
            self._waiting.append(lane)
            return True
        self._alone = lane
        return False

    def leave(self, lane: Lane) -> bool:
        """This lane is gone. Returns whether it waited for another suspect."""
        waited = lane in self._waiting
        if waited:
            self._waiting.remove(lane)
        return waited

    def ended(self, lane: Lane) -> Lane | None:
        """This lane's event has been run. Returns the lane that may run now."""
        if self._alone is not lane:
            return None
        self._alone = None
        return self._waiting.popleft() if self._waiting else None
