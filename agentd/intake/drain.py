"""Reads everything that the platform still holds for an identity, page by page, ahead of the disk.

Run with the connection already subscribed: live frames merge with the drained rows by seq. The next page is on its way
while this one is committed. What is on disk is acknowledged with a cumulative cursor, which never passes a row that is
not (a held one, a malformed one).

Always true: a page is offered whole; at most two pages are ahead of the disk; a malformed row ends the drain before
it, is reported, and is never acknowledged; a cursor that stands still ends it too.
Not here: order and repeats (core/sequencer), when to drain (supervisor, audit).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from agentd.core.acks import DrainCursor
from agentd.core.events import Source
from agentd.errors import AgentdError, CredentialsRefused, WireViolation
from agentd.intake.actor import Intake
from agentd.intake.questions import Perform
from agentd.wire.platform import Page

log = logging.getLogger("agentd.intake")

_ACK_RETRY_S = 1.0


class Drain:
    """The drain of one identity: `run_acks` for as long as it lives, `drain` whenever there may be something."""

    def __init__(
        self, intake: Intake, perform: Perform, *, on_credentials: Callable[[CredentialsRefused], None]
    ) -> None:
        self._intake = intake
        self._perform = perform
        self._on_credentials = on_credentials
        self._loop = asyncio.get_running_loop()
        self._one_at_a_time = asyncio.Lock()

    async def drain(self) -> int:
        """Offer everything that is held for us; returns how many of the rows were news.

        Raises Unavailable, CredentialsRefused or WireViolation where a page cannot be read: what came before counts.
        """
        async with self._one_at_a_time:
            intake = self._intake
            before = intake.counters.by_source[Source.DRAIN]
            intake.drain_cursor = DrainCursor()
            intake.sequencer.drain_began()
            complete = False
            try:
                complete = await self._pages()
            finally:
                intake.apply(intake.sequencer.drain_ended(self._loop.time(), complete=complete))
            await intake.settled()
            return intake.counters.by_source[Source.DRAIN] - before

    async def _pages(self) -> bool:
        intake = self._intake
        page = await self._page(None)
        while page.events and not intake.shedding:
            following = asyncio.create_task(self._page(page.cursor), name=f"{intake.identity}: next drain page")
            try:
                self._offer(page)
                await intake.settled()
                if page.malformed is not None or page.cursor is None:
                    break
                after, page = page.cursor, await following
                if page.cursor == after:
                    raise WireViolation("a drain page whose cursor stands still")
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        if page.malformed is not None:
            intake.malformed(page.malformed, "sync row, the drain stops before it")
        if intake.shedding:
            intake.has_shed = True
        return page.malformed is None and not intake.shedding

    async def _page(self, after: str | None) -> Page:
        platform = self._intake.platform
        return platform.read_drain(await self._perform(platform.drain_request(after)))

    def _offer(self, page: Page) -> None:
        intake, now = self._intake, self._loop.time()
        for event in page.events:
            intake.drain_cursor.row((event.conversation, event.seq), event.delivery_id)
        decisions = [decision for event in page.events for decision in intake.sequencer.offer(event, now)]
        decisions += intake.sequencer.page_ended(now)
        intake.apply(decisions)

    async def run_acks(self) -> None:
        """Acknowledge the cursor whenever it has moved, until cancelled. One request at a time, the furthest wins."""
        intake, platform = self._intake, self._intake.platform
        owed: str | None = None
        while True:
            if owed is None:
                await intake.drain_acked.wait()
            intake.drain_acked.clear()
            owed = intake.drain_cursor.take() or owed
            if owed is None:
                continue
            try:
                answer = await self._perform(platform.drain_ack_request(owed))
                if answer.status >= 400:
                    log.warning("drained rows will come again: %d", answer.status, extra={"identity": intake.identity})
                owed = None
            except CredentialsRefused as refused:
                self._on_credentials(refused)
                owed = None
            except AgentdError as failure:
                log.info("drained rows are not acknowledged yet: %s", failure, extra={"identity": intake.identity})
                await asyncio.sleep(_ACK_RETRY_S)
