"""The dispatcher's way to the journal: cursors gathered, everything else at once.

A turn that did nothing only moves its cursor. Such moves gather while a commit of them is under way, and a lane that
moved many times is written once.

Always true: a lane's cursors reach the journal in rising order. What fails in the journal ends the dispatcher: without
it no promise holds.
Not here: what to commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from agentd.dispatcher.backlog import Lane
from agentd.journal.storage import (
    Attempt,
    Change,
    Conversation,
    CursorMoved,
    Outcome,
    Paused,
    Rewound,
    StoredRecord,
    TimerSet,
    Totals,
)

_Mover = tuple[str, int]


class Log(Protocol):
    """The part of the journal that lanes live on. What each method does: journal/storage.py."""

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """Put these on disk together."""
        ...

    async def conversations(self, identity: str) -> list[Conversation]:
        """Every conversation of an identity."""
        ...

    async def totals(self, identity: str) -> Totals:
        """Counts of one identity."""
        ...

    async def cursors(self, plugin: str) -> dict[int, int]:
        """Conversation number to handled position."""
        ...

    async def replays(self, plugin: str) -> dict[int, tuple[int, int]]:
        """Which lanes were set back."""
        ...

    async def pauses(self) -> list[Paused]:
        """Conversations in which nothing runs."""
        ...

    async def answers_since(self, identity: str, since: float) -> list[tuple[str, str, float]]:
        """Answers to agents."""
        ...

    async def attempts(self, plugin: str) -> list[Attempt]:
        """Every failed event of a plugin."""
        ...

    async def count_behind(self, conversation: int, after: int) -> int:
        """How many records of a conversation lie behind a position."""
        ...

    async def count_between(self, conversation: int, after: int, upto: int) -> int:
        """How many lie behind the one and not behind the other."""
        ...

    async def read_lane(self, conversation: int, after: int, limit: int) -> list[StoredRecord]:
        """The first of them."""
        ...

    async def read_log(self, identity: str | None, after: int, limit: int) -> list[StoredRecord]:
        """Records behind a position over all conversations."""
        ...

    async def last_position(self) -> int:
        """Of the newest record."""
        ...

    async def timers(self, plugin: str) -> list[TimerSet]:
        """Every timer of a plugin."""
        ...

    async def state_get(self, plugin: str, conversation: int, key: str) -> bytes | None:
        """A plugin's value."""
        ...


class Commits:
    """Commits of one dispatcher. on_fatal: the journal failed. on_settled: a commit has ended."""

    def __init__(self, journal: Log, on_fatal: Callable[[BaseException], None], on_settled: Callable[[], None]) -> None:
        self._journal = journal
        self._on_fatal = on_fatal
        self._on_settled = on_settled
        self._moved: dict[_Mover, int] = {}
        self._flushing = False
        self._last: asyncio.Future[None] | None = None

    @property
    def under_way(self) -> bool:
        """Whether anything is not on disk yet."""
        return self._flushing or bool(self._last and not self._last.done())

    def moved(self, lane: Lane, position: int) -> None:
        """A lane has handled everything up to here; tell the disk in company."""
        if position <= lane.told:
            return
        lane.told = position
        self._moved[(lane.served.plugin.name, lane.line.number)] = position
        if not self._flushing:
            self._flushing = True
            # What else moves in this turn of the loop comes along.
            asyncio.get_running_loop().call_soon(self.flush)

    def with_cursor(self, lane: Lane, position: int, *changes: Change) -> asyncio.Future[None]:
        """Commit changes and, in the same whole, that the lane has handled everything up to here."""
        lane.told = position
        name, number = lane.served.plugin.name, lane.line.number
        self._moved.pop((name, number), None)
        return self.commit(CursorMoved(name, number, position), *changes)

    def rewound(self, lane: Lane, rewound: Rewound, noted: Outcome) -> asyncio.Future[None]:
        """Commit that a lane goes back. noted: the same for people."""
        lane.told = rewound.position
        self._moved.pop((rewound.plugin, rewound.conversation), None)
        return self.commit(rewound, noted)

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """Commit changes as one whole."""
        commit = self._last = self._journal.commit(*changes)
        commit.add_done_callback(self._ended)
        return commit

    async def finish(self, timeout_s: float) -> None:
        """Put on disk what has gathered, and wait for every commit under way for so long."""
        self.flush()
        if self._last is not None:
            # Commits are carried out in order, so that the last speaks for all.
            await asyncio.wait((self._last,), timeout=timeout_s)

    def flush(self) -> None:
        """Hand to the journal what has gathered."""
        moved, self._moved = self._moved, {}
        if not moved:
            self._flushing = False
            self._on_settled()
            return
        changes = [CursorMoved(name, number, position) for (name, number), position in moved.items()]
        self.commit(*changes).add_done_callback(self._flushed)

    def _flushed(self, commit: asyncio.Future[None]) -> None:
        if succeeded(commit):
            self.flush()
        else:
            self._flushing = False

    def _ended(self, commit: asyncio.Future[None]) -> None:
        if not commit.cancelled() and (error := commit.exception()) is not None:
            self._on_fatal(error)
        self._on_settled()


def succeeded(commit: asyncio.Future[None]) -> bool:
    """Whether an ended commit is on disk."""
    return not commit.cancelled() and commit.exception() is None
