"""Looks for what was never pushed: the loss of a last message shows in no hole.

On a jittered wheel: drain again (whatever the server still holds should have been pushed), read the list of
conversations for unread seqs above our marks, and compare the marks of a few conversations, the longest unaudited
first, with the server's history. The last also notices a numbering that started over.

Always true: an audit changes nothing by itself; what it finds takes the ordinary way in. Mail that is found, with
nothing newer pushed, means that this connection is deaf.
Not here: order, refetching, what to do about a deaf connection.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Callable

from agentd.core.events import FIRST_SEQ, Event
from agentd.errors import AgentdError, CredentialsRefused, Refused
from agentd.intake.actor import Intake
from agentd.intake.drain import Drain
from agentd.intake.questions import Perform, Questions
from agentd.wire.platform import Request, Standing

log = logging.getLogger("agentd.intake")

_JITTER = 0.2
_PUSH_GRACE_S = 3.0
"""A message stored while the audit reads is pushed a moment later: only what stays unpushed this long was not."""

_FAILURES_MAX = 3
"""Conversations that cannot be read in one audit; each takes as long as a request with its repeats."""


class Audit:
    """The tail audit of one identity. on_deaf: told after every audit whether this connection hears."""

    def __init__(
        self,
        intake: Intake,
        drain: Drain,
        questions: Questions,
        perform: Perform,
        *,
        on_deaf: Callable[[int], None],
        on_credentials: Callable[[CredentialsRefused], None],
    ) -> None:
        self._intake = intake
        self._drain = drain
        self._questions = questions
        self._perform = perform
        self._on_deaf = on_deaf
        self._on_credentials = on_credentials
        self._loop = asyncio.get_running_loop()
        self._audited: dict[str, float] = {}
        self.last_audit: float | None = None

    async def run(self) -> None:
        """Audit until cancelled. The first one comes soon, since a reconnect is when numberings change."""
        interval_s = self._intake.settings.audit_interval_s
        await asyncio.sleep(interval_s * random.uniform(0.05, 0.15))
        while True:
            try:
                await self.once()
            except CredentialsRefused as refused:
                self._on_credentials(refused)
            except AgentdError as failure:
                log.info("tail audit could not finish: %s", failure, extra={"identity": self._intake.identity})
            await asyncio.sleep(interval_s * random.uniform(1 - _JITTER, 1 + _JITTER))

    async def once(self) -> int:
        """One audit. Returns how many events it found that had not been pushed."""
        intake = self._intake
        intake.unpushed = {}
        intake.watching = True
        try:
            if not intake.shedding:
                await self._drain.drain()
            await self._compare_list()
            await self._compare_tails(self._longest_unaudited())
        finally:
            intake.watching = False
        self.last_audit = self._loop.time()
        if intake.unpushed:
            await asyncio.sleep(_PUSH_GRACE_S)
        found, intake.unpushed = intake.unpushed, {}  # or a long backlog would be kept until the next audit
        unheard = await self._unheard(found)
        if found:
            level = logging.WARNING if unheard else logging.INFO
            log.log(level, "audit found %d events not pushed", len(found), extra={"identity": intake.identity})
        self._on_deaf(unheard)
        return len(found)

    async def _unheard(self, found: dict[tuple[str, int], Event | None]) -> int:
        """How many of these should have been pushed here: others said them, unmuted, and nothing newer was pushed."""
        until = self._intake.pushed_until
        newer = [event for event in found.values() if event is not None and not event.own and event.created_at > until]
        muted: dict[str, bool] = {}
        unheard = len(newer)
        for event in newer:
            if not await self._is_muted(event, muted):
                return unheard
            unheard -= 1
        return unheard

    async def _is_muted(self, event: Event, known: dict[str, bool]) -> bool:
        for request in self._intake.platform.mute_requests(event.conversation, event.sender):
            if request.path not in known:
                known[request.path] = await self._says_muted(request)
            if known[request.path]:
                return True
        return False

    async def _says_muted(self, request: Request) -> bool:
        try:
            return self._intake.platform.read_mute(await self._perform(request))
        except CredentialsRefused:
            raise
        except AgentdError:
            return False  # then it counts: to dial once more costs less than to stay deaf

    # -- the server's top -------------------------------------------------------------------------------------------

    async def _compare_list(self) -> None:
        platform = self._intake.platform
        for standing in platform.read_conversations(await self._perform(platform.conversations_request())):
            self._compare_unread(standing)
        self._intake.apply(())

    def _compare_unread(self, standing: Standing) -> None:
        oldest, newest = standing.oldest_unread, standing.newest_unread
        if oldest is None or newest is None:
            return
        known = self._intake.sequencer.lines.get(standing.conversation)
        if known is None:
            self._stands_at(standing.conversation, oldest)
        self._stands_at(standing.conversation, newest)

    def _stands_at(self, conversation: str, top: int, row: Event | None = None) -> None:
        intake = self._intake
        if intake.leaves_messages:
            return  # it may be one of those, which the drain that follows fetches when there is room
        if intake.sequencer.stands_at(conversation, top, self._loop.time()):
            intake.unpushed[(conversation, top)] = row

    def _longest_unaudited(self) -> list[str]:
        lines = self._intake.sequencer.lines
        anchored = (name for name, line in lines.items() if line.anchor is not None)
        count = self._intake.settings.audit_conversations
        return heapq.nsmallest(count, anchored, key=lambda name: self._audited.get(name, 0.0))

    async def _compare_tails(self, conversations: list[str]) -> None:
        """One that cannot be read keeps no other from being compared; if none can, the audit has failed."""
        failures: list[AgentdError] = []
        compared = 0
        for conversation in conversations:
            self._audited[conversation] = self._loop.time()
            try:
                await self._compare_tail(conversation)
                compared += 1
            except CredentialsRefused:
                raise
            except AgentdError as failure:
                failures.append(failure)
                log.info(
                    "the end of a conversation could not be compared: %s",
                    failure,
                    extra={"identity": self._intake.identity, "conversation": conversation},
                )
                if len(failures) == _FAILURES_MAX:
                    break
        if failures and not compared:
            raise failures[-1]

    async def _compare_tail(self, conversation: str) -> None:
        """Read the history from the mark on: the mark's own row must be ours, anything behind it is news."""
        intake, platform = self._intake, self._intake.platform
        line = intake.sequencer.lines[conversation]
        epoch, mark = line.epoch, line.mark
        try:
            request = platform.history_request(conversation, max(FIRST_SEQ - 1, mark - 1), 2)
            page = platform.read_history(await self._perform(request))
            if not page.count:
                page = platform.read_history(await self._perform(platform.newest_request(conversation)))
            rows = [*page.events, *page.behind]
        except CredentialsRefused:
            raise
        except Refused:
            rows = []  # not ours to read any more: nothing can have been lost that we may have
        if line.epoch != epoch:
            return
        for row in rows:
            if row.seq > mark:
                self._stands_at(conversation, row.seq, row)
            elif await self._is_another(row, epoch):
                if line.epoch == epoch:
                    await self._questions.renumbered(intake.sequencer.doubted(row))
                return
        intake.apply(())

    async def _is_another(self, row: Event, epoch: int) -> bool:
        """Whether the server shows another event at a seq than the one that is accounted for there."""
        intake = self._intake
        if row.seq in intake.sequencer.lines[row.conversation].absent:
            return False
        await intake.settled()
        return await intake.recorded(row, epoch) != row.id
