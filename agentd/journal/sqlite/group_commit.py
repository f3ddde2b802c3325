"""Decides when commits are written: whatever arrived while the last group was written goes into the next one.

Always true: groups are written one at a time and in order, and a commit's future is done only after its group's sync.
While a group cannot be written for want of room, it is tried again and everything behind it waits; nothing overtakes.
Not here: what a commit holds (storage.py), how it is written (writer.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from agentd import metrics
from agentd.errors import JournalError, JournalFull, JournalUnusable
from agentd.journal.sqlite.faults import MustWait
from agentd.journal.storage import Change

Call = tuple[Change, ...]
Write = Callable[[Sequence[Call]], Awaitable[dict[int, JournalError]]]

log = logging.getLogger("agentd.journal")

# A group of this many commits has already spread the price of its sync thin enough.
_FULL_GROUP = 256
# After a wait that brought nobody, this many groups go at once before another wait is tried: a peer that speaks only
# when it was answered would otherwise pay the wait for every word.
_PATIENCE = 32


class Linger:
    """Whether a group waits a moment for company before it is written.

    Only under a steady stream: the last group has just been written, this one is small, and waiting has paid of late.
    """

    def __init__(self, linger_s: float) -> None:
        self.linger_s = linger_s
        self._last_end = float("-inf")
        self._skip = 0

    def wanted(self, now: float, calls: int) -> bool:
        """Whether a group of this many commits should wait."""
        if self.linger_s <= 0 or calls >= _FULL_GROUP or now - self._last_end > self.linger_s:
            return False
        if self._skip:
            self._skip -= 1
            return False
        return True

    def waited(self, gained: int) -> None:
        """A wait has brought this many commits."""
        self._skip = 0 if gained else _PATIENCE

    def written(self, now: float) -> None:
        """A group was written."""
        self._last_end = now


class GroupCommit:
    """The queue in front of the one writer. `run` is its task; `commit` never blocks."""

    def __init__(self, write: Write, linger_s: float, full_retry_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._linger = Linger(linger_s)
        self._full_retry_s = full_retry_s
        self._pending: list[tuple[Call, asyncio.Future[None]]] = []
        self._pending_since: float | None = None
        self._writing_since: float | None = None
        self._work = asyncio.Event()
        self._closing = asyncio.Event()
        self._refusal: JournalError | None = None
        self.held_up: MustWait | None = None
        self.last_commit_at: float | None = None
        self.last_commit_s = 0.0
        self.commits = 0
        self.changes = 0

    @property
    def waiting_since(self) -> float | None:
        """Since when the oldest unwritten commit waits, by the loop's clock, or None."""
        return self._writing_since if self._writing_since is not None else self._pending_since

    @property
    def waiting(self) -> int:
        """Commits that are not yet being written."""
        return len(self._pending)

    def commit(self, call: Call) -> asyncio.Future[None]:
        """Queue a commit; its future is done when it is on disk."""
        future = self._loop.create_future()
        if self._refusal is not None:
            future.set_exception(_again(self._refusal))
            return future
        if not self._pending:
            self._pending_since = self._loop.time()
            self._work.set()
        self._pending.append((call, future))
        return future

    async def run(self) -> None:
        """Write groups until closed. A commit never hangs: whatever ends this task refuses those that wait."""
        try:
            await self._run()
        except JournalError as error:
            self.give_up(error)
        except Exception:
            log.exception("the journal's writer failed")
            self.give_up(JournalUnusable("the journal's writer failed; see the log, and start again"))
        finally:
            self._refuse(JournalError("the journal is closed"))

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            if not self._pending:
                return  # closed and everything is written, or given up
            await self._linger_for_company()
            await self._write_pending()

    async def _linger_for_company(self) -> None:
        calls = len(self._pending)
        if self._linger.wanted(time.monotonic(), calls) and not self._closing.is_set():
            await asyncio.sleep(self._linger.linger_s)
            self._linger.waited(len(self._pending) - calls)

    async def _write_pending(self) -> None:
        group, self._pending = self._pending, []
        self._writing_since, self._pending_since = self._pending_since, None
        if not self._closing.is_set():
            self._work.clear()
        try:
            offences = await self._write_until_written([call for call, _ in group])
        except BaseException as error:
            refusal = error if isinstance(error, JournalError) else JournalUnusable("the journal's writer failed")
            _refuse(group, refusal)
            raise
        finally:
            self._writing_since = None
        for index, (_, future) in enumerate(group):
            if future.done():  # cancelled by its caller; the commit is on disk all the same
                continue
            if index in offences:
                future.set_exception(offences[index])
            else:
                future.set_result(None)

    async def _write_until_written(self, calls: Sequence[Call]) -> dict[int, JournalError]:
        while True:
            started = time.monotonic()
            try:
                offences = await self._write(calls)
            except MustWait as wait:
                self._note_hold_up(wait)
                if self._closing.is_set():
                    raise JournalFull(f"{wait}; these changes are lost with this process") from wait
                await self._pause()
                continue
            self._count(calls, started)
            return offences

    def _count(self, calls: Sequence[Call], started: float) -> None:
        self._note_hold_up(None)
        now = time.monotonic()
        self.last_commit_at = self._loop.time()
        self.last_commit_s = now - started
        self.commits += 1
        changes = sum(map(len, calls))
        self.changes += changes
        metrics.COMMIT_SECONDS.observe(self.last_commit_s)
        metrics.COMMIT_CHANGES.observe(changes)
        self._linger.written(now)

    def _note_hold_up(self, wait: MustWait | None) -> None:
        """Remember what commits wait for, and log it when it changes."""
        if wait is not None and str(wait) != str(self.held_up):
            log.warning("commits wait, nothing is acknowledged: %s", wait)
        if wait is None and self.held_up is not None:
            log.info("commits are written again; it was: %s", self.held_up)
        self.held_up = wait

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._full_retry_s):
                await self._closing.wait()

    def give_up(self, error: JournalError) -> None:
        """Refuse every commit that waits or comes, for this reason."""
        if self._refusal is None:
            log.error("the journal is given up: %s", error)
        self._refuse(error)

    def _refuse(self, error: JournalError) -> None:
        if self._refusal is None:
            self._refusal = error
        group, self._pending = self._pending, []
        self._pending_since = None
        _refuse(group, self._refusal)

    def close(self) -> None:
        """Take no more commits; `run` ends when those that wait are written, or cannot be."""
        self._refusal = self._refusal or JournalError("the journal is closed")
        self._closing.set()
        self._work.set()


def _refuse(group: Sequence[tuple[Call, asyncio.Future[None]]], error: JournalError) -> None:
    for _, future in group:
        if not future.done():
            future.set_exception(_again(error))


def _again(error: JournalError) -> JournalError:
    """An exception of its own for each future: one that is raised twice collects both tracebacks."""
    return type(error)(*error.args)
