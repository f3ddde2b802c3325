"""Answers what the sequencer asks: the platform's history about holes, the disk about repeats, both about resets.

A few workers per identity, born with the first question and gone with the last; one hole per conversation at a time.
A question that cannot be answered now is asked again later; it is never answered with a guess.

Always true: past `questions_max` questions only those are asked that nothing else would answer: a conversation's holes,
and one of its repeats. A failed request proves nothing absent. A row that cannot be read holds its conversation for
`unreadable_tries` requests; then the seqs that only it can have had are absent, and said to be unreadable.
Not here: when to ask (core/sequencer), order, the disk.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from agentd.core.events import FIRST_SEQ, StreamReset
from agentd.core.sequencer import PAGE, Check, Refetch, Renumbered
from agentd.errors import AgentdError, CredentialsRefused, Refused, Unavailable
from agentd.intake.actor import Intake, Question
from agentd.wire.platform import Page, Request, Response

log = logging.getLogger("agentd.intake")

_RESET_RETRY_S = 2.0
_READS_AT_ONCE = 4  # of the disk, for repeats; more would only wait for each other


class Perform(Protocol):
    """Carries out one REST request. Raises Unavailable and CredentialsRefused."""

    def __call__(self, request: Request) -> Awaitable[Response]:
        """See the class."""
        ...


class _Asked:
    """What waits for answers of one kind, and how many are looked for at once."""

    def __init__(self, at_once: int) -> None:
        self.waiting: deque[Question] = deque()
        self.at_once = at_once
        self.workers = 0


class Questions:
    """The workers of one identity. `ask` never blocks; `run` until cancelled.

    on_credentials: the platform refused the key while a question was asked. forgone: repeats that were too many to ask
    about; they are unacknowledged, and a drain brings them again.
    """

    def __init__(
        self,
        intake: Intake,
        perform: Perform,
        *,
        on_credentials: Callable[[CredentialsRefused], None],
    ) -> None:
        self._intake = intake
        self._perform = perform
        self._on_credentials = on_credentials
        # What the disk can tell waits for no platform that does not answer.
        self._of_platform = _Asked(intake.settings.refetch_concurrency)
        self._of_disk = _Asked(_READS_AT_ONCE)
        self._owing = False
        self.forgone = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._unreadable: dict[str, int] = {}
        self._resetting: set[str] = set()
        self._loop = asyncio.get_running_loop()

    def ask(self, question: Question) -> None:
        """Answer this when a worker is free."""
        if self.full and isinstance(question, Check) and self._intake.sequencer.forgo(question):
            self.forgone += 1
            self._owing = True
            return
        asked = self._of_disk if isinstance(question, Check) else self._of_platform
        asked.waiting.append(question)
        self._add_worker(asked)

    @property
    def waiting(self) -> int:
        """Questions that no worker has taken yet."""
        return len(self._of_platform.waiting) + len(self._of_disk.waiting)

    @property
    def full(self) -> bool:
        """Repeats are left with the server for now."""
        return len(self._of_disk.waiting) >= self._intake.settings.questions_max

    async def run(self) -> None:
        """Answer questions until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for asked in (self._of_platform, self._of_disk):
                for _ in range(min(len(asked.waiting), asked.at_once)):
                    self._add_worker(asked)
            try:
                await self._loop.create_future()
            finally:
                self._tasks = None  # a commit that lands now has nobody to ask

    def _add_worker(self, asked: _Asked) -> None:
        if self._tasks is not None and asked.workers < asked.at_once:
            asked.workers += 1
            self._tasks.create_task(self._work(asked), name=f"{self._intake.identity}: question")

    async def _work(self, asked: _Asked) -> None:
        try:
            while asked.waiting:
                question = asked.waiting.popleft()
                if isinstance(question, Refetch):
                    await self._refetch(question)
                elif isinstance(question, Check):
                    await self._check(question)
                else:
                    await self.renumbered(question)
        finally:
            asked.workers -= 1
        if self._owing and not self._of_disk.waiting:
            self._owing = False
            self._intake.survey()

    # -- holes ------------------------------------------------------------------------------------------------------

    async def _refetch(self, ask: Refetch) -> None:
        intake = self._intake
        now = self._loop.time
        # One row more than was asked for: the row at the mark tells whether the numbering is still the one we know.
        after = max(FIRST_SEQ - 1, ask.start - 2)
        try:
            page = await self._history(ask, after)
            if _ends_at_the_mark(page, ask):
                # A page may be shorter than asked for: whether nothing is behind the mark, only an empty one says.
                behind = await self._history(ask, ask.start - 1)
                page = msgspec.structs.replace(behind, events=[*page.events, *behind.events])
        except CredentialsRefused as refused:
            self._failed(ask, refused)
            self._on_credentials(refused)
        except Refused as refused:
            intake.apply(intake.sequencer.refetched(ask, (), ask.stop, now(), reason=refused.code))
        except AgentdError as failure:
            self._failed(ask, failure)
        else:
            self._answer(ask, page)

    async def _history(self, ask: Refetch, after: int) -> Page:
        platform = self._intake.platform
        request = platform.history_request(ask.conversation, after, min(PAGE, ask.stop - 1 - after))
        return platform.read_history(await self._perform(request))

    def _answer(self, ask: Refetch, page: Page) -> None:
        intake = self._intake
        rows, reason = page.events, "not in history"
        ahead = rows and rows[-1].seq >= ask.start
        proven = rows[-1].seq + 1 if ahead else ask.start if page.malformed else ask.stop
        if page.malformed is None:
            self._unreadable.pop(ask.conversation, None)
        else:
            tries = self._unreadable[ask.conversation] = self._unreadable.get(ask.conversation, 0) + 1
            intake.malformed(page.malformed, "history row")
            if tries >= intake.settings.unreadable_tries:
                rows, reason = [*rows, *page.behind], "unreadable"
                proven = max(proven + 1, rows[-1].seq + 1 if rows else 0)
            elif proven == ask.start:
                self._failed(ask, Unavailable("unreadable history row"))
                return
        intake.apply(intake.sequencer.refetched(ask, rows, proven, self._loop.time(), reason))

    def _failed(self, ask: Refetch, failure: AgentdError) -> None:
        retry_after_s = failure.retry_after_s if isinstance(failure, Unavailable) else None
        self._intake.sequencer.refetch_failed(ask, self._loop.time(), retry_after_s)
        self._intake.apply(())
        log.info(
            "history of a gap could not be read, will ask again: %s",
            failure,
            extra={"identity": self._intake.identity, "conversation": ask.conversation},
        )

    # -- repeats ----------------------------------------------------------------------------------------------------

    async def _check(self, check: Check) -> None:
        # The epoch is that of the asking: after a reset meanwhile nobody waits for this answer any more.
        intake, (event, epoch) = self._intake, check
        recorded = await intake.recorded(event, epoch)
        intake.apply(intake.sequencer.checked(event, epoch, recorded, self._loop.time()))

    # -- resets -----------------------------------------------------------------------------------------------------

    async def renumbered(self, cause: Renumbered) -> None:
        """Start a new epoch of this conversation at what the server holds now. Repeats itself until it is known."""
        intake, event = self._intake, cause.event
        conversation = event.conversation
        line = intake.sequencer.lines[conversation]
        if line.epoch != cause.epoch:  # several events told of one reset
            intake.apply(intake.sequencer.offer(event, self._loop.time()))
            return
        if conversation in self._resetting:
            return  # the event that asked again is part of what the new epoch replays
        self._resetting.add(conversation)
        try:
            top = max(event.seq, await self._newest(conversation))
            await intake.settled()
            number = intake.number_of(conversation)
            known = frozenset(await intake.journal.ids_of(number)) if number is not None else frozenset[str]()
        except AgentdError as failure:
            log.info("a reset could not be measured yet: %s", failure, extra={"identity": intake.identity})
            self._loop.call_later(_RESET_RETRY_S * (0.5 + random.random()), self.ask, cause)
            if isinstance(failure, CredentialsRefused):
                self._on_credentials(failure)
            return
        finally:
            self._resetting.discard(conversation)
        adopt = intake.settings.on_reset == "adopt"
        decisions = intake.sequencer.reset(conversation, self._loop.time(), top=top, adopt=adopt, known_ids=known)
        log.warning(
            "the server numbers this conversation anew: epoch %d up to seq %d",
            line.epoch,
            line.top,
            extra={"identity": intake.identity, "conversation": conversation},
        )
        reset = StreamReset(
            identity=intake.identity, conversation=conversation, epoch=line.epoch, top=line.top, adopted=adopt
        )
        intake.reset(decisions, reset)
        await self._look_again(conversation)

    async def _look_again(self, conversation: str) -> None:
        """What was pushed while a top was measured was dropped with the buffer, and may lie above it."""
        intake = self._intake
        line = intake.sequencer.lines[conversation]
        epoch = line.epoch
        try:
            newest = await self._newest(conversation)
        except AgentdError:
            intake.survey()  # it is unacknowledged, so a drain brings it again
            return
        if line.epoch == epoch:
            intake.sequencer.stands_at(conversation, newest, self._loop.time())
            intake.apply(())

    async def _newest(self, conversation: str) -> int:
        """The highest seq that the server shows, 0 if none."""
        platform = self._intake.platform
        try:
            page = platform.read_history(await self._perform(platform.newest_request(conversation)))
        except CredentialsRefused:
            raise
        except Refused:
            return 0  # not ours to read any more: what was pushed is all that will be known
        return max((row.seq for row in page.events), default=0)


def _ends_at_the_mark(page: Page, ask: Refetch) -> bool:
    """Nothing in it is of the hole: neither a row, nor one that cannot be read behind that of the mark."""
    of_the_hole = any(row.seq >= ask.start for row in (*page.events, *page.behind))
    return page.count > 0 and not of_the_hole and not (page.events and page.malformed)
