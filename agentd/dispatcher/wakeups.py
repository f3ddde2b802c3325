"""Turns of which the journal holds the time: timers, and recorded events that are delivered out of their order.

Such an event was set aside by its lane (`on_dead = "detach"`), or somebody wants its dead letter tried again. It is
marked late, and takes its turn among the events of its conversation, but no event waits for it.

Always true: a row goes in the commit that holds its turn's effects. A failed one comes again by the same rules as an
event; what is given up stays, due never, or becomes a dead letter. A handler that ends the process has used an attempt.
Not here: what is due (timers), what lanes hold (the engine).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from agentd.core.events import Event, Timer
from agentd.core.retry import Again
from agentd.dispatcher.backlog import Delivery, Key, Served
from agentd.dispatcher.commits import succeeded
from agentd.dispatcher.engine import Engine, Waits
from agentd.dispatcher.fates import dead_letter, log_failure, told
from agentd.dispatcher.suspects import ProcessDied
from agentd.dispatcher.timers import Due, next_beat, recurring
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler, matching
from agentd.host.turns import Failure
from agentd.journal.storage import Change, StoredRecord, TimerGone, TimerSet
from agentd.tracing import Traces, TurnTrace

log = logging.getLogger("agentd.dispatcher")

_ROOM_LOOK_S = 1.0  # how soon a timer whose sends found the outbox full runs again


class Unreadable(Exception):
    """A recorded event that was to be delivered again cannot be read any more."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the event cannot be read any more: {why}")


class Wakeups:
    """Those of one dispatcher. revive: decodes what was stored."""

    def __init__(self, engine: Engine, *, revive: Callable[[StoredRecord], Event]) -> None:
        self._engine = engine
        self._revive = revive
        self._ended_elsewhere: dict[str, tuple[TimerSet, TurnContext[Any], Failure | None]] = {}

    async def restore(self, served: Served, identities: list[str]) -> None:
        """Take up a plugin's rows, and have one for each handler that recurs."""
        name = served.plugin.name
        known = await self._engine.journal.timers(name)
        changes = recurring(name, served.intervals, identities, known, self._engine.clock.unix())
        if changes:
            await self._engine.commits.commit(*changes)
        for change in changes:
            if isinstance(change, TimerGone):
                self._engine.timers.drop(change.id)
        gone = {change.id for change in changes if isinstance(change, TimerGone)}
        fresh = [change for change in changes if isinstance(change, TimerSet)]
        for timer in (*known, *fresh):
            if timer.id not in gone and timer.identity in identities and timer not in self._engine.timers:
                self._engine.timers.put(timer)
        served.plugin.timers = self._engine.timers.count(name)

    def push_due(self) -> None:
        """Put what is due at the end of its lane."""
        for timer in self._engine.timers.pop_due(self._engine.clock.unix()):
            served = self._engine.served.get(timer.plugin)
            if served is not None and timer.identity in served.identities:
                self._engine.push(served, timer.conversation or ("timer", timer.id), Due(timer), timer.identity)
            else:  # a turn that ended after it was taken from service wanted it; its row waits on disk
                self._engine.timers.drop(timer.id)

    def put(self, rows: Sequence[TimerSet]) -> None:
        """These were handed to the journal; what becomes of them is handed in behind that."""
        for row in rows:
            self._engine.timers.put(row)
            if (served := self._engine.served.get(row.plugin)) is not None:
                served.plugin.timers = self._engine.timers.count(row.plugin)
        self.push_due()
        self._engine.arm()
        self._engine.wake()

    async def run(self, served: Served, key: Key, due: Due, waits: Waits) -> None:
        """One turn. The row goes, or has its next beat, with the turn's effects."""
        engine = self._engine
        timer = engine.timers.get(due.timer.id) or due.timer  # an attempt may have noted its progress since
        if (ended := self._ended_elsewhere.pop(timer.id, None)) is not None:
            self.ended(served, key, *ended)
            return
        waits()
        try:
            event = due.event if not timer.position else await self.recorded(timer)
        except Unreadable as error:
            self._give_up(served, key, timer, error)
            return
        handlers = matching(served.plugin, event)
        if timer.failures >= _attempts(served, handlers):  # the last of which ended the process
            self._give_up(served, key, timer, ProcessDied(timer.failures))
            return
        tried = msgspec.structs.replace(timer, failures=timer.failures + 1, error="the process died while it ran")
        ctx: TurnContext[Any] = TurnContext(
            served.plugin,
            event,
            timer.conversation or None,
            tried.failures,
            again=timer.again,
            progressed=timer.progress,
            owner=self,
            about=tried,
        )
        trace = None
        try:
            # On disk before it runs, so that a handler which ends the process is not run for ever.
            await asyncio.wait((engine.commits.commit(tried),))
            if served.breakers.troubled:
                served.breakers.began(timer.identity, key)
            trace = None if engine.traces is None else _traced(engine.traces, timer, event, ctx, handlers)
            engine.under_way.add(ctx)
            failure = await served.plugin.turns.run(event, handlers, ctx, lambda: None)
        except asyncio.CancelledError:
            if engine.successor is None:
                self._uncounted(timer, ctx)
            if trace is not None:
                trace.ended("given back")
            raise
        finally:
            engine.under_way.discard(ctx)
        ours = not await engine.left_to_successor(ctx, failure)
        if trace is not None:
            _ended(trace, ctx, failure, ours)
        if ours:
            self.ended(served, key, timer, ctx, failure)

    def ended_elsewhere(
        self, served: Served, key: Key, timer: TimerSet, ctx: TurnContext[Any], failure: Failure | None
    ) -> None:
        """The turn at the head of this lane ran in the process before this one; it is judged as if here."""
        self._ended_elsewhere[timer.id] = timer, ctx, failure
        served.lanes.interpose(key, Due(timer), timer.identity)
        self._engine.done(served, key)

    def ended(self, served: Served, key: Key, timer: TimerSet, ctx: TurnContext[Any], failure: Failure | None) -> None:
        """What follows from how a turn ended. timer: its row as it was before."""
        engine = self._engine
        if failure is not None:
            self._failed(served, key, timer, ctx, failure)
        elif ctx.sends and not engine.room.fits(ctx.sends):
            log.warning("the outbox is full: a timer waits for it", extra={"identity": timer.identity})
            self._uncounted(timer, ctx)
            engine.delay(served, key, engine.clock.monotonic() + _ROOM_LOOK_S)
        else:
            if served.breakers.troubled:
                served.breakers.succeeded(timer.identity, key)
            self._settle(served, key, timer, ctx, _rows(self._successor(served, timer)))
        engine.enlist(served)

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """See host.context.Owner."""
        assert isinstance(ctx.about, TimerSet)
        self._engine.commits.commit(msgspec.structs.replace(ctx.about, progress=noted))

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """See host.context.Owner. A timer is one at every repeat."""

    async def recorded(self, timer: TimerSet) -> Event:
        """The event that is delivered again, marked late. Raises Unreadable."""
        stored = await self._engine.journal.read_lane(timer.conversation, timer.position - 1, 1)
        if not stored or stored[0].position != timer.position:
            raise Unreadable("it has gone")
        try:
            return msgspec.structs.replace(self._revive(stored[0]), late=True)
        except Exception as error:
            log.exception("a stored event cannot be decoded", extra={"identity": timer.identity})
            raise Unreadable(told(error)) from error

    # --- fates

    def _settle(
        self, served: Served, key: Key, timer: TimerSet, ctx: TurnContext[Any] | None, then: list[Change]
    ) -> None:
        """Commit that a row has its fate, with the effects of its turn; its lane waits for that. then: what follows."""
        engine = self._engine
        engine.hold_for_commit(served, key)
        changes = engine.effects(ctx, timer.position, timer.position) if ctx is not None else []
        kept = any(isinstance(each, TimerSet) and each.id == timer.id for each in then)
        commit = engine.commits.commit(*([] if kept else [TimerGone(timer.id)]), *then, *changes)
        if ctx is not None:
            commit.add_done_callback(partial(engine.effects_on_disk, ctx))
        commit.add_done_callback(partial(self._on_disk, served, key, timer, then))

    def _on_disk(
        self, served: Served, key: Key, timer: TimerSet, then: list[Change], commit: asyncio.Future[None]
    ) -> None:
        engine = self._engine
        if succeeded(commit):
            engine.timers.drop(timer.id)
            for change in then:
                if isinstance(change, TimerSet):
                    engine.timers.put(change)
            served.plugin.timers = engine.timers.count(served.plugin.name)
            if engine.traces is not None and not _comes_again(timer, then):
                engine.traces.through(timer.plugin, timer.identity, timer.id)
            engine.done(served, key)
            engine.arm()
            engine.wake()
        engine.committed()

    def _uncounted(self, timer: TimerSet, ctx: TurnContext[Any]) -> None:
        """It comes again, and nothing went wrong with it: a start meanwhile must not take that for a death."""
        again = msgspec.structs.replace(timer, progress=ctx.progressed)
        self._engine.timers.renew(again)
        self._engine.commits.commit(again)

    def _give_up(self, served: Served, key: Key, timer: TimerSet, error: Exception) -> None:
        """It cannot even be tried."""
        log.error("given up: %s", told(error), extra={"plugin": timer.plugin, "identity": timer.identity})
        self._settle(served, key, timer, None, self._given_up(served, timer, error))

    def _successor(self, served: Served, timer: TimerSet) -> TimerSet | None:
        interval_s = served.intervals.get(timer.name)
        return None if interval_s is None else next_beat(timer, interval_s, self._engine.clock.unix())

    def _given_up(self, served: Served, timer: TimerSet, error: BaseException) -> list[Change]:
        """What is left of it: a dead letter, its next beat, or a row that says why, for people."""
        if timer.position:
            now = self._engine.clock.unix()
            return [dead_letter(served.plugin, timer.conversation, timer.position, timer.failures, error, now)]
        return _rows(self._successor(served, timer) or msgspec.structs.replace(timer, due_at=math.inf))

    def _failed(self, served: Served, key: Key, timer: TimerSet, ctx: TurnContext[Any], failure: Failure) -> None:
        engine, error = self._engine, failure.error
        if engine.postponed(served, key, ctx, failure):
            self._uncounted(timer, ctx)
            return
        verdict = engine.verdict(served, ctx.attempt, failure)
        again_s = verdict.after_s if isinstance(verdict, Again) else math.inf
        failed = msgspec.structs.replace(
            timer,
            failures=ctx.attempt,
            due_at=engine.clock.unix() + again_s,
            error=told(error),
            progress=ctx.progressed,
        )
        then = _rows(failed) if isinstance(verdict, Again) else self._given_up(served, failed, error)
        log_failure(f"attempt {ctx.attempt} of a timer failed, the next in {again_s:.1f} s", ctx, failure)
        engine.once_it_ended(error, served, key, lambda: self._settle(served, key, timer, None, then))


def _attempts(served: Served, handlers: tuple[Handler, ...] | None) -> int:
    """How often a turn of these may run at all."""
    usual = served.plugin.settings.attempts
    return max((each.attempts or usual for each in handlers or ()), default=usual)


def set_aside(delivery: Delivery, due_at: float, *, again: str = "") -> TimerSet:
    """The row of an event that its lane does not wait for. due_at: Unix seconds. again: see TimerSet."""
    record = delivery.record
    return redelivery(
        delivery.lane.served.plugin.name,
        record.event.identity,
        record.conversation,
        record.event.conversation,
        record.position,
        due_at,
        again=again,
    )


def redelivery(
    plugin: str, identity: str, number: int, conversation: str, position: int, due_at: float, *, again: str
) -> TimerSet:
    """The row of a recorded event that is delivered out of its order."""
    place = msgspec.json.encode([plugin, identity, position, again])
    return TimerSet(
        id=f"aside-{hashlib.blake2b(place, digest_size=16).hexdigest()}",
        plugin=plugin,
        identity=identity,
        conversation=number,
        conversation_id=conversation,
        name="",
        due_at=due_at,
        data=b"null",
        position=position,
        again=again,
    )


def _traced(
    traces: Traces, timer: TimerSet, event: Event | Timer, ctx: TurnContext[Any], handlers: tuple[Handler, ...] | None
) -> TurnTrace:
    """A turn begins; whoever follows events follows it."""
    trace = traces.began(
        ctx.name,
        event,
        ctx.attempt,
        due_at=0.0 if timer.position else timer.due_at,
        again=bool(timer.position),
        handlers=[each.name for each in handlers or ()],
    )
    ctx.joins = trace
    return trace


def _ended(trace: TurnTrace, ctx: TurnContext[Any], failure: Failure | None, ours: bool) -> None:
    if not ours:
        trace.ended("handed over")
    elif failure is None:
        trace.ended("handled", sends=ctx.sends or ())
    else:
        trace.ended("failed", failure.error, "" if failure.handler is None else failure.handler.name)


def _comes_again(timer: TimerSet, then: Sequence[Change]) -> bool:
    return any(isinstance(each, TimerSet) and each.id == timer.id and each.due_at < math.inf for each in then)


def _rows(timer: TimerSet | None) -> list[Change]:
    return [] if timer is None else [timer]
