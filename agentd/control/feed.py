"""Keeps pages up to date: which of their parts have changed, and records as they are committed.

Always true: parts are made at most once a second, however many pages look at them, and not at all while none does;
where that takes long, it is done more seldom, so that it takes a small share of the time. They become HTML in a thread,
beside the loop. A flood of records costs a page no more than the newest few of each moment: what it leaves out, it
counts.
Not here: what a part shows (page.py), who may look (http.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from agentd.control import mail, page
from agentd.control.api import Daemon
from agentd.control.refusal import ControlError
from agentd.control.standing import OUTBOX_STATES, is_listed, outbox_count
from agentd.core.health import Limits

_TICK_S = 0.5
_FRESH_S = 1.0
_SHARE = 0.1  # of the time may go into making parts: hundreds of identities are asked one by one
_STALE_MAX_S = 10.0  # one look at a disk that stood still does not stop the page for minutes
_SHOWN_MAX = 40  # records per tick: more than anybody can read
_BEFORE = 20  # records from before the page was opened, so that it is not empty
_LISTED = 20  # sends, letters and gaps: the rest is a number, and a command's


class Feed:
    """What all open pages share. streams_max: how many may be kept up to date at once."""

    def __init__(self, daemon: Daemon, limits: Limits, streams_max: int) -> None:
        self._daemon = daemon
        self._limits = limits
        self._streams_max = streams_max
        self._streams = 0
        self._parts: dict[str, str] = {}
        self._position = 0
        self._stale_at = float("-inf")
        self._making = asyncio.Lock()

    async def parts(self) -> dict[str, str]:
        """Every part of the page by its name, as HTML; not much older than a second, unless making it takes long."""
        async with self._making:
            clock = asyncio.get_running_loop().time
            if (began := clock()) >= self._stale_at:
                self._parts = await self._make()
                self._stale_at = began + min(max(_FRESH_S, (clock() - began) / _SHARE), _STALE_MAX_S)
            return self._parts

    async def _make(self) -> dict[str, str]:
        status = self._daemon.status()
        self._position = status["position"]
        gaps = await self._gaps(status)
        letters = await self._daemon.dead(None, False, _LISTED)
        sends = await self._sends(status)
        return await asyncio.to_thread(page.parts, status, self._limits, gaps, sends, letters, _LISTED)

    async def _gaps(self, status: dict[str, Any]) -> list[dict[str, Any]]:
        """Those that are open, however old, and then those that were found last."""
        rows: list[dict[str, Any]] = []
        for each in status["identities"]:
            if len(rows) < _LISTED and each.get("gaps_open"):
                rows += await self._daemon.gaps(each["name"], True, _LISTED)
        if len(rows) < _LISTED:
            rows += [row for row in await self._daemon.gaps(None, False, _LISTED) if row["closed_at"] is not None]
        return rows[:_LISTED]

    async def _sends(self, status: dict[str, Any]) -> list[dict[str, Any]]:
        """What the outbox holds, asked only of identities that have something there."""
        rows: list[dict[str, Any]] = []
        for each in status["identities"]:
            if len(rows) < _LISTED and outbox_count(each):
                rows += await self._daemon.outbox(each["name"], OUTBOX_STATES, _LISTED)
        return rows[:_LISTED]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """One more page looks, while the context lasts. Raises ControlError if there are enough."""
        if self._streams >= self._streams_max:
            raise ControlError(
                503, "TOO_MANY_PAGES", "too many pages are open", "close one, or raise [agentd.http] streams_max"
            )
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def events(self, goes_on: Callable[[], bool]) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """(name, data) of what has changed, at once and then as it happens, while `goes_on` says so."""
        shown: dict[str, str] = {}
        await self.parts()
        recent = _Recent(self._daemon, lambda: self._position, max(0, self._position - _BEFORE))
        reading = asyncio.ensure_future(recent.read())
        try:
            while goes_on() and not reading.done():
                for name, html in (await self.parts()).items():
                    if shown.get(name) != html:
                        if name == page.LIST:  # made anew, with an empty place for each
                            shown = {each: html for each, html in shown.items() if not is_listed(each)}
                        shown[name] = html
                        yield "part", {"name": name, "html": html}
                if taken := recent.take():
                    yield "records", taken
                # Something in any case, so that a connection that is gone is noticed.
                yield "tick", {}
                await asyncio.sleep(_TICK_S)
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading


class _Recent:
    """The newest records since the last look. newest: the last position, or one not much older."""

    def __init__(self, daemon: Daemon, newest: Callable[[], int], position: int) -> None:
        self._daemon = daemon
        self._newest = newest
        self._last = position
        self._records: list[dict[str, Any]] = []
        self._taken = asyncio.Event()

    async def read(self) -> None:
        """Until the daemon stops. Whoever is left behind by a flood goes on at its end."""
        while True:
            since = max(self._last, self._newest() - _SHOWN_MAX)
            async with contextlib.aclosing(self._daemon.tail(None, since)) as tail:
                async for record in tail:
                    self._records.append(record)
                    if len(self._records) >= _SHOWN_MAX:
                        break
                else:
                    return
            self._taken.clear()
            await self._taken.wait()

    def take(self) -> dict[str, Any] | None:
        """What came, the newest first, and how many came between that nobody will see."""
        records, self._records = self._records, []
        self._taken.set()
        if not records:
            return None
        skipped = records[0]["position"] - self._last - 1
        self._last = records[-1]["position"]
        return {"html": mail.records(records[::-1]), "count": len(records), "skipped": max(0, skipped)}
