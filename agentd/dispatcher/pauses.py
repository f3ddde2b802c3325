"""Conversations in which nothing is handed out for the time being: by command, while a person speaks, or for a loop.

Always true: a pause ends at its time, or when somebody ends it, and is then forgotten with the lanes that it stopped.
Not here: the lanes (the engine), the disk, the clock (callers pass Unix seconds).
"""

from __future__ import annotations

from collections.abc import Iterator

from agentd.dispatcher.backlog import Served
from agentd.journal.storage import Paused


class Pauses:
    """Those of one dispatcher, by the journal's number of the conversation."""

    def __init__(self) -> None:
        self._pauses: dict[int, Paused] = {}
        self._stopped: dict[int, list[Served]] = {}

    def __bool__(self) -> bool:
        """There is any."""
        return bool(self._pauses)

    def __iter__(self) -> Iterator[Paused]:
        return iter(list(self._pauses.values()))

    def get(self, number: int) -> Paused | None:
        """The pause of a conversation."""
        return self._pauses.get(number)

    def begin(self, pause: Paused) -> None:
        """Hand nothing out in this conversation, or not until another time than was said before."""
        self._pauses[pause.number] = pause

    def pause_for(self, number: int, served: Served) -> Paused | None:
        """The pause of a conversation, if this plugin stands still in it."""
        pause = self._pauses.get(number)
        return None if pause is None or (served.plugin.watches and not pause.watchers) else pause

    def met(self, number: int, served: Served) -> bool:
        """Whether this lane must not run; it is named again when the pause ends."""
        if self.pause_for(number, served) is None:
            return False
        self._stopped.setdefault(number, []).append(served)
        return True

    def leave(self, number: int, served: Served) -> bool:
        """This lane is gone. Returns whether a pause had stopped it."""
        stopped = self._stopped.get(number, [])
        was_stopped = served in stopped
        if was_stopped:
            stopped.remove(served)
        return was_stopped

    def end(self, number: int) -> list[Served]:
        """Forget a pause. Returns whose lanes it stopped."""
        self._pauses.pop(number, None)
        return self._stopped.pop(number, [])

    def next_end(self) -> float | None:
        """Unix seconds at which the first ends by itself, or None."""
        return min((pause.until for pause in self._pauses.values() if pause.until is not None), default=None)

    def over(self, now: float) -> list[Paused]:
        """Those whose time has come."""
        return [pause for pause in self._pauses.values() if pause.until is not None and pause.until <= now]
