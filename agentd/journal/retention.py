"""Lets go of what the journal has kept for long enough, by age and by size; gives free room back to the disk.

A run walks the log, the outbox and the outcomes of turns from their beginnings in slices, by age one after the other,
by size the oldest first over all of them. Each slice is looked at by the reading connection, and only where something
may go a change of its own joins the commits. Room is given back in steps of the same kind.

Always true: a slice is bounded and the next one waits a moment, so that commits are not held up. What a lane has not
handled, what failed, and what a gap may ask for stays, whatever its age. Each run that let something go says so in the
journal and in the log; that the bound of size comes near is said before anything goes for it. One run at a time.
Not here: which rows those are (sqlite/trimming.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple, Protocol

import msgspec

from agentd import metrics
from agentd.config import Retention as Settings
from agentd.errors import JournalError
from agentd.journal.sqlite.events import Part
from agentd.journal.sqlite.trimming import Found, Stretch
from agentd.journal.storage import Change, Room, Shrink, Trim

log = logging.getLogger("agentd.journal")

SLICE = 512
"""Rows looked at per step. Letting all of them go takes some ten milliseconds of the writer's time."""

STEP_PAGES = 256
"""Pages given back per step: a megabyte to be written, as much as a busy commit."""

TABLES = ("event", "outbox", "outcome")

_PAUSE_S = 0.02
_FIRST_RUN_S = 60.0  # a start has other things to do
_DAY_S = 86_400.0
_FOR_EVER = float("inf")
_BELOW_FULL = 0.8  # what lets go has to be written too, so it must not wait until nothing can be
_NEAR = 0.8  # of the bound of size: time to copy or export what is to be kept


class Looking(Protocol):
    """What a look at what may go asks of a journal."""

    async def trimmable(self, stretch: Stretch) -> Found:
        """What may go in a stretch, as things stand."""
        ...

    async def newest_in(self, after: int, upto: int) -> float | None:
        """When the last event of a stretch came, or None if there is none."""
        ...

    async def parts(self, what: str) -> list[Part]:
        """The parts that a table is walked in."""
        ...


class Journal(Looking, Protocol):
    """What a run asks of it."""

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """See storage.Journal."""
        ...

    async def last_trim(self) -> int:
        """The number of the last trace, or 0."""
        ...

    async def room(self) -> Room:
        """How large the file is, and how much of it is free."""
        ...

    async def settle_file(self) -> None:
        """Let the file itself follow what was committed."""
        ...


class Bound(NamedTuple):
    """One reason to let something go. before: what is older. reason: for the trace."""

    what: str
    before: float
    reason: str


class Slice(NamedTuple):
    """A stretch of a table, and what may go in it."""

    stretch: Stretch
    found: Found


def bounds_of_age(settings: Settings, now: float) -> Iterator[Bound]:
    """What the settings say about age. now: Unix seconds."""
    events_days, outbox_days = settings.events_max_age_days, settings.outbox_max_age_days
    for what, days in (("event", events_days), ("outcome", events_days), ("outbox", outbox_days)):
        if days:
            yield Bound(what, now - days * _DAY_S, f"older than {days:g} days")


def excess(settings: Settings, used_bytes: int) -> int:
    """Bytes above the bound of size; 0 where there is none."""
    return max(0, used_bytes - settings.journal_max_mb * 1_000_000) if settings.journal_max_mb else 0


def below(settings: Settings, full_mb: int) -> Settings:
    """The same, with its bound of size below that at which the journal takes nothing more. full_mb: 0 for none."""
    if not full_mb:
        return settings
    room_mb = max(1, int(full_mb * _BELOW_FULL))
    return msgspec.structs.replace(settings, journal_max_mb=min(room_mb, settings.journal_max_mb or room_mb))


async def slices(looking: Looking, bound: Bound, ignoring: tuple[str, ...]) -> AsyncGenerator[Slice, None]:
    """The slices of a table in which something may go, from its beginning on."""
    for part in await looking.parts(bound.what):
        async with contextlib.aclosing(_slices_of(looking, part, bound, ignoring)) as found:
            async for each in found:
                yield each


async def _slices_of(
    looking: Looking, part: Part, bound: Bound, ignoring: tuple[str, ...]
) -> AsyncGenerator[Slice, None]:
    after = part.after
    while after < part.upto:
        stretch = Stretch(bound.what, after, min(after + SLICE, part.upto), bound.before, ignoring)
        found = await looking.trimmable(stretch)
        if found.rows:
            yield Slice(stretch, found)
        elif part.rises:
            newest = await looking.newest_in(after, stretch.upto)
            if newest is not None and newest >= bound.before:
                return  # nothing behind is older
        after = stretch.upto


async def oldest_first(looking: Looking, ignoring: tuple[str, ...]) -> AsyncGenerator[Slice, None]:
    """Every slice in which something may go, whatever its age, merged over the tables by the age of its oldest row."""
    bounds = [Bound(what, _FOR_EVER, "") for what in TABLES]
    walks = [_slices_of(looking, part, bound, ignoring) for bound in bounds for part in await looking.parts(bound.what)]
    heads: list[tuple[float, int, Slice]] = []
    try:
        for number, walk in enumerate(walks):
            async for head in walk:
                heads.append((head.found.oldest, number, head))
                break
        heapq.heapify(heads)
        while heads:
            _, number, oldest = heapq.heappop(heads)
            yield oldest
            async for head in walks[number]:
                heapq.heappush(heads, (head.found.oldest, number, head))
                break
    finally:
        for walk in walks:
            await walk.aclose()


class Retention:
    """Keeps one journal within its bounds. `run` until cancelled; `once` is one run."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        self._journal = journal
        self._settings = settings
        self._told = ""
        self._running = asyncio.Lock()

    async def run(self) -> None:
        """A run every `every_s`. A journal that fails is not this task's to report."""
        await asyncio.sleep(min(_FIRST_RUN_S, self._settings.every_s))
        while True:
            try:
                await self.once(time.time())
            except JournalError as error:
                log.info("retention will try again: %s", error)
            await asyncio.sleep(self._settings.every_s)

    async def once(self, now: float) -> int:
        """Let go of what is too old, then of the oldest while the journal is too large. Returns how many rows."""
        async with self._running:
            rows = 0
            for bound in bounds_of_age(self._settings, now):
                rows += await self._age(bound, now)
            used_bytes = (await self._journal.room()).used_bytes
            if excess(self._settings, used_bytes):
                rows += await self._size(now)
                used_bytes = (await self._journal.room()).used_bytes
            self._tell_of_size(used_bytes)
            return rows

    async def _age(self, bound: Bound, now: float) -> int:
        walk = slices(self._journal, bound, self._settings.forget_plugins)
        run = await self._journal.last_trim() + 1
        gone = Found()
        async with contextlib.aclosing(walk):
            async for slice_ in walk:
                gone = gone.joined(await self._let_go(slice_, run, bound.reason, now))
        _tell(bound.what, gone, bound.reason)
        return gone.rows

    async def _size(self, now: float) -> int:
        """The oldest over all tables, until the journal is within its bound."""
        walk = oldest_first(self._journal, self._settings.forget_plugins)
        reason = f"journal above {self._settings.journal_max_mb} MB"
        first = await self._journal.last_trim() + 1
        runs = {what: first + number for number, what in enumerate(TABLES)}  # a trace is about one table
        gone = dict.fromkeys(TABLES, Found())
        async with contextlib.aclosing(walk):
            async for slice_ in walk:
                what = slice_.stretch.what
                gone[what] = gone[what].joined(await self._let_go(slice_, runs[what], reason, now))
                if not excess(self._settings, (await self._journal.room()).used_bytes):
                    break
        for what, found in gone.items():
            _tell(what, found, reason)
        return sum(found.rows for found in gone.values())

    async def _let_go(self, slice_: Slice, run: int, reason: str, now: float) -> Found:
        what, after, upto, before, ignoring = slice_.stretch
        await self._journal.commit(Trim(run, what, after, upto, before, ignoring, reason, now))
        metrics.TRIMMED_ROWS.inc(what, by=slice_.found.rows)
        await asyncio.sleep(_PAUSE_S)
        return slice_.found

    def _tell_of_size(self, used_bytes: int) -> None:
        """Once each time that it becomes so: the bound comes near, or cannot be kept."""
        bound_mb, over = self._settings.journal_max_mb, excess(self._settings, used_bytes)
        told = "over" if over else "near" if bound_mb and used_bytes > bound_mb * 1_000_000 * _NEAR else ""
        if told == "over" and self._told != told:
            log.warning(
                "the journal is %d MB above journal_max_mb, and nothing more may go: see agentd retention --dry-run",
                over // 1_000_000,
            )
        elif told == "near" and not self._told:
            log.warning(
                "the journal uses %d MB, and above %d MB (agentd.retention.journal_max_mb) the texts of its oldest "
                "handled events go: raise the bound, or keep them elsewhere first with agentd backup or agentd export",
                used_bytes // 1_000_000,
                bound_mb,
            )
        self._told = told

    async def shrink(self) -> AsyncGenerator[tuple[int, int], None]:
        """Give the room that is free now back to the disk, while commits go on between the steps.

        Yields bytes given back, of how many. What is let go meanwhile is left for another time, so that this ends.
        """
        journal = self._journal
        left = free = (await journal.room()).free_bytes
        while left > 0:
            yield free - left, free
            before = await journal.room()
            await journal.commit(Shrink(STEP_PAGES))
            await asyncio.sleep(_PAUSE_S)
            after = await journal.room()
            left -= before.size_bytes - after.size_bytes
            if after.size_bytes >= before.size_bytes:
                break  # commits take the room as fast
        await journal.settle_file()


def _tell(what: str, gone: Found, reason: str) -> None:
    if gone.rows:
        log.info("retention let go of %d rows (%s, %d kB): %s", gone.rows, what, gone.bytes // 1_000, reason)
