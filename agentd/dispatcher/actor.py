"""The Dispatcher: records in, turns run, fates out.

A lane is one plugin in one conversation. Its records come from memory while it keeps up; beyond `lane_memory` of them,
and after a restart, it reads the journal from where it stands.

Always true: within a lane records are handled in the order of positions, one at a time, and none before the fate of
the one ahead is on its way to disk. A turn's effects and its cursor are one commit; effects of a turn that failed are
nowhere. A lane waits for its own failures, delays and commits; no other lane does.
Not here: what handlers see (host/), order among lanes (core/lanes), the growth of delays (core/retry), sending.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from agentd import config
from agentd.core.breaker import Breaker, Limits, Standing
from agentd.core.events import Event, Record, Send, Sent, Signal
from agentd.core.retry import Backoff
from agentd.dispatcher.backlog import Backlog, Delivery, Inherited, Join, ReadOn, Rewind, Served, Stretch
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Log
from agentd.dispatcher.deliveries import TRIED_AGAIN, Deliveries
from agentd.dispatcher.engine import Engine, Waits, Work, calls_max
from agentd.dispatcher.handing import Elsewhere, Successor, Turn
from agentd.dispatcher.loading import Loading, Marks
from agentd.dispatcher.predecessor import Predecessor
from agentd.dispatcher.rehearsal import Rehearsed, rehearse
from agentd.dispatcher.serving import Serving
from agentd.dispatcher.signals import Signals
from agentd.dispatcher.timers import Due
from agentd.dispatcher.trials import Trials
from agentd.dispatcher.wakeups import Wakeups, redelivery
from agentd.host.context import TurnContext
from agentd.host.isolated import Hosted
from agentd.host.shipped import packed
from agentd.journal.running import Running, Unfinished
from agentd.journal.storage import (
    Attempt,
    DeadDropped,
    DeadRow,
    Outcome,
    Paused,
    Resumed,
    StoredRecord,
    TimerSet,
)
from agentd.tracing import Traces

log = logging.getLogger("agentd.dispatcher")

_DEEPEST_SHOWN = 10  # lanes that `standing` names; the rest is counted
_LAST_COMMIT_S = 1.0  # a stop waits at least this long for cursors to reach the disk
_MEBIBYTE = 1_048_576


class Dispatcher:
    """Every plugin's lanes over every identity. `start` before intake; `offer` after each commit; `stop` in the end.

    plugins: by name, set up. serves: every identity with the names of its plugins. conduct: how each identity carries
    itself; the defaults where it says nothing. revive: decodes what was stored. on_queued: a commit put these sends
    into the outbox. marks: of deliveries in memory. on_backlog: an identity has reached a high mark (True), or the low
    ones again (False). outbox_room: how many more sends an identity's outbox takes; call `room_again` when it is more
    than it was. send_now: puts a send into the outbox and waits for what becomes of it; raises NotSent. running: where
    calls under way are marked. unfinished: what was under way when the process before this one died. traces: who
    follows events, or None.
    """

    def __init__(
        self,
        journal: Log,
        plugins: Mapping[str, Hosted],
        serves: Mapping[str, Sequence[str]],
        settings: config.Dispatch,
        *,
        revive: Callable[[StoredRecord], Event],
        on_queued: Callable[[Sequence[Send]], None],
        on_backlog: Callable[[str, bool], None],
        marks: Marks,
        conduct: Mapping[str, config.Conduct] | None = None,
        outbox_room: Callable[[str], int] = lambda identity: sys.maxsize,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
        send_now: Callable[[Send], Awaitable[Sent]] | None = None,
        running: Running | None = None,
        unfinished: Sequence[Unfinished] = (),
        traces: Traces | None = None,
    ) -> None:
        self._journal = journal
        self._revive = revive
        self._running = running or Running(list(plugins), calls_max(settings.concurrency, len(plugins)))
        self._unfinished = unfinished
        self._conduct = {identity: (conduct or {}).get(identity, config.Conduct()) for identity in serves}
        limits = Limits(lanes=settings.breaker_lanes, first_s=settings.breaker_first_s, max_s=settings.breaker_max_s)
        self._served: dict[str, Served] = {}
        self._begin_with = serves
        self._engine = engine = Engine(
            journal,
            self._served,
            settings.concurrency,
            self._running.slots,
            Trials(settings.trial_s, settings.trials_s),
            clock=clock or LoopClock(),
            backoff=backoff or Backoff(),
            chance=chance,
            outbox_room=outbox_room,
            on_queued=on_queued,
            traces=traces,
        )
        self._backlog = Backlog(serves)
        self._loading = Loading(
            engine,
            self._backlog,
            settings.lane_memory,
            marks,
            revive=revive,
            on_backlog=on_backlog,
        )
        self._wakeups = Wakeups(engine, revive=revive)
        self._deliveries = Deliveries(
            engine,
            self._backlog,
            self._loading,
            self._wakeups,
            self._running,
            self._conduct,
            pause=self.pause,
        )
        self._signals = Signals(engine, settings.signals_max)
        self._predecessor = Predecessor(engine, self._backlog, self._deliveries, self._wakeups, self._signals, revive)
        self._serving = Serving(
            engine,
            self._backlog,
            self._loading,
            self._wakeups,
            self._deliveries,
            self._running,
            limits,
            conduct=self._conduct,
            send_now=send_now or _nobody_sends,
            holds=self._predecessor.holds,
        )
        for plugin in plugins.values():
            self._serving.there_is(plugin)
        engine.carry_out = self._carry_out
        engine.on_deadline = self._deadline
        engine.on_paused = self._paused

    # --- what it is asked

    @property
    def handled(self) -> Mapping[str, int]:
        """Per identity: records that every one of its plugins has handled, passed over or buried."""
        return self._backlog.handled

    @property
    def pending(self) -> Mapping[str, int]:
        """Per identity: records on disk that not all of its plugins are through with."""
        return self._backlog.pending

    @property
    def undispatched(self) -> int:
        """Deliveries that wait in memory. What a lane left in the journal costs no memory and is not counted."""
        return self._backlog.in_memory

    @property
    def undispatched_bytes(self) -> int:
        """Of their payloads."""
        return self._backlog.bytes_in_memory

    @property
    def inherited(self) -> int:
        """Turns that the process before this one still runs."""
        return self._predecessor.running

    @property
    def signals_dropped(self) -> int:
        """Signals that came too fast."""
        return self._signals.dropped

    def breaker(self, plugin: str, identity: str) -> dict[str, Any]:
        """How the breaker stands that keeps a plugin's conversations of this identity waiting, if one does, and why."""
        served = self._served[plugin]
        return self._told(served, served.breakers.standing(identity), identity)

    def _told(self, served: Served, breaker: Breaker, identity: str) -> dict[str, Any]:
        is_open = breaker.standing is Standing.OPEN
        return {
            "breaker": breaker.standing.value,
            "trial_in_s": max(0.0, breaker.until - self._engine.clock.monotonic()) if is_open else None,
            "trouble": "" if breaker.closed else served.troubles.get(identity, served.troubles.get("", "")),
        }

    def standing(self, plugin: str) -> dict[str, Any]:
        """How a plugin fares, for people: its breakers and why, when the next trials are, conversations it holds."""
        served = self._served.get(plugin)
        if served is None:
            return {}
        engine, whole = self._engine, served.breakers.whole
        return {
            "version": served.plugin.version,
            **self._told(served, whole, ""),
            "waiting_identities": [
                {"identity": identity, **self._told(served, own, identity)}
                for identity, own in served.breakers.waiting().items()
            ],
            "lanes": len(served.lanes),
            "deepest": [
                {"identity": lane.line.identity, "conversation": lane.line.conversation, "depth": lane.depth}
                for lane in self._backlog.deepest(served, _DEEPEST_SHOWN)
            ],
            "running": served.lanes.running,
            "timers": engine.timers.count(plugin),
            "timers_given_up": [
                {"id": timer.id, "identity": timer.identity, "error": timer.error}
                for timer in engine.timers.of(plugin)
                if timer.due_at == math.inf
            ],
            "held": [
                {"identity": identity, "conversation": conversation, "event_id": stretch.first.record.event.id}
                for (name, identity, conversation), (_, stretch) in self._deliveries.parked.items()
                if name == plugin
            ],
        }

    def runs(self, plugin: str, number: int, position: int) -> bool:
        """Whether a turn about the event at this position is under way in the conversation with this number."""
        lane = self._backlog.lane(number, self._served[plugin])
        if lane is None or not lane.began_at:
            return False
        head = lane.served.lanes.first(number, 1)[0]
        first = head.record.position if isinstance(head, Delivery) else 0
        return first <= position <= max(first, lane.until)

    def since(self, identity: str, plugin: str) -> int:
        """The position behind which a plugin serves an identity; what was journaled up to there is never offered."""
        return self._serving.since(identity, plugin)

    def pauses(self) -> list[Paused]:
        """Conversations in which no handler runs."""
        return list(self._engine.pauses)

    def paused(self, number: int) -> Paused | None:
        """The pause of the conversation with this number."""
        return self._engine.pauses.get(number)

    def pause_for(self, plugin: str, number: int) -> Paused | None:
        """The pause of the conversation with this number, if the plugin stands still in it."""
        return self._engine.pauses.pause_for(number, self._served[plugin])

    # --- what it is told

    def release(self, plugin: str, identity: str, conversation: str) -> bool:
        """Let a lane that is held go on behind its dead letter. False if it is not held."""
        return self._deliveries.release(plugin, identity, conversation)

    def pause(self, pause: Paused) -> asyncio.Future[None]:
        """Let no handler run in a conversation; turns under way end as they end. Returns the commit."""
        self._engine.pauses.begin(pause)
        self._engine.arm()
        return self._engine.commits.commit(pause)

    def resume(self, number: int) -> asyncio.Future[None]:
        """Let handlers run again in the conversation with this number. Returns the commit."""
        pause = self._engine.pauses.get(number)
        if pause is not None:
            self._deliveries.guards[pause.identity].forgive(pause.conversation)
        for served in self._served.values():
            if (lane := self._backlog.lane(number, served)) is not None:
                lane.let_through = lane.line.last
        self._engine.resumed(number)
        return self._engine.commits.commit(Resumed(number))

    def rewind(self, plugin: str, identity: str, number: int, position: int) -> asyncio.Future[int]:
        """Let a lane handle what is recorded behind a position again, its sends under new keys.

        What waits in the lane waits for that; the turn that runs, or is tried again, comes first. Returns how many
        events lie there, done once it is on disk. Whoever does not wait for that, does not take it back either.
        """
        served = self._served[plugin]
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        lane = self._backlog.lane(number, served)
        behind = 1 if lane is None else self._loading.of_the_turn(lane)
        served.lanes.interpose(number, Rewind(identity, number, position, done), identity, behind=behind)
        self._engine.enlist(served)
        self._engine.wake()
        return done

    def held_with(self, letter: DeadRow) -> list[int]:
        """Positions of the other events of its turn, where a dead letter's lane stands still behind that turn."""
        return self._deliveries.held_with(letter.plugin, letter.identity, letter.conversation_id, letter.position)

    async def try_again(self, letter: DeadRow, beside: Sequence[DeadRow] = ()) -> None:
        """Deliver a dead letter again: in its place where its lane waits behind it, else by itself, marked late.

        By itself it is a new cause, so that what its handlers sent before they gave up does not stand for what they
        send now. beside: the letters of `held_with`: in its place its turn begins anew with all of its events. The dead
        letters are dropped. Returns once that is on disk.
        """
        now = self._engine.clock.unix()
        place = (letter.plugin, letter.identity, letter.conversation_id)
        in_place = self._deliveries.retry_parked(*place, letter.position)
        row = redelivery(
            letter.plugin,
            letter.identity,
            letter.conversation,
            letter.conversation_id,
            letter.position,
            now,
            again=f"dead letter {letter.number} of {letter.died_at:.3f}",
        )
        letters = (letter, *beside) if in_place is not None else (letter,)
        dropped = [DeadDropped(each.number, now) for each in letters]
        noted = [_tried_again(each, now) for each in letters]
        commit = self._engine.commits.commit(in_place or row, *dropped, *noted)
        if in_place is None:
            self._wakeups.put([row])
        self._engine.wake()
        await commit

    async def rehearse(self, plugin: str, stored: StoredRecord) -> Rehearsed | None:
        """Show what a plugin would do about a recorded event; None if no handler wants it. Nothing comes of it.

        Raises what decoding the record raises.
        """
        record = stored.record(self._revive(stored))
        return await rehearse(self._served[plugin].plugin, record)

    # --- who serves whom

    async def add(self, plugin: Hosted) -> None:
        """Have one more plugin, set up. It serves nobody until `serve` says so."""
        await self._serving.add(plugin)

    def remove(self, plugin: str) -> Hosted:
        """Have a plugin no more that serves nobody. Returns it: tear it down when `turns.idle` returns."""
        return self._serving.remove(plugin)

    def swap(self, plugin: Hosted) -> Hosted:
        """Another generation of a plugin, set up, handles what comes from now on. Returns the one before.

        Turns under way end with the old one: tear it down when `turns.idle` returns.
        """
        return self._serving.swap(plugin)

    async def restore_timers(self, plugin: str) -> None:
        """Have the timers that the handlers of this plugin want, after it was swapped."""
        await self._serving.restore_timers(self._served[plugin])

    async def serve(self, identity: str, plugins: Sequence[str], conduct: config.Conduct) -> list[str]:
        """Have these plugins, and no others, handle what comes to an identity, and let it carry itself so.

        A new identity is offered nothing before this returns. A plugin that is new to an identity begins at the end of
        the log; one that was taken from it before goes on where it stood.
        Returns the plugins that do not serve it any more; their turns end as they end: see `until_left`.
        Raises StillRunning, with nothing changed, if one of those is asked back too soon.
        """
        return await self._serving.serve(identity, plugins, conduct)

    async def until_left(self, places: Sequence[tuple[str, str]], timeout_s: float) -> list[tuple[str, str]]:
        """Wait so long for the last turns of plugins in (identity, plugin). Returns where one still runs."""
        return await self._serving.until_left(places, timeout_s)

    def hurry(self) -> None:
        """A stop is about to wait for all turns: `until_left` and `forget` do not any more."""
        self._serving.hurry()

    def still_running(self, identity: str, plugins: Sequence[str]) -> list[str]:
        """Those of these plugins that `serve` would refuse: a turn of their last service has not ended."""
        return self._serving.still_running(identity, plugins)

    async def forget(self, identity: str, timeout_s: float) -> list[str]:
        """Let nothing of an identity run any more; what it is still offered is left on disk.

        timeout_s: how long to wait for its last turns. Returns the plugins of which one still runs.
        """
        return await self._serving.forget(identity, timeout_s)

    def room_again(self) -> None:
        """Sends have left an outbox: commit the turns that waited for that."""
        self._engine.room_again()

    # --- start and stop

    async def start(self, tasks: asyncio.TaskGroup, inherited: Sequence[Elsewhere] = ()) -> None:
        """Find what was left unhandled and go on with it. Workers are born in `tasks`; a failed journal fails them.

        inherited: what the process before this one still runs.
        """
        engine = self._engine
        begin_with = {identity: [self._served[name] for name in names] for identity, names in self._begin_with.items()}
        self._predecessor.expect(inherited, lambda identity: begin_with.get(identity, ()))
        await self._serving.start(self._begin_with, self._judge)
        self._predecessor.push_rest()
        self._deadline()
        engine.start(tasks)
        engine.arm()
        engine.wake()

    async def stop(self, timeout_s: float) -> None:
        """Claim nothing new, let turns finish for so long, give the rest back uncounted, put every cursor on disk."""
        await self._engine.stop(timeout_s, _LAST_COMMIT_S)
        self._running.close()

    # --- handing over

    async def hold(self, timeout_s: float) -> None:
        """Hand nothing out; return when nothing is under way but turns, and whatever has ended is on disk.

        Raises TimeoutError, and goes on as before.
        """
        await self._engine.hold(timeout_s)

    def hand_over(self, successor: Successor) -> dict[TurnContext[Any] | asyncio.Future[Any], Turn]:
        """From now on another process decides what becomes of the turns that run. Call it as soon as `hold` returns.

        Returns every turn that runs, and every thread that runs on past its deadline.
        """
        engine = self._engine
        engine.successor = successor
        turns: dict[TurnContext[Any] | asyncio.Future[Any], Turn] = {ctx: _turn(ctx) for ctx in engine.under_way}
        for overrun, (served, key) in engine.overruns.items():
            number, timer_id = (key, "") if isinstance(key, int) else (0, str(key[1]))
            turns[overrun] = Turn("overrun", served.plugin.name, conversation=number, timer_id=timer_id)
        return turns

    def take_back(self) -> None:
        """There is no successor after all."""
        self._engine.go_on()

    async def quiet(self) -> None:
        """Return when nothing runs, nothing could run now, and every commit is on disk; delayed lanes may remain."""
        await self._engine.quiet()

    async def _judge(self, cursors: Mapping[str, Mapping[int, int]]) -> Sequence[Attempt]:
        """Blame the death of the process before this one. Returns every failed event."""
        attempts = [each for name in self._served for each in await self._journal.attempts(name)]
        blamed = await self._deliveries.suspects.judge(self._journal, self._unfinished, cursors, attempts)
        if blamed:
            await self._journal.commit(*blamed)
        return [*attempts, *blamed]

    # --- what comes in

    def offer(self, records: Sequence[Record]) -> None:
        """Take records that are on disk, in the order of their positions; each is offered once."""
        self._loading.offer(records, self._serving.serves.get)
        self._engine.wake()

    def signal(self, signal: Signal) -> None:
        """Show a signal to the plugins that want it: best effort, a newer one about the same replacing an older."""
        self._signals.show(signal, self._serving.serves.get(signal.identity, ()))
        self._engine.wake()

    # --- work

    def _carry_out(self, work: Work, waits: Waits) -> Coroutine[Any, Any, None]:
        served, key, item = work
        if isinstance(item, Delivery):
            return self._deliveries.run(item.lane, item, waits)
        if isinstance(item, ReadOn):
            waits()
            return self._loading.read_back(item.lane)
        if isinstance(item, Join):
            waits()
            return self._loading.join(item.lane)
        if isinstance(item, Due):
            return self._wakeups.run(served, key, item, waits)
        if isinstance(item, Inherited):
            return self._predecessor.run(served, key, item, waits)
        if isinstance(item, Rewind):
            waits()
            return self._deliveries.rewind(served, item, self._serving.serves.get(item.identity, ()))
        assert isinstance(key, tuple)
        return self._signals.run(served, key, waits)

    def _deadline(self) -> None:
        """Some time has come: push the timers that are due, end the pauses that are over."""
        self._wakeups.push_due()
        for pause in self._engine.pauses.over(self._engine.clock.unix()):
            self._engine.commits.commit(Resumed(pause.number))
            self._engine.resumed(pause.number)

    def _paused(self, served: Served, number: int) -> None:
        """A lane stands still, since its conversation is paused: leave its mail in the journal."""
        lane = self._backlog.lane(number, served)
        head = served.lanes.first(number, 1)[0]
        if lane is not None and isinstance(head, Delivery):
            lane.still = True
            self._loading.unload(lane, head)


def _tried_again(letter: DeadRow, now: float) -> Outcome:
    return Outcome(letter.plugin, letter.conversation, letter.position, letter.position, TRIED_AGAIN, None, now)


def _turn(ctx: TurnContext[Any]) -> Turn:
    """A turn that runs, as its successor is told of it."""
    about: Any = ctx.about
    if isinstance(about, TimerSet):
        return Turn("timer", ctx.name, about.identity, about.conversation, attempt=ctx.attempt, timer=about)
    if about is None:
        assert isinstance(ctx.event, Signal)
        return Turn("signal", ctx.name, ctx.identity, signal=packed(ctx.event))
    if isinstance(about[1], Stretch):
        first, last = about[1].first.record.position, about[1].last.record.position
        return Turn("events", ctx.name, ctx.identity, ctx.conversation or 0, first, last, ctx.attempt)
    raise AssertionError(about)


async def _nobody_sends(send: Send) -> Sent:
    raise RuntimeError("there is no sender here")
