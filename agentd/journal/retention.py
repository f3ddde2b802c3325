"""Lets go of what the journal has kept for long enough, by age and by size.

A run walks the log and the outbox from their beginnings in slices. Each slice is looked at by the reading connection,
and only where something may go a change of its own joins the commits.

Always true: a slice is bounded and the next one waits a moment, so that commits are not held up. What a lane has not
handled, what failed, and what a gap may ask for stays, whatever its age. Each run that let something go says so in the
journal and in the log.
Not here: which rows those are (sqlite/trimming.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import msgspec

from agentd import metrics
from agentd.config import Retention as Settings
from agentd.errors import JournalError
from agentd.journal.sqlite.trimming import Found, Stretch
from agentd.journal.storage import Change, Trim

log = logging.getLogger("agentd.journal")

SLICE = 512
"""Rows looked at per step. Letting all of them go takes a few milliseconds of the writer's time."""

_PAUSE_S = 0.02
_FIRST_RUN_S = 60.0  # a start has other things to do
_DAY_S = 86_400.0
_FOR_EVER = float("inf")
_BELOW_FULL = 0.8  # what lets go has to be written too, so it must not wait until nothing can be


class Journal(Protocol):
    """What a run asks of the journal."""

    def commit(self, *changes: Change) -> asyncio.Future[None]:
        """See storage.Journal."""
        ...

    async def trimmable(self, stretch: Stretch) -> Found:
        """What may go in a stretch, as things stand."""
        ...

    async def newest_in(self, after: int, upto: int) -> float | None:
        """When the last event of a stretch came, or None if there is none."""
        ...

    async def last_of(self, what: str) -> int:
        """The highest position or number in a table."""
        ...

    async def last_trim(self) -> int:
        """The number of the last trace, or 0."""
        ...

    async def used_bytes(self) -> int:
        """Bytes of pages that hold something."""
        ...


class Bound(NamedTuple):
    """One reason to let something go. before: what is older. reason: for the trace."""

    what: str
    before: float
    reason: str


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


class Retention:
    """Keeps one journal within its bounds. `run` until cancelled; `once` is one run."""

    def __init__(self, journal: Journal, settings: Settings) -> None:
        self._journal = journal
        self._settings = settings
        self._told_of_excess = False

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
        rows = 0
        for bound in bounds_of_age(self._settings, now):
            rows += await self._walk(bound, now, enough=False)
        if excess(self._settings, await self._journal.used_bytes()):
            reason = f"journal above {self._settings.journal_max_mb} MB"
            rows += await self._walk(Bound("event", _FOR_EVER, reason), now, enough=True)
            await self._tell_of_excess()
        else:
            self._told_of_excess = False
        return rows

    async def _walk(self, bound: Bound, now: float, *, enough: bool) -> int:
        """One run over a table. enough: stop once the journal is within its size."""
        journal, ignoring = self._journal, self._settings.forget_plugins
        end = await journal.last_of(bound.what)
        run = await journal.last_trim() + 1
        rows = size = after = 0
        while after < end:
            upto = min(after + SLICE, end)
            found = await journal.trimmable(Stretch(bound.what, after, upto, bound.before, ignoring))
            if found.rows:
                await journal.commit(Trim(run, bound.what, after, upto, bound.before, ignoring, bound.reason, now))
                rows, size = rows + found.rows, size + found.bytes
                metrics.TRIMMED_ROWS.inc(bound.what, by=found.rows)
                if enough and not excess(self._settings, await journal.used_bytes()):
                    break
                await asyncio.sleep(_PAUSE_S)
            elif bound.what == "event" and await self._all_younger(after, upto, bound.before):
                break  # positions and times rise together: nothing behind is older
            after = upto
        if rows:
            log.info("retention let go of %d rows (%s, %d kB): %s", rows, bound.what, size // 1_000, bound.reason)
        return rows

    async def _all_younger(self, after: int, upto: int, before: float) -> bool:
        newest = await self._journal.newest_in(after, upto)
        return newest is not None and newest >= before

    async def _tell_of_excess(self) -> None:
        over = excess(self._settings, await self._journal.used_bytes())
        if over and not self._told_of_excess:
            log.warning(
                "the journal is %d MB above journal_max_mb, and nothing more may go: see agentd retention --dry-run",
                over // 1_000_000,
            )
        self._told_of_excess = over > 0
