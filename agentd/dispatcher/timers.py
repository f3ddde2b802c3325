"""Which wake-ups are due: those that turns asked for, and those that recur.

Always true: a timer is due once at a time, however late it is; it is due again only when it was put back. What was
given up stays, due never, for people to see.
Not here: running handlers and commits (the actor), the clock (callers pass Unix seconds).
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from agentd.core.events import Timer
from agentd.journal.storage import TimerGone, TimerSet


class Due(NamedTuple):
    """A timer whose time has come, in the queue of its lane."""

    timer: TimerSet

    @property
    def event(self) -> Timer:
        """What its handlers get."""
        timer = self.timer
        return Timer(
            identity=timer.identity,
            conversation=timer.conversation_id or None,
            id=timer.id,
            name=timer.name,
            data=msgspec.json.decode(timer.data),
        )


class Timers:
    """All timers of one dispatcher. set_out: ids of those that run elsewhere, and are not due when they are put."""

    def __init__(self) -> None:
        self.set_out: set[str] = set()
        self._rows: dict[str, TimerSet] = {}
        self._waiting: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._heap: list[tuple[float, str]] = []

    def put(self, timer: TimerSet) -> None:
        """Have a timer, or have it at another time."""
        self._counts[timer.plugin] += timer.id not in self._rows
        self._rows[timer.id] = timer
        if timer.id in self.set_out:
            self.set_out.discard(timer.id)
            return
        self._waiting[timer.id] = timer.due_at
        if timer.due_at < math.inf:
            heapq.heappush(self._heap, (timer.due_at, timer.id))

    def renew(self, timer: TimerSet) -> None:
        """Have one as it is now, due no other time for that."""
        if timer.id in self._rows:
            self._rows[timer.id] = timer

    def __contains__(self, timer: TimerSet) -> bool:
        return timer.id in self._rows

    def get(self, id_: str) -> TimerSet | None:
        """The timer of this id."""
        return self._rows.get(id_)

    def drop(self, id_: str) -> None:
        """It is gone."""
        if (timer := self._rows.pop(id_, None)) is not None:
            self._counts[timer.plugin] -= 1
        self._waiting.pop(id_, None)

    def forget(self, plugin: str, identity: str) -> None:
        """Have those of an identity no more; their rows stay on disk."""
        for timer in self.of(plugin):
            if timer.identity == identity:
                self.drop(timer.id)

    def next_due(self) -> float | None:
        """Unix seconds of the first, or None."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> list[TimerSet]:
        """Those whose time has come, the earliest first; each once, until it is put back."""
        due = []
        while (first := self.next_due()) is not None and first <= now:
            id_ = heapq.heappop(self._heap)[1]
            del self._waiting[id_]
            due.append(self._rows[id_])
        return due

    def count(self, plugin: str) -> int:
        """How many one plugin has."""
        return self._counts[plugin]

    def of(self, plugin: str) -> list[TimerSet]:
        """All of one plugin."""
        return [timer for timer in self._rows.values() if timer.plugin == plugin]

    def _is_current(self, entry: tuple[float, str]) -> bool:
        return self._waiting.get(entry[1]) == entry[0]


def recurring(
    plugin: str, intervals: Mapping[str, float], identities: Iterable[str], known: Iterable[TimerSet], now: float
) -> list[TimerSet | TimerGone]:
    """What must change so that each recurring handler has one timer per identity, and no other is left.

    intervals: seconds by the handler's name. known: the plugin's timers on disk, which keep their time.
    """
    wanted = {(identity, name) for name in intervals for identity in identities}
    there = {(timer.identity, timer.name): timer for timer in known if timer.name}
    fresh = [_beat(plugin, identity, name, now + intervals[name]) for identity, name in sorted(wanted - there.keys())]
    return [*fresh, *(TimerGone(timer.id) for place, timer in there.items() if place not in wanted)]


def next_beat(timer: TimerSet, interval_s: float, now: float) -> TimerSet:
    """The successor of a recurring timer that has run: on its beat, without making up for those that were missed."""
    began = float(timer.id.rpartition("-")[2])
    beats = max(1, math.ceil((now - began) / interval_s))
    due_at = began + beats * interval_s
    return _beat(timer.plugin, timer.identity, timer.name, due_at if due_at > now else due_at + interval_s)


def _beat(plugin: str, identity: str, name: str, due_at: float) -> TimerSet:
    # Each beat is a timer of its own, so that what it sends has keys of its own.
    place = hashlib.blake2b(msgspec.json.encode([plugin, identity, name]), digest_size=16).hexdigest()
    return TimerSet(f"every-{place}-{due_at:.3f}", plugin, identity, 0, "", name, due_at, b"null")
