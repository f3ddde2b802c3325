"""Carries the outbox to the platform: in order per target, paced, each send under its one key.

A target is a handle or a conversation; its sends leave one at a time, and two names of one conversation are one target.
What a send becomes is told to the journal; its place in the conversation is told to intake, which counts the seq as
ours.

                 ┌─── later ────────┐
                 v                  │
    queued ──> ready ─ leaves ─> sending ─ accepted ───────────> sent
                 │                 │ └──── refused for good ───> refused
                 │                 └─ no answer ─> unknown ─ asked under the same key ─> sent, refused, unknown
                 │                                    └ or looked up ─> sent; not there: ready; undecided: stopped
                 └─ its time is over ──────────────────────────> expired

    drop: ready, unknown, refused, expired ──> dropped           retry: refused, expired, dropped ──> ready
                                                                 and unknown, where nobody else can tell

"sending" is on disk only where it matters after a crash: the platform does not deduplicate, or the send can expire.
Elsewhere a row that is under way still reads "ready" or "unknown", since sending it again does no harm.

Always true: nothing leaves that is not in the outbox on disk. A send keeps its client_msg_id through every attempt and
every restart. A send whose answer never came is "unknown" until the platform has answered for it: it is repeated under
the same key where the platform deduplicates, looked up behind the place where it left where it does not, and stops its
target until somebody decides (`retry`, `drop`) where that cannot tell. "expired" is said only of what the platform
surely does not have. No row is ever deleted.
Not here: the pace (core/pacing), what an answer means (wire), what a look at a history says (core/lookup), where rows
come from (handlers, the control socket).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from agentd import config, metrics
from agentd.core.events import OPEN_STATES, SETTLED_STATES, Content, Event, Position, Send, Source
from agentd.core.lookup import Found, NotThere, TooEarly, Undecided, Verdict, judge
from agentd.core.pacing import Pace, Pacing
from agentd.errors import (
    AgentdError,
    CredentialsRefused,
    JournalError,
    OutcomeUnknown,
    Refused,
    Unavailable,
    WireViolation,
)
from agentd.journal.storage import Carried, Journal, OutboxRow, Retried
from agentd.tracing import Traces
from agentd.wire.platform import Accepted, Later, Platform, Rejection, Request, Response, SendAnswer

log = logging.getLogger("agentd.sender")


class PerformOnce(Protocol):
    """Carries out one REST request, once. Raises Unavailable, OutcomeUnknown, CredentialsRefused."""

    def __call__(self, request: Request, *, once: bool) -> Awaitable[Response]:
        """See the class."""
        ...


class OwnSeqs(Protocol):
    """The part of intake that wants to know about sends: their seqs are holes until they are told."""

    def address(self, target: str) -> str:
        """The one name under which this target is sent to."""
        ...

    def position(self, target: str) -> Position | None:
        """Where its conversation stands now; None where that is not known."""
        ...

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

    on_settled: told of every send that reached an end, for whoever waits for it. traces: who follows sends, or None.
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
        traces: Traces | None = None,
    ) -> None:
        self._identity = identity
        self._platform = platform
        self._journal = journal
        self._perform = perform
        self._own_seqs = own_seqs
        self._settings = settings
        self._on_credentials = on_credentials
        self._on_settled = on_settled
        self._traces = traces
        self._loop = asyncio.get_running_loop()
        self.pacing = Pacing(
            Pace(
                rate_per_s=settings.rate_per_s,
                retry_first_s=settings.retry_first_s,
                retry_max_s=settings.retry_max_s,
                reply_wait_max_s=settings.reply_wait_max_s,
                group_rate_per_s=settings.group_rate_per_s,
                targets_max=settings.paced_targets_max,
            )
        )
        self._lanes: dict[str, deque[Send]] = {}
        self._open: dict[str, str] = {}
        """Keys of the sends in lanes, with the lane."""
        self._early: list[Send] = []
        self._found: set[str] = set()
        """Keys of what the start found on the disk."""
        self._running: set[str] = set()
        self._under_way: set[str] = set()
        self._withdrawn: set[str] = set()
        self._retrying: set[str] = set()
        """Keys that somebody wants to leave after all, until they are in a lane."""
        self._spoke: set[str] = set()
        self._stopped: set[str] = set()
        self._silent_since: dict[str, float] = {}
        """Since when no request is under way for a send that may be there, by key."""
        self._wakes: dict[str, asyncio.TimerHandle] = {}
        self._eligible: deque[str] = deque()
        self._tasks: asyncio.TaskGroup | None = None
        self._workers = 0
        self._rested: asyncio.Future[None] | None = None
        self._paused = False
        self.counts = dict.fromkeys(("ready", "unknown", *SETTLED_STATES), 0)
        self.replays = 0

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up what the outbox holds and carry it until cancelled."""
        settled = (await self._journal.totals(self._identity)).outbox
        for state in SETTLED_STATES:
            self.counts[state] += settled.get(state, 0)
        open_sends = await self._journal.outbox_open(self._identity)
        self._found = {send.client_msg_id for send in open_sends}
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            # At once, whatever they waited for: a reply that a target owed may have come while nobody was here.
            self._take_up(msgspec.structs.replace(send, not_before=0.0) for send in open_sends)
            self._take_up(self._early)
            self._early.clear()
            self._withdrawn.clear()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None
                for wake in self._wakes.values():
                    wake.cancel()

    def queued(self, sends: Iterable[Send]) -> None:
        """These are in the outbox on disk now, for the first time."""
        # The start may have read one from the disk before this, and may even be through with it.
        self._ring(send for send in sends if send.client_msg_id not in self._found)

    def _ring(self, sends: Iterable[Send]) -> None:
        if self._tasks is None:
            self._early.extend(sends)
        else:
            self._take_up(sends)

    def pause(self) -> None:
        """Let nothing leave: the key is refused, or the identity is stopping."""
        self._paused = True

    async def rest(self, timeout_s: float) -> None:
        """Let nothing leave, and wait so long for the answers to what has left."""
        self.pause()
        self._rested = self._loop.create_future()
        if self._workers:
            await asyncio.wait((self._rested,), timeout=timeout_s)

    def resume(self) -> None:
        """Let sends leave again."""
        self._paused = False
        for target in list(self._lanes):
            self._offer(target)

    @property
    def listening(self) -> bool:
        """Whether `heard_from` would change anything."""
        return bool(self.pacing.awaiting or self._under_way)

    def heard_from(self, target: str) -> None:
        """A message of this target came in: sends that waited for its reply may leave."""
        if target in self._running:
            self._spoke.add(target)
        if self.pacing.replied(target):
            if lane := self._lanes.get(target):
                lane[0] = msgspec.structs.replace(lane[0], not_before=0.0)
            self._offer(target)

    @property
    def room(self) -> int:
        """How many more sends the outbox takes; 0 or less when it is full."""
        return self._settings.outbox_max - self.counts["ready"] - self.counts["unknown"]

    def peer_backlog(self, target: str) -> int | None:
        """How many messages this recipient had not taken yet when the platform last warned, None if it does not."""
        return self.pacing.backlog_of(self._own_seqs.address(target))

    @property
    def stopped(self) -> int:
        """Targets that stand still until somebody decides."""
        return len(self._stopped)

    def needs_decision(self, send: Send) -> bool:
        """Nobody can tell whether this send arrived, and its target stands still until somebody decides.

        send: as it is on disk.
        """
        return self._open.get(send.client_msg_id) in self._stopped and _may_be_there(send)

    @property
    def waiting(self) -> int:
        """Sends that have not reached an end."""
        return sum(map(len, self._lanes.values()))

    # -- decisions of people ----------------------------------------------------------------------------------------

    def retry(self, row: OutboxRow) -> asyncio.Future[None] | None:
        """Let a send leave (again) under its key, whenever it would have expired. row: as it is on disk.

        Returns the commit; None where there is nothing to decide: it is sent, or goes on by itself.
        Raises JournalError if its text was let go.
        """
        if row.send.state in SETTLED_STATES and row.send.content == Content():
            raise JournalError(
                f"the text of {row.send.client_msg_id} was let go (agentd.retention.outbox_max_age_days); "
                "say it anew under another key"
            )
        send = msgspec.structs.replace(row.send, state="ready", not_before=0.0, expires_at=None)
        key = send.client_msg_id
        if (target := self._open.get(key)) is not None:
            if not self.needs_decision(row.send):
                return None
            lane = self._lanes[target]
            place = next(place for place, each in enumerate(lane) if each.client_msg_id == key)
            self._count(lane[place], "ready")
            lane[place] = msgspec.structs.replace(send, target=target)
            commit = self._journal.commit(Retried(key, self._identity, time.time()))
            # It is marked as leaving before it leaves, in a later commit than this one.
            self._decided(target)
        elif row.send.state not in ("refused", "expired", "dropped"):
            return None
        else:
            self._withdrawn.discard(key)
            self._retrying.add(key)
            commit = self._journal.commit(Retried(key, self._identity, time.time()))
            commit.add_done_callback(partial(self._retried, send, row.send.state))
        return commit

    def _retried(self, send: Send, was: str, commit: asyncio.Future[None]) -> None:
        # A start may have read it from the disk meanwhile, and may even be through with it.
        taken_up = send.client_msg_id not in self._retrying
        self._retrying.discard(send.client_msg_id)
        if commit.cancelled() or commit.exception() is not None or taken_up:
            return
        if self._tasks is not None:
            self.counts[was] -= 1
        self._ring([send])

    def drop(self, row: OutboxRow) -> asyncio.Future[None] | None:
        """Let a send never leave (again). Its row stays, and says so. row: as it is on disk.

        Returns the commit; None if it is sent, dropped already, or under way at this moment.
        """
        send = row.send
        key = send.client_msg_id
        dropped = msgspec.structs.replace(
            self._carried(send, "dropped", error=row.error, tried=False), code=row.code, request_id=row.request_id
        )
        if key in self._under_way or send.state in ("sent", "dropped"):
            return None
        if (target := self._open.get(key)) is not None:
            commit = self._settle(target, dropped)
            self._decided(target)
            return commit
        if self._tasks is None:
            self._withdrawn.add(key)
        elif send.state in OPEN_STATES:
            return None  # it was settled since the row was read
        else:
            self.counts[send.state] -= 1
            self.counts["dropped"] += 1
            metrics.SENDS.inc(self._identity, "dropped")
        return self._journal.commit(dropped)

    def _decided(self, target: str) -> None:
        """Let the target go on, unless it has another send that needs a decision."""
        if not any(self._is_beyond_us(each) for each in self._lanes.get(target, ())):
            self._stopped.discard(target)
        self._offer(target)

    # -- which target may go ----------------------------------------------------------------------------------------

    def _take_up(self, sends: Iterable[Send]) -> None:
        for send in sends:
            if send.client_msg_id in self._open or send.client_msg_id in self._withdrawn:
                continue  # read from the outbox and rung by its commit: the same row
            target = self._own_seqs.address(send.target)
            if target != send.target:
                send = msgspec.structs.replace(send, target=target)
            self._open[send.client_msg_id] = target
            self._retrying.discard(send.client_msg_id)
            self._lanes.setdefault(target, deque()).append(send)
            self.counts[_counted_as(send)] += 1
            if _may_be_there(send):
                self._silent_since[send.client_msg_id] = self._loop.time()
            if self._is_beyond_us(send):
                self._stopped.add(target)
            self._offer(target)

    def _offer(self, target: str) -> None:
        """Let the target go now, or arm the clock for when it may."""
        if (wake := self._wakes.pop(target, None)) is not None:
            wake.cancel()
        if self._tasks is None or target in self._running:
            return
        if (lane := self._unexpired(target)) is None:
            return
        now = self._loop.time()
        at = self._may_leave_at(target, lane[0], now)
        if at > now:
            at = min(at, now + _expires_at(lane[0]) - time.time())
            if at < math.inf:
                self._wakes[target] = self._loop.call_at(at, self._offer, target)
            return
        self._running.add(target)
        self._eligible.append(target)
        if self._workers < self._settings.concurrency:
            self._workers += 1
            self._tasks.create_task(self._work(), name=f"{self._identity}: sender")

    def _may_leave_at(self, target: str, head: Send, now: float) -> float:
        if self._paused or target in self._stopped:
            return math.inf
        return max(self.pacing.may_leave_at(target, now), now + head.not_before - time.time())

    def _unexpired(self, target: str) -> deque[Send] | None:
        """The target's lane without what stands at its head and is not worth sending any more; None if that is all."""
        while (lane := self._lanes.get(target)) is not None and _expires_at(lane[0]) <= time.time():
            log.warning("a send expired before it could leave", extra={"identity": self._identity})
            self._settle(target, self._carried(lane[0], "expired", error="its time was over", tried=False))
        return lane

    async def _work(self) -> None:
        try:
            while self._eligible and not self._paused:
                target = self._eligible.popleft()
                try:
                    if await self._its_turn(target) and (lane := self._unexpired(target)) is not None:
                        await self._carry(target, lane[0])
                finally:
                    self._running.discard(target)
                    self._spoke.discard(target)
                self._offer(target)
        finally:
            self._workers -= 1
            if not self._workers and self._rested is not None and not self._rested.done():
                self._rested.set_result(None)
            if self._paused:
                held_up, self._eligible = self._eligible, deque()
                self._running.difference_update(held_up)
                for target in held_up:
                    self._offer(target)

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
        self._under_way.add(send.client_msg_id)
        try:
            await self._let_go(target, send)
        finally:
            self._under_way.discard(send.client_msg_id)

    async def _let_go(self, target: str, send: Send) -> None:
        if _may_be_there(send) and not self._platform.deduplicates_sends:
            await self._look_up(target, send)
            return
        self.pacing.leaves(target, self._loop.time())
        marked = not self._platform.deduplicates_sends or send.expires_at is not None
        if not self._platform.deduplicates_sends:
            send = msgspec.structs.replace(send, after=self._own_seqs.position(target))
        if marked:
            await self._journal.commit(self._carried(send, "sending"))
        self._own_seqs.sending(target)
        if self._traces is not None:
            self._traces.leaves(send)
        try:
            answer = await self._ask(send)
            if isinstance(answer, Accepted):
                self._own_seqs.own(answer.event, target)
        except (OutcomeUnknown, WireViolation) as unknown:
            self._unknown(target, send, unknown)
            return
        except CredentialsRefused as refused:
            self._paused = True
            if self._traces is not None:
                self._traces.kept(send, "credentials refused")
            if marked:
                self._journal.commit(self._carried(send, send.state, error=str(refused), tried=False))
            self._on_credentials(refused)
            return
        except AgentdError as failure:
            answer = _no_answer(failure)
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
        if self._traces is not None:
            self._traces.answered(send, response.status)
        return self._platform.read_send(response, send)

    def _accepted(self, target: str, send: Send, answer: Accepted) -> None:
        self.replays += answer.replayed
        backlog = answer.backlog[1] if answer.backlog is not None else None
        self.pacing.accepted(target, self._loop.time(), backlog)
        if backlog is not None:
            metrics.BACKLOG_WARNINGS.inc(self._identity)
            log.info("recipient has %d undelivered messages: slower", backlog, extra={"identity": self._identity})
        self._settle(target, self._carried(send, "sent", answer.event))

    def _refused(self, target: str, send: Send, answer: Rejection) -> None:
        log.warning(
            "send refused for good: %d %s (request %s)",
            answer.status,
            answer.code,
            answer.request_id,
            extra={"identity": self._identity},
        )
        self.pacing.rejected(target)
        error = f"{answer.status} {answer.code} {answer.message} (request {answer.request_id})"
        self._settle(target, self._carried(send, "refused", error=error, answer=answer))

    def _later(self, target: str, send: Send, answer: Later) -> None:
        now = self._loop.time()
        backlog = answer.backlog[1] if answer.backlog is not None else None
        # The reply that it asks for may have come while the answer was on its way, and will not come twice.
        scope = "target" if answer.scope == "reply" and target in self._spoke else answer.scope
        until = self.pacing.refused_for_now(target, scope, now, answer.retry_after_s, backlog, chance=random.random())
        # Not stored this time; what became of an earlier attempt is still unknown.
        state = _counted_as(send)
        self._again(target, send, until - now, self._carried(send, state, error=answer.code, answer=answer))

    def _unknown(self, target: str, send: Send, why: Exception) -> None:
        """The answer never came. Where the platform keeps the key, asking again under it tells what happened."""
        now = self._silent_since[send.client_msg_id] = self._loop.time()
        until = self.pacing.refused_for_now(target, "target", now, None, chance=random.random())
        self._again(target, send, until - now, self._carried(send, "unknown", error=str(why)))
        if self._is_beyond_us(self._lanes[target][0]):
            self._stopped.add(target)

    # -- where a repeat would be stored a second time ---------------------------------------------------------------

    def _is_beyond_us(self, send: Send) -> bool:
        """It may be there, and neither its key nor a look at the history would tell."""
        return _may_be_there(send) and not self._platform.deduplicates_sends and self._lookup_of(send) is None

    def _lookup_of(self, send: Send) -> Request | None:
        lookup, after = self._platform.lookup, send.after
        return None if lookup is None or after is None else lookup.request(send, after)

    async def _look_up(self, target: str, send: Send) -> None:
        """See what became of a send whose answer never came."""
        asked_at = self._loop.time()
        self._own_seqs.sending(target)
        try:
            verdict: Verdict = await self._verdict(target, send, asked_at)
            if isinstance(verdict, Found):
                self._own_seqs.own(msgspec.structs.replace(verdict.event, source=Source.OWN), target)
        except CredentialsRefused as refused:
            self._paused = True
            self._on_credentials(refused)
            return
        except Refused as refused:
            verdict = Undecided(str(refused))
        except AgentdError as failure:
            retry_after_s = failure.retry_after_s if isinstance(failure, Unavailable) else None
            now = self._loop.time()
            until = self.pacing.refused_for_now(target, "target", now, retry_after_s, chance=random.random())
            self._still_unknown(target, send, f"looking it up failed: {failure}", until - now)
            return
        finally:
            self._own_seqs.sending_over(target)
        self._looked_up(target, send, verdict)

    async def _verdict(self, target: str, send: Send, asked_at: float) -> Verdict:
        lookup, after, stands = self._platform.lookup, send.after, self._own_seqs.position(target)
        assert lookup is not None, "its target would be stopped"
        if after is None or stands is None or stands.epoch != after.epoch:
            return Undecided("its conversation is numbered anew")
        seen: list[Event] = []
        while after is not None:
            if (request := lookup.request(send, after)) is None:
                return Undecided("it cannot be looked up")
            page = lookup.read(await self._perform(request, once=True), send, after)
            seen += page.seen
            after = page.beyond
        silent_s = asked_at - self._silent_since[send.client_msg_id]
        return judge(seen, silent_s=silent_s, settle_s=self._settings.lookup_settle_s)

    def _looked_up(self, target: str, send: Send, verdict: Verdict) -> None:
        match verdict:
            case Found(event=place):
                self.pacing.accepted(target, self._loop.time(), None)
                self._settle(target, self._carried(send, "sent", place, tried=False))
            case NotThere():
                missing = self._carried(send, "ready", error="no answer came, and it was not stored", tried=False)
                self._again(target, send, 0.0, missing)
            case TooEarly(after_s=after_s):
                self._still_unknown(target, send, "not stored so far", after_s)
            case Undecided(why=why):
                log.warning("nobody can tell whether a send arrived: %s", why, extra={"identity": self._identity})
                self._still_unknown(target, send, f"looked up: {why}", 0.0)
                self._stopped.add(target)

    def _still_unknown(self, target: str, send: Send, why: str, wait_s: float) -> None:
        self._again(target, send, wait_s, self._carried(send, "unknown", error=why, tried=False))

    # -- what became of it ------------------------------------------------------------------------------------------

    def _again(self, target: str, send: Send, wait_s: float, carried: Carried) -> None:
        carried = msgspec.structs.replace(carried, not_before=time.time() + wait_s)
        self._journal.commit(carried)
        self._count(send, carried.state)
        if self._traces is not None:
            self._traces.became(carried)
        metrics.SEND_RETRIES.inc(self._identity)
        self._lanes[target][0] = msgspec.structs.replace(
            send, attempts=carried.attempts, not_before=carried.not_before, state=carried.state
        )

    def _settle(self, target: str, carried: Carried) -> asyncio.Future[None]:
        commit = self._journal.commit(carried)
        commit.add_done_callback(partial(self._on_disk, carried))
        lane = self._lanes[target]
        send = next(each for each in lane if each.client_msg_id == carried.client_msg_id)
        lane.remove(send)
        if not lane:
            del self._lanes[target]
        del self._open[send.client_msg_id]
        self._silent_since.pop(send.client_msg_id, None)
        self._count(send, carried.state)
        if self._traces is not None:
            self._traces.became(carried)
        return commit

    def _on_disk(self, carried: Carried, commit: asyncio.Future[None]) -> None:
        if not commit.cancelled() and commit.exception() is None:
            self._on_settled(carried)

    def _count(self, send: Send, state: str) -> None:
        self.counts[_counted_as(send)] -= 1
        self.counts[state] += 1
        if state != "ready":
            metrics.SENDS.inc(self._identity, state)

    def _carried(
        self,
        send: Send,
        state: str,
        place: Event | None = None,
        *,
        error: str = "",
        answer: Later | Rejection | None = None,
        tried: bool = True,
    ) -> Carried:
        return Carried(
            client_msg_id=send.client_msg_id,
            identity=self._identity,
            state=state,
            attempts=send.attempts + tried,
            result_id=None if place is None else place.id,
            result_seq=None if place is None else place.seq,
            conversation=None if place is None else place.conversation,
            error=error,
            at=time.time(),
            code="" if answer is None else answer.code,
            request_id=None if answer is None else answer.request_id,
            after=send.after,
        )


def _may_be_there(send: Send) -> bool:
    """It left, and no answer has come."""
    return send.state in ("unknown", "sending")


def _counted_as(send: Send) -> str:
    """The state of an open send that is not under way."""
    return "unknown" if _may_be_there(send) else "ready"


def _expires_at(send: Send) -> float:
    """Unix seconds. What may have reached the platform does not expire: the platform has to say."""
    return math.inf if send.expires_at is None or _may_be_there(send) else send.expires_at


def _no_answer(failure: AgentdError) -> Later:
    """The request never reached the platform, or the platform could not take it."""
    unavailable = failure if isinstance(failure, Unavailable) else Unavailable(str(failure))
    return Later(
        code="UNAVAILABLE",
        scope="target",
        retry_after_s=unavailable.retry_after_s,
        request_id=unavailable.request_id,
    )
