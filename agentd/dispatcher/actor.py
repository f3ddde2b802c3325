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
from agentd.core.breaker import Limits, Standing
from agentd.core.events import Event, Record, Send, Sent, Signal
from agentd.core.quarantine import is_tried
from agentd.core.retry import Backoff
from agentd.dispatcher.backlog import Backlog, Delivery, Inherited, Lane, Line, ReadOn, Rewind, Served, Stretch
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Log
from agentd.dispatcher.deliveries import Deliveries
from agentd.dispatcher.engine import Engine, Waits, Work, calls_max
from agentd.dispatcher.handing import Elsewhere, Successor, Turn
from agentd.dispatcher.loading import Loading, Marks
from agentd.dispatcher.predecessor import Predecessor
from agentd.dispatcher.rehearsal import Rehearsed, rehearse
from agentd.dispatcher.signals import Signals
from agentd.dispatcher.timers import Due
from agentd.dispatcher.trials import Trial
from agentd.dispatcher.wakeups import Wakeups, redelivery
from agentd.host.context import TurnContext
from agentd.host.isolated import Hosted
from agentd.host.shipped import packed
from agentd.journal.running import Running, Unfinished
from agentd.journal.storage import (
    SUBSCRIPTIONS,
    Attempt,
    Conversation,
    DeadDropped,
    DeadRow,
    Paused,
    Resumed,
    StatePut,
    StoredRecord,
    TimerSet,
)

log = logging.getLogger("agentd.dispatcher")

_LAST_COMMIT_S = 1.0  # a stop waits at least this long for cursors to reach the disk
_MEBIBYTE = 1_048_576


class Dispatcher:
    """Every plugin's lanes over every identity. `start` before intake; `offer` after each commit; `stop` in the end.

    plugins: by name, set up. serves: every identity with the names of its plugins. conduct: how each identity carries
    itself; the defaults where it says nothing. revive: decodes what was stored. on_queued: a commit put these sends
    into the outbox. marks: of deliveries in memory. on_backlog: True when a high mark is reached, False when the low
    ones are again. outbox_room: how many more sends an identity's outbox takes; call `room_again` when it is more than
    it was. send_now: puts a send into the outbox and waits for what becomes of it; raises NotSent. running: where
    calls under way are marked. unfinished: what was under way when the process before this one died.

    dead: per identity, dead letters.
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
        on_backlog: Callable[[bool], None],
        marks: Marks,
        conduct: Mapping[str, config.Conduct] | None = None,
        outbox_room: Callable[[str], int] = lambda identity: sys.maxsize,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
        send_now: Callable[[Send], Awaitable[Sent]] | None = None,
        running: Running | None = None,
        unfinished: Sequence[Unfinished] = (),
    ) -> None:
        self._journal = journal
        self._revive = revive
        self._running = running or Running(list(plugins), calls_max(settings.concurrency, len(plugins)))
        self._unfinished = unfinished
        self._send_now = send_now or _nobody_sends
        self._conduct = {identity: (conduct or {}).get(identity, config.Conduct()) for identity in serves}
        limits = Limits(lanes=settings.breaker_lanes, first_s=settings.breaker_first_s, max_s=settings.breaker_max_s)
        self._served = {
            name: Served(plugin, self._running.tag(name), limits, self._conduct) for name, plugin in plugins.items()
        }
        self._serves = {
            identity: [self._served[name] for name in dict.fromkeys(names)] for identity, names in serves.items()
        }
        for plugin in plugins.values():
            self._introduce(plugin)
        self._since: dict[tuple[str, str], int] = {}
        self.dead = dict.fromkeys(serves, 0)
        self._engine = engine = Engine(
            journal,
            self._served,
            settings.concurrency,
            clock=clock or LoopClock(),
            backoff=backoff or Backoff(),
            chance=chance,
            outbox_room=outbox_room,
            on_queued=on_queued,
        )
        self._backlog = Backlog(serves)
        self._loading = Loading(
            engine,
            self._backlog,
            settings.lane_memory,
            marks,
            revive=revive,
            on_backlog=on_backlog,
            on_dead=self._count_dead,
        )
        self._wakeups = Wakeups(engine, revive=revive, on_dead=self._count_dead)
        self._deliveries = Deliveries(
            engine,
            self._backlog,
            self._loading,
            self._wakeups,
            self._running,
            self._conduct,
            pause=self.pause,
            on_dead=self._count_dead,
        )
        self._signals = Signals(engine, settings.signals_max)
        self._predecessor = Predecessor(engine, self._backlog, self._deliveries, self._wakeups, self._signals, revive)
        engine.carry_out = self._carry_out
        engine.on_deadline = self._deadline
        engine.on_paused = self._paused

    def _introduce(self, plugin: Hosted) -> None:
        """Tell a plugin what it needs to know of everything else."""
        name = plugin.name
        plugin.serves = frozenset(identity for identity, served in self._serves.items() if self._served[name] in served)
        plugin.send_now = self._send_now
        served = self._served[name]
        plugin.on_up = lambda: self._engine.up_again(served)

    def _count_dead(self, identity: str) -> None:
        self.dead[identity] += 1

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
    def shedding(self) -> bool:
        """A high mark was reached, and the low ones are not yet again."""
        return self._loading.shedding

    @property
    def inherited(self) -> int:
        """Turns that the process before this one still runs."""
        return self._predecessor.running

    @property
    def signals_dropped(self) -> int:
        """Signals that came too fast."""
        return self._signals.dropped

    def standing(self, plugin: str) -> dict[str, Any]:
        """How a plugin fares, for people: its breaker, seconds until its next trial, conversations that it holds."""
        served = self._served.get(plugin)
        if served is None:
            return {}
        breaker, engine = served.breaker, self._engine
        trial_in_s = max(0.0, breaker.until - engine.clock.monotonic()) if breaker.standing is Standing.OPEN else None
        return {
            "version": served.plugin.version,
            "breaker": breaker.standing.value,
            "trial_in_s": trial_in_s,
            "lanes": len(served.lanes),
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

    def since(self, identity: str, plugin: str) -> int:
        """The position behind which a plugin serves an identity; what was journaled up to there is never offered."""
        return self._since[identity, plugin]

    def pauses(self) -> list[Paused]:
        """Conversations in which no handler runs."""
        return list(self._engine.pauses)

    def paused(self, number: int) -> Paused | None:
        """The pause of the conversation with this number."""
        return self._engine.pauses.get(number)

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

    async def rewind(self, plugin: str, identity: str, number: int, position: int) -> int:
        """Let a lane handle what is recorded behind a position again, its sends under new keys.

        What waits in the lane waits for that; the turn that runs, or is tried again, comes first. Returns how many
        events lie there, once it is on disk.
        """
        served = self._served[plugin]
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        served.lanes.interpose(number, Rewind(identity, number, position, done))
        self._engine.enlist(served)
        self._engine.wake()
        return await done

    async def try_again(self, letter: DeadRow) -> None:
        """Deliver a dead letter again: in its place where its lane waits behind it, else by itself, marked late.

        By itself it is a new cause, so that what its handlers sent before they gave up does not stand for what they
        send now. The dead letter is dropped. Returns once that is on disk.
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
        commit = self._engine.commits.commit(in_place or row, DeadDropped(letter.number, now))
        if in_place is None:
            self._wakeups.put([row])
        self.dead[letter.identity] -= letter.dropped_at is None
        self._engine.wake()
        await commit

    async def rehearse(self, plugin: str, stored: StoredRecord) -> Rehearsed | None:
        """Show what a plugin would do about a recorded event; None if no handler wants it. Nothing comes of it.

        Raises what decoding the record raises.
        """
        record = stored.record(self._revive(stored))
        return await rehearse(self._served[plugin].plugin, record)

    def swap(self, plugin: Hosted) -> Hosted:
        """Another generation of a plugin, set up, handles what comes from now on. Returns the one before.

        Turns under way end with the old one: tear it down when `turns.idle` returns.
        """
        served = self._served[plugin.name]
        before = served.plugin
        plugin.state = before.state
        plugin.backlog_of = before.backlog_of
        served.run_by(plugin, self._conduct)
        self._introduce(plugin)
        plugin.timers = before.timers
        self._engine.enlist(served)
        self._engine.wake()
        return before

    async def restore_timers(self, plugin: str) -> None:
        """Have the timers that the handlers of this plugin want, after it was swapped."""
        served = self._served[plugin]
        await self._wakeups.restore(served, self._identities_of(served))
        self._deadline()
        self._engine.arm()

    def room_again(self) -> None:
        """Sends have left an outbox: commit the turns that waited for that."""
        self._engine.room_again()

    # --- start and stop

    async def start(self, tasks: asyncio.TaskGroup, inherited: Sequence[Elsewhere] = ()) -> None:
        """Find what was left unhandled and go on with it. Workers are born in `tasks`; a failed journal fails them.

        inherited: what the process before this one still runs.
        """
        engine = self._engine
        self._predecessor.expect(inherited, lambda identity: self._serves.get(identity, ()))
        for identity, plugins in self._serves.items():
            for served in plugins:
                self._since[identity, served.plugin.name] = await self._subscribe(identity, served.plugin.name)
        cursors = {name: await self._journal.cursors(name) for name in self._served}
        attempts = [each for name in self._served for each in await self._journal.attempts(name)]
        blamed = await self._deliveries.suspects.judge(self._journal, self._unfinished, cursors, attempts)
        if blamed:
            await self._journal.commit(*blamed)
        failed = {(each.plugin, each.conversation): each for each in (*attempts, *blamed)}
        for name, served in self._served.items():
            served.replays = await self._journal.replays(name)
        for pause in await self._journal.pauses():
            if pause.identity in self._serves:
                engine.pauses.begin(pause)
        for identity in self._serves:
            await self._restore_guard(identity)
            totals = await self._journal.totals(identity)
            self.dead[identity] = totals.dead
            for conversation in await self._journal.conversations(identity):
                await self._resume(conversation, cursors, failed)
            self._backlog.handled[identity] = totals.journaled - self.pending[identity]
        for served in self._served.values():
            await self._wakeups.restore(served, self._identities_of(served))
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

    def _identities_of(self, served: Served) -> list[str]:
        return [identity for identity, plugins in self._serves.items() if served in plugins]

    async def _subscribe(self, identity: str, plugin: str) -> int:
        """The position from which on a plugin serves an identity; what was journaled before is not its to answer."""
        key = f"{identity}/{plugin}"
        since = await self._journal.state_get(SUBSCRIPTIONS, 0, key)
        if since is not None:
            return int(since)
        position = await self._journal.last_position()
        # On disk before the first event: after a crash, what came since must not look like what was there before.
        await self._journal.commit(StatePut(SUBSCRIPTIONS, 0, key, str(position).encode()))
        return position

    async def _restore_guard(self, identity: str) -> None:
        """What was answered before the restart counts against loops all the same."""
        settings = self._conduct[identity].loop_guard
        since = self._engine.clock.unix() - settings.window_s
        # The sends of one turn were queued together, and are one answer.
        answers = dict.fromkeys(await self._journal.answers_since(identity, since))
        for conversation, peer, at in answers:
            self._deliveries.guards[identity].answered(conversation, peer, at)

    async def _resume(
        self,
        conversation: Conversation,
        cursors: Mapping[str, Mapping[int, int]],
        failed: Mapping[tuple[str, int], Attempt],
    ) -> None:
        line = Line(conversation.number, conversation.identity, conversation.position)
        for served in self._serves[line.identity]:
            name = served.plugin.name
            cursor = cursors[name].get(line.number, self._since[line.identity, name])
            behind = await self._journal.count_behind(line.number, cursor) if cursor < line.last else 0
            lane = Lane(line, served, cursor, -behind)
            lane.before = failed.get((name, line.number))
            line.lanes.append(lane)
        for lane in line.lanes:
            self._predecessor.holds(lane)
        if self._backlog.restore(line):
            for lane in line.lanes:
                if lane.done_count < 0:
                    self._loading.read_on(lane)
                    if lane.before is not None and is_tried(lane.before.deaths):
                        self._engine.trials.call(Trial(lane.served, line.number, True))

    # --- what comes in

    def offer(self, records: Sequence[Record]) -> None:
        """Take records that are on disk, in the order of their positions; each is offered once."""
        self._loading.offer(records, self._serves.__getitem__)
        self._engine.wake()

    def signal(self, signal: Signal) -> None:
        """Show a signal to the plugins that want it: best effort, a newer one about the same replacing an older."""
        self._signals.show(signal, self._serves.get(signal.identity, ()))
        self._engine.wake()

    # --- work

    def _carry_out(self, work: Work, waits: Waits) -> Coroutine[Any, Any, None]:
        served, key, item = work
        if isinstance(item, Delivery):
            return self._deliveries.run(item.lane, item, waits)
        if isinstance(item, ReadOn):
            waits()
            return self._loading.read_back(item.lane)
        if isinstance(item, Due):
            return self._wakeups.run(served, key, item, waits)
        if isinstance(item, Inherited):
            return self._predecessor.run(served, key, item, waits)
        if isinstance(item, Rewind):
            waits()
            return self._deliveries.rewind(served, item, self._serves[item.identity])
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
