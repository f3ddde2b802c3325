"""Carries the outbox to the platform: in order per target, paced, each send under its one key.

A target is a handle or a conversation; its sends leave one at a time. What a send becomes is told to the journal; its
place in the conversation is told to intake, which counts the seq as ours.

Always true: nothing leaves that is not in the outbox on disk. A send keeps its client_msg_id through every attempt and
every restart. A send whose answer never came is "unknown" until the platform has answered for it: it is repeated under
the same key where the platform deduplicates, and stops its target where it does not.
Not here: the pace (core/pacing), what an answer means (wire), where rows come from (handlers, the control socket).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from agentd import config, metrics
from agentd.core.events import Event, Send
from agentd.core.pacing import Pace, Pacing
from agentd.errors import AgentdError, CredentialsRefused, OutcomeUnknown, Unavailable, WireViolation
from agentd.journal.storage import Carried, Journal
from agentd.wire.platform import Accepted, Later, Platform, Rejection, Request, Response, SendAnswer

log = logging.getLogger("agentd.sender")

_STATES = ("ready", "unknown", "sent", "refused", "expired")


class PerformOnce(Protocol):
    """Carries out one REST request, once. Raises Unavailable, OutcomeUnknown, CredentialsRefused."""

    def __call__(self, request: Request, *, once: bool) -> Awaitable[Response]:
        """See the class."""
        ...


class OwnSeqs(Protocol):
    """The part of intake that wants to know about sends: their seqs are holes until they are told."""

    def sending(self, target: str) -> None:
        """A send to this target is under way."""
        ...

    def own(self, event: Event, target: str) -> None:
        """It was accepted at this place."""
        ...

    def sending_over(self, target: str) -> None:
        """Its answer was told, or will never come."""
        ...


class Sender:
    """The way out of one identity. `run` until cancelled; `queued` whenever rows were committed to the outbox.

    on_settled: told of every send that reached an end, for whoever waits for it.
    """

    def __init__(
        self,
        identity: str,
        platform: Platform,
        journal: Journal,
        perform: PerformOnce,
        own_seqs: OwnSeqs,
        settings: config.Sending,
        *,
        on_credentials: Callable[[CredentialsRefused], None],
        on_settled: Callable[[Carried], None],
    ) -> None:
        self._identity = identity
        self._platform = platform
        self._journal = journal
        self._perform = perform
        self._own_seqs = own_seqs
        self._settings = settings
        self._on_credentials = on_credentials
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self.pacing = Pacing(
            Pace(
                rate_per_s=settings.rate_per_s,
                retry_first_s=settings.retry_first_s,
                retry_max_s=settings.retry_max_s,
            )
        )
        self._lanes: dict[str, deque[Send]] = {}
        self._open: set[str] = set()
        self._early: list[Send] = []
        self._running: set[str] = set()
        self._stopped: set[str] = set()
        self._wakes: dict[str, asyncio.TimerHandle] = {}
        self._eligible: deque[str] = deque()
        self._tasks: asyncio.TaskGroup | None = None
        self._workers = 0
        self._paused = False
        self.counts = dict.fromkeys(_STATES, 0)
        self.replays = 0

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up what the outbox holds and carry it until cancelled."""
        open_sends = await self._journal.outbox_open(self._identity)
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            # At once, whatever they waited for: a reply that a target owed may have come while nobody was here.
            self._take_up(msgspec.structs.replace(send, not_before=0.0) for send in open_sends)
            self._take_up(self._early)
            self._early.clear()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None
                for wake in self._wakes.values():
                    wake.cancel()

    def queued(self, sends: Iterable[Send]) -> None:
        """These are in the outbox on disk now."""
        if self._tasks is None:
            self._early.extend(sends)
        else:
            self._take_up(sends)

    def pause(self) -> None:
        """Let nothing leave: the key is refused, or the identity is stopping."""
        self._paused = True

    def resume(self) -> None:
        """Let sends leave again."""
        self._paused = False
        for target in list(self._lanes):
            self._offer(target)

    def heard_from(self, target: str) -> None:
        """A message of this target came in: sends that waited for its reply may leave."""
        if self.pacing.replied(target):
            if lane := self._lanes.get(target):
                lane[0] = msgspec.structs.replace(lane[0], not_before=0.0)
            self._offer(target)

    @property
    def waiting(self) -> int:
        """Sends that have not reached an end."""
        return sum(map(len, self._lanes.values()))

    # -- which target may go ----------------------------------------------------------------------------------------

    def _take_up(self, sends: Iterable[Send]) -> None:
        for send in sends:
            if send.client_msg_id in self._open:
                continue  # read from the outbox and rung by its commit: the same row
            self._open.add(send.client_msg_id)
            self._lanes.setdefault(send.target, deque()).append(send)
            unknown = send.state in ("unknown", "sending")
            self.counts["unknown" if unknown else "ready"] += 1
            if unknown and not self._platform.deduplicates_sends:
                self._stopped.add(send.target)
            self._offer(send.target)

    def _offer(self, target: str) -> None:
        """Let the target go now, or arm the clock for when it may."""
        if (wake := self._wakes.pop(target, None)) is not None:
            wake.cancel()
        if self._tasks is None or self._paused or not self._lanes.get(target):
            return
        if target in self._running or target in self._stopped:
            return
        now = self._loop.time()
        head_due = now + max(0.0, self._lanes[target][0].not_before - time.time())
        at = max(self.pacing.may_leave_at(target, now), head_due)
        if at > now:
            self._wakes[target] = self._loop.call_at(at, self._offer, target)
            return
        self._running.add(target)
        self._eligible.append(target)
        if self._workers < self._settings.concurrency:
            self._workers += 1
            self._tasks.create_task(self._work(), name=f"{self._identity}: sender")

    async def _work(self) -> None:
        try:
            while self._eligible and not self._paused:
                target = self._eligible.popleft()
                try:
                    if await self._its_turn(target):
                        await self._carry(target, self._lanes[target][0])
                finally:
                    self._running.discard(target)
                self._offer(target)
        finally:
            self._workers -= 1
            if self._paused:
                self._running.difference_update(self._eligible)
                self._eligible.clear()

    async def _its_turn(self, target: str) -> bool:
        """Wait for the identity's rate: one token may have made many targets eligible. False if paused meanwhile."""
        while not self._paused:
            now = self._loop.time()
            if (at := self.pacing.may_leave_at(target, now)) <= now:
                return True
            await asyncio.sleep(at - now)
        return False

    # -- one send ---------------------------------------------------------------------------------------------------

    async def _carry(self, target: str, send: Send) -> None:
        self.pacing.leaves(target, self._loop.time())
        if not self._platform.deduplicates_sends:
            await self._journal.commit(self._carried(send, "sending"))
        self._own_seqs.sending(target)
        try:
            answer = await self._ask(send)
            if isinstance(answer, Accepted):
                self._own_seqs.own(answer.event, target)
        except (OutcomeUnknown, WireViolation) as unknown:
            self._unknown(target, send, unknown)
            return
        except CredentialsRefused as refused:
            self._paused = True
            self._on_credentials(refused)
            return
        except AgentdError as failure:
            retry_after_s = failure.retry_after_s if isinstance(failure, Unavailable) else None
            answer = Later(code="UNAVAILABLE", scope="target", retry_after_s=retry_after_s)
        finally:
            self._own_seqs.sending_over(target)
        if isinstance(answer, Accepted):
            self._accepted(target, send, answer)
        elif isinstance(answer, Rejection):
            self._refused(target, send, answer)
        else:
            self._later(target, send, answer)

    async def _ask(self, send: Send) -> SendAnswer:
        response = await self._perform(self._platform.send_request(send), once=True)
        return self._platform.read_send(response, send)

    def _accepted(self, target: str, send: Send, answer: Accepted) -> None:
        self.replays += answer.replayed
        backlog = answer.backlog[1] if answer.backlog is not None else None
        self.pacing.accepted(target, self._loop.time(), backlog)
        if backlog is not None:
            log.info("recipient has %d undelivered messages: slower", backlog, extra={"identity": self._identity})
        event = answer.event
        self._settle(target, self._carried(send, "sent", event.id, event.seq, event.conversation))

    def _refused(self, target: str, send: Send, answer: Rejection) -> None:
        log.warning(
            "send refused for good: %d %s (request %s)",
            answer.status,
            answer.code,
            answer.request_id,
            extra={"identity": self._identity},
        )
        error = f"{answer.status} {answer.code} {answer.message} (request {answer.request_id})"
        self._settle(target, self._carried(send, "refused", error=error))

    def _later(self, target: str, send: Send, answer: Later) -> None:
        now = self._loop.time()
        backlog = answer.backlog[1] if answer.backlog is not None else None
        until = self.pacing.refused_for_now(target, answer.scope, now, answer.retry_after_s, backlog)
        # Not stored this time; what became of an earlier attempt is still unknown.
        state = "unknown" if send.state in ("unknown", "sending") else "ready"
        self._again(target, send, state, until - now, answer.code)

    def _unknown(self, target: str, send: Send, why: Exception) -> None:
        """The answer never came. Where the platform keeps the key, asking again under it tells what happened."""
        if not self._platform.deduplicates_sends:
            self._stopped.add(target)
        until = self.pacing.refused_for_now(target, "target", self._loop.time(), None)
        self._again(target, send, "unknown", until - self._loop.time(), str(why))

    # -- what became of it ------------------------------------------------------------------------------------------

    def _again(self, target: str, send: Send, state: str, wait_s: float, error: str) -> None:
        wait_s *= random.uniform(1.0, 1.25)
        carried = self._carried(send, state, error=error, not_before=time.time() + wait_s)
        self._journal.commit(carried)
        self._count(send, state)
        metrics.SEND_RETRIES.inc(self._identity)
        self._lanes[target][0] = msgspec.structs.replace(
            send, attempts=carried.attempts, not_before=carried.not_before, state=state
        )

    def _settle(self, target: str, carried: Carried) -> None:
        self._journal.commit(carried).add_done_callback(partial(self._on_disk, carried))
        lane = self._lanes[target]
        self._open.discard(carried.client_msg_id)
        self._count(lane.popleft(), carried.state)
        if not lane:
            del self._lanes[target]

    def _on_disk(self, carried: Carried, commit: asyncio.Future[None]) -> None:
        if not commit.cancelled() and commit.exception() is None:
            self._on_settled(carried)

    def _count(self, send: Send, state: str) -> None:
        self.counts["unknown" if send.state in ("unknown", "sending") else "ready"] -= 1
        self.counts[state] += 1
        if state != "ready":
            metrics.SENDS.inc(self._identity, state)

    def _carried(
        self,
        send: Send,
        state: str,
        result_id: str | None = None,
        result_seq: int | None = None,
        conversation: str | None = None,
        *,
        error: str = "",
        not_before: float = 0.0,
    ) -> Carried:
        return Carried(
            client_msg_id=send.client_msg_id,
            identity=self._identity,
            state=state,
            attempts=send.attempts + 1,
            not_before=not_before,
            result_id=result_id,
            result_seq=result_seq,
            conversation=conversation,
            error=error,
            at=time.time(),
        )
