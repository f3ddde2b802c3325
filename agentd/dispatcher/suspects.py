"""Events that were being handled when the process died: judged at start, run with care, or never again.

Always true: a condemned event is not given to a handler again.
Not here: who is blamed (core/quarantine), the marks (journal/running), how suspects are tried (trials), what a dead
letter is (fates).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import msgspec

from agentd.core.quarantine import is_condemned, judge
from agentd.dispatcher.backlog import Lane
from agentd.dispatcher.commits import Log
from agentd.host.calls import WorkerDied
from agentd.journal.running import Unfinished
from agentd.journal.storage import Attempt

log = logging.getLogger("agentd.dispatcher")


class ProcessDied(Exception):
    """The process ended while this event was handled, too often to try again."""

    def __init__(self, deaths: int) -> None:
        super().__init__(f"the process died {deaths} times while this event was handled")


def condemned_by(lane: Lane, died: WorkerDied) -> bool:
    """Count a death of an isolated plugin's worker against the event at the head of a lane, by the same rule.

    Whether that event is not to be run again; else it is, and no attempt is counted.
    """
    lane.deaths += died.blamed
    return died.alone and is_condemned(lane.deaths)


class Suspects:
    """Those of one dispatcher."""

    def __init__(self) -> None:
        self._condemned: set[tuple[str, int]] = set()

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
            # A suspect is tried before anything else runs, and does not wait for what it failed of before.
            not_before = row.not_before if row.not_before == math.inf else 0.0
            blamed.append(msgspec.structs.replace(row, deaths=count, until=until, not_before=not_before))
        return blamed

    def is_condemned(self, lane: Lane, position: int) -> bool:
        """Whether this lane's event is never to be run again."""
        return (lane.served.plugin.name, position) in self._condemned
