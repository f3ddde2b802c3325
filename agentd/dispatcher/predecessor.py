"""Turns that the process before this one runs: each holds its lane here, and has its fate here when it ends.

To its lane such a turn is running: nothing else of the lane is handed out, and it takes its place among those that may
run at once. What it staged is committed with its cursor, as that of any turn; its failure is judged as any failure. One
that was given back, or whose process has gone, runs again, uncounted.

Always true: nothing of a lane is loaded before the turn that holds it has ended, so that what this generation's
handlers want of it cannot move the cursor past that turn.
Not here: how it is heard of (handover/).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import msgspec

from agentd.core.events import Event, Record
from agentd.dispatcher.backlog import Backlog, Ended, Inherited, Key, Lane, Served
from agentd.dispatcher.commits import succeeded
from agentd.dispatcher.deliveries import Deliveries
from agentd.dispatcher.engine import Engine, Waits
from agentd.dispatcher.fates import attempt
from agentd.dispatcher.handing import Elsewhere, Over, Turn
from agentd.dispatcher.signals import Signals
from agentd.dispatcher.timers import Due
from agentd.dispatcher.wakeups import Unreadable, Wakeups
from agentd.host.context import TurnContext
from agentd.host.faults import made_again
from agentd.host.handlers import Handler
from agentd.host.shipped import unpacked
from agentd.host.turns import Failure
from agentd.journal.storage import StoredRecord

log = logging.getLogger("agentd.dispatcher")


class Predecessor:
    """What one dispatcher inherits. `expect` first; `holds` for every lane that is restored; then `push_rest`."""

    def __init__(
        self,
        engine: Engine,
        backlog: Backlog,
        deliveries: Deliveries,
        wakeups: Wakeups,
        signals: Signals,
        revive: Callable[[StoredRecord], Event],
    ) -> None:
        self._engine = engine
        self._backlog = backlog
        self._deliveries = deliveries
        self._wakeups = wakeups
        self._signals = signals
        self._revive = revive
        self._expected: dict[tuple[str, Key], Elsewhere] = {}
        self._without_lane: list[Elsewhere] = []
        self._all: list[Elsewhere] = []

    @property
    def running(self) -> int:
        """How many run there yet."""
        return sum(not each.over.done() for each in self._all)

    # --- at the start

    def expect(self, turns: Iterable[Elsewhere], serves: Callable[[str], Sequence[Served]]) -> None:
        """These run. serves: the plugins of an identity."""
        self._all = list(turns)
        for each in self._all:
            turn = each.turn
            served = self._engine.served.get(turn.plugin)
            if served is None or (turn.identity and served not in serves(turn.identity)):
                log.warning(
                    "the predecessor runs a turn of a plugin that is not served here any more: nothing comes of it",
                    extra={"plugin": turn.plugin, "identity": turn.identity or None},
                )
                each.decline()
            elif turn.kind == "signal":
                self._without_lane.append(each)
            else:
                self._expected[turn.plugin, turn.key] = each
                if turn.timer is not None:
                    self._engine.timers.set_out.add(turn.timer.id)

    def holds(self, lane: Lane) -> None:
        """Put what runs in this lane at its head, if anything does; before anything else is put there."""
        served = lane.served
        if (each := self._expected.pop((served.plugin.name, lane.number), None)) is not None:
            self._engine.push(served, lane.number, Inherited(each, lane), lane.line.identity)

    def push_rest(self) -> None:
        """What runs in no conversation."""
        rest = [
            *self._expected.items(),
            *(((each.turn.plugin, ("", str(id(each)))), each) for each in self._without_lane),
        ]
        for (plugin, key), each in rest:
            self._engine.push(self._engine.served[plugin], key, Inherited(each, None), each.turn.identity)
        self._expected.clear()
        self._without_lane.clear()

    # --- running elsewhere

    async def run(self, served: Served, key: Key, item: Inherited, waits: Waits) -> None:
        """Wait for its end, and let follow from it what follows."""
        waits()
        elsewhere = item.elsewhere
        match elsewhere.turn.kind:
            case "events" if item.lane is not None and item.lane.done_count < 0:
                await self._events(item.lane, elsewhere)
            case "timer":
                await self._timer(served, key, elsewhere)
            case "signal":
                await self._signal(served, key, elsewhere)
            case "overrun":
                await elsewhere.over
                self._engine.done(served, key)
            case _:
                self._unknown(served, key, elsewhere)

    def _unknown(self, served: Served, key: Key, elsewhere: Elsewhere) -> None:
        turn = elsewhere.turn
        log.error("what the predecessor runs cannot be found: nothing comes of it", extra={"plugin": turn.plugin})
        elsewhere.decline()
        self._engine.done(served, key)

    # --- about events

    async def _events(self, lane: Lane, elsewhere: Elsewhere) -> None:
        turn, served, number = elsewhere.turn, lane.served, lane.number
        record = await self._newest(turn)
        if record is None:
            self._unknown(served, number, elsewhere)
            return
        event = record.event
        ctx: TurnContext[Any] = TurnContext(
            served.plugin, event, number, turn.attempt, owner=self, about=(lane, turn), progressed=lane.progress
        )
        if lane.before is not None and lane.before.position == turn.first:
            lane.failures, lane.deaths, lane.progress = lane.before.count, lane.before.deaths, lane.before.progress
        lane.until = turn.until
        elsewhere.take_up(ctx)
        traces = self._engine.traces
        trace = None if traces is None else traces.began(ctx.name, event, turn.attempt, records=[record])
        over = await elsewhere.over
        ctx.end()
        failure = None if over is None else _failure(served, over)
        if trace is not None:
            trace.ended(_told(over, failure), None if failure is None else failure.error)
        if over is None:
            lane.fresh()
            self._engine.done(served, number)
        elif failure is None:
            await self._handled(lane, turn, ctx, over)
        else:
            # Judged when its events are in memory, which is when its lane comes to them.
            lane.before = attempt(lane, turn.first, None, 0.0)
            lane.ended = Ended(ctx, failure, turn.first, turn.last)
            self._engine.done(served, number)

    async def _newest(self, turn: Turn) -> Record | None:
        stored = await self._engine.journal.read_lane(turn.conversation, turn.last - 1, 1)
        if not stored or stored[0].position != turn.last:
            return None
        try:
            return stored[0].record(self._revive(stored[0]))
        except Exception:
            log.exception("a stored event cannot be decoded", extra={"identity": turn.identity})
            return None

    async def _handled(self, lane: Lane, turn: Turn, ctx: TurnContext[Any], over: Over) -> None:
        over.out.stage(ctx)
        ctx.said = over.out.said
        count = await self._engine.journal.count_between(lane.number, lane.loaded, turn.last)
        if ctx.said and ctx.peer:
            self._deliveries.mind_loops(lane, ctx)
        self._engine.hold_for_commit(lane.served, lane.number)
        self._engine.when_room(ctx, partial(self._commit, lane, turn, ctx, count))

    def _commit(self, lane: Lane, turn: Turn, ctx: TurnContext[Any], count: int) -> None:
        changes = self._engine.effects(ctx, turn.first, turn.last)
        commit = self._engine.commits.with_cursor(lane, turn.last, *changes)
        commit.add_done_callback(partial(self._on_disk, lane, turn, ctx, count))

    def _on_disk(self, lane: Lane, turn: Turn, ctx: TurnContext[Any], count: int, commit: asyncio.Future[None]) -> None:
        engine = self._engine
        if succeeded(commit):
            engine.effects_on_disk(ctx, commit)
            if ctx.sends:
                engine.room.committed(ctx.sends)
                engine.room_again()
            lane.fresh()
            lane.before = None
            lane.loaded = turn.last
            lane.loaded_count += count
            self._backlog.handled_to(lane, lane.loaded_count)
            if engine.traces is not None and isinstance(ctx.event, Event):  # of which `began` was told
                engine.traces.through(ctx.name, ctx.identity, ctx.event.id)
            engine.done(lane.served, lane.number)
            engine.wake()
        engine.committed()

    # --- about timers and signals

    async def _timer(self, served: Served, key: Key, elsewhere: Elsewhere) -> None:
        engine, told = self._engine, elsewhere.turn.timer
        tried = None if told is None else engine.timers.get(told.id)
        if tried is None:
            self._unknown(served, key, elsewhere)
            return
        timer = msgspec.structs.replace(tried, failures=max(0, tried.failures - 1), error="")
        try:
            event = Due(timer).event if not timer.position else await self._wakeups.recorded(timer)
        except Unreadable:
            self._unknown(served, key, elsewhere)
            return
        ctx: TurnContext[Any] = TurnContext(
            served.plugin,
            event,
            timer.conversation or None,
            elsewhere.turn.attempt,
            again=timer.again,
            progressed=timer.progress,
            owner=self._wakeups,
            about=tried,
        )
        elsewhere.take_up(ctx)
        over = await elsewhere.over
        ctx.end()
        if over is None:
            again = msgspec.structs.replace(timer, progress=ctx.progressed)
            engine.commits.commit(again)
            engine.done(served, key)
            self._wakeups.put([again])
            return
        failure = _failure(served, over)
        if failure is None:
            over.out.stage(ctx)
        self._wakeups.ended_elsewhere(served, key, timer, ctx, failure)

    async def _signal(self, served: Served, key: Key, elsewhere: Elsewhere) -> None:
        told = elsewhere.turn.signal
        assert told is not None
        ctx: TurnContext[Any] = TurnContext(served.plugin, unpacked(told), None, 1)
        elsewhere.take_up(ctx)
        over = await elsewhere.over
        ctx.end()
        if over is not None:
            failure = _failure(served, over)
            if failure is None:
                over.out.stage(ctx)
            self._signals.ended(ctx, failure)
        self._engine.done(served, key)

    # --- what a turn about events tells of itself; see host.context.Owner

    def got_on(self, ctx: TurnContext[Any], noted: bytes) -> None:
        """It told `progress` this."""
        lane, turn = _about(ctx)
        lane.progress = noted
        self._note(lane, turn)

    async def says_now(self, ctx: TurnContext[Any]) -> None:
        """What is said is said about these events: they are the turn's whatever happens."""
        lane, turn = _about(ctx)
        known = lane.before is not None and (lane.before.position, lane.before.until) == (turn.first, turn.until)
        if turn.until and not known:
            await self._note(lane, turn)

    def _note(self, lane: Lane, turn: Turn) -> asyncio.Future[None]:
        lane.before = attempt(lane, turn.first, None, 0.0)
        return self._engine.commits.commit(lane.before)


def _about(ctx: TurnContext[Any]) -> tuple[Lane, Turn]:
    about: Any = ctx.about
    lane, turn = about
    assert isinstance(lane, Lane)
    assert isinstance(turn, Turn)
    return lane, turn


def _told(over: Over | None, failure: Failure | None) -> str:
    """How a turn ended, for its trace."""
    if over is None:
        return "given back"
    return "handled" if failure is None else "failed"


def _failure(served: Served, over: Over) -> Failure | None:
    if over.out.fault is None:
        return None
    named: Handler | None = next((each for each in served.plugin.handlers.all if each.name == over.handler), None)
    return Failure(made_again(over.out.fault, over.overrun), named)
