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
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from agentd import config, metrics
from agentd.core.breaker import Limits, Standing
from agentd.core.events import Event, Record, Send, Sent, Signal
from agentd.core.retry import Again, Backoff, after_failure
from agentd.dispatcher.backlog import Backlog, Delivery, Item, Key, Lane, Line, ReadOn, Served, SignalKey
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Commits, Log, succeeded
from agentd.dispatcher.fates import attempt, dead_letter, effects, log_failure, reminders, told
from agentd.dispatcher.room import Room
from agentd.dispatcher.suspects import ProcessDied, Suspects
from agentd.dispatcher.timers import Due, Timers, next_beat, recurring
from agentd.dispatcher.workers import Workers
from agentd.errors import GiveUp, RetryLater
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler
from agentd.host.lifecycle import Loaded
from agentd.host.turns import DeadlinePassed, Failure
from agentd.journal.running import Running, Unfinished
from agentd.journal.storage import Attempt, Change, Conversation, Dead, StatePut, StoredRecord, TimerGone, TimerSet

log = logging.getLogger("agentd.dispatcher")

_SIGNALS_MAX = 1_000  # signals that wait per plugin; what comes on top of them is dropped, since they are best effort
_ROOM_LOOK_S = 1.0  # how soon a timer whose sends found the outbox full runs again
_DEEPEST_SHOWN = 10  # lanes that `standing` names; the rest is counted
_LAST_COMMIT_S = 1.0  # a stop waits at least this long for cursors to reach the disk
_SUBSCRIPTIONS = "agentd.subscriptions"  # a plugin's name has no dot, so this is nobody's state


_Work = tuple[Served, Key, Item]


class Dispatcher:
    """Every plugin's lanes over every identity. `start` before intake; `offer` after each commit; `stop` in the end.

    plugins: by name, set up. serves: every identity with the names of its plugins. revive: decodes what was stored.
    on_queued: a commit put these sends into the outbox. backlog: (high, low) marks of deliveries in memory.
    on_backlog: True when the high mark is reached, False when the low one is again. outbox_room: how many more sends an
    identity's outbox takes; call `room_again` when it is more than it was. send_now: puts a send into the outbox and
    waits for what becomes of it; raises NotSent. running: where calls under way are marked. unfinished: what was under
    way when the process before this one died.

    dead: per identity, dead letters. signals_dropped: of those that came too fast.
    """

    def __init__(
        self,
        journal: Log,
        plugins: Mapping[str, Loaded],
        serves: Mapping[str, Sequence[str]],
        settings: config.Dispatch,
        *,
        revive: Callable[[StoredRecord], Event],
        on_queued: Callable[[Sequence[Send]], None],
        on_backlog: Callable[[bool], None],
        backlog: tuple[int, int],
        outbox_room: Callable[[str], int] = lambda identity: sys.maxsize,
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
        send_now: Callable[[Send], Awaitable[Sent]] | None = None,
        running: Running | None = None,
        unfinished: Sequence[Unfinished] = (),
    ) -> None:
        self._journal = journal
        self._lane_memory = settings.lane_memory
        self._revive = revive
        self._on_queued = on_queued
        self._on_backlog = on_backlog
        self._high, self._low = backlog
        self._clock = clock or LoopClock()
        self._backoff = backoff or Backoff()
        self._chance = chance
        self._running = running or Running(list(plugins), settings.concurrency)
        self._unfinished = unfinished
        self._suspects = Suspects()
        self._timers = Timers()
        self._parked: dict[tuple[str, str, str], tuple[Lane, Delivery]] = {}
        limits = Limits(lanes=settings.breaker_lanes, first_s=settings.breaker_first_s, max_s=settings.breaker_max_s)
        self._served = {name: Served(plugin, self._running.tag(name), limits) for name, plugin in plugins.items()}
        self._serves = {
            identity: [self._served[name] for name in dict.fromkeys(names)] for identity, names in serves.items()
        }
        for name, plugin in plugins.items():
            plugin.serves = frozenset(identity for identity, names in serves.items() if name in names)
            plugin.send_now = send_now or _nobody_sends
        self._since: dict[tuple[str, str], int] = {}
        self._backlog = Backlog(serves)
        self._commits = Commits(journal, self._journal_failed, self._stir)
        self._workers = Workers(settings.concurrency, self._take, self._carry_out, self._stir)
        self._rota: deque[Served] = deque()
        self._taken_at = 0.0
        self._held = 0
        self._room: Room[tuple[Lane, Delivery, TurnContext[Any]]] = Room(outbox_room)
        self._shedding = False
        self._stopping = False
        self._timer_at: float | None = None
        self._cancel_timer: Callable[[], None] | None = None
        self._stirred: asyncio.Future[None] | None = None
        self.dead = dict.fromkeys(serves, 0)
        self.signals_dropped = 0

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

    def standing(self, plugin: str) -> dict[str, Any]:
        """How a plugin fares, for people: its breaker, seconds until its next trial, conversations that it holds."""
        served = self._served.get(plugin)
        if served is None:
            return {}
        breaker = served.breaker
        lanes, deepest = self._backlog.lanes_of(served, _DEEPEST_SHOWN)
        trial_in_s = max(0.0, breaker.until - self._clock.monotonic()) if breaker.standing is Standing.OPEN else None
        return {
            "breaker": breaker.standing.value,
            "trial_in_s": trial_in_s,
            "lanes": lanes,
            "deepest": [
                {"identity": lane.line.identity, "conversation": lane.line.conversation, "depth": lane.depth}
                for lane in deepest
            ],
            "timers": self._timers.count(plugin),
            "timers_given_up": [
                {"id": timer.id, "identity": timer.identity, "error": timer.error}
                for timer in self._timers.of(plugin)
                if timer.due_at == math.inf
            ],
            "held": [
                {"identity": identity, "conversation": conversation, "event_id": delivery.record.event.id}
                for (name, identity, conversation), (_, delivery) in self._parked.items()
                if name == plugin
            ],
        }

    def release(self, plugin: str, identity: str, conversation: str) -> bool:
        """Let a lane that is held go on behind its dead letter. False if it is not held."""
        lane, delivery = self._parked.pop((plugin, identity, conversation), (None, None))
        if lane is None or delivery is None:
            return False
        self._finish(lane, delivery)
        self._wake()
        return True

    # --- start and stop

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Find what was left unhandled and go on with it. Workers are born in `tasks`; a failed journal fails them."""
        self._tasks = tasks
        for identity, plugins in self._serves.items():
            for served in plugins:
                self._since[identity, served.plugin.name] = await self._subscribe(identity, served.plugin.name)
        cursors = {name: await self._journal.cursors(name) for name in self._served}
        attempts = [each for name in self._served for each in await self._journal.attempts(name)]
        blamed = await self._suspects.judge(self._journal, self._unfinished, cursors, attempts)
        if blamed:
            await self._journal.commit(*blamed)
        failed = {(each.plugin, each.conversation): each for each in (*attempts, *blamed)}
        for identity in self._serves:
            totals = await self._journal.totals(identity)
            self.dead[identity] = totals.dead
            for conversation in await self._journal.conversations(identity):
                await self._resume(conversation, cursors, failed)
            self._backlog.handled[identity] = totals.journaled - self.pending[identity]
        for served in self._served.values():
            await self._restore_timers(served)
        self._push_due_timers()
        self._workers.start(tasks)
        self._arm()
        self._wake()

    async def stop(self, timeout_s: float) -> None:
        """Claim nothing new, let turns finish for so long, give the rest back uncounted, put every cursor on disk."""
        self._stopping = True
        deadline = self._clock.monotonic() + timeout_s
        if self._cancel_timer is not None:
            self._cancel_timer()
        await self._workers.stop(timeout_s)
        await self._commits.finish(max(_LAST_COMMIT_S, deadline - self._clock.monotonic()))
        self._running.close()

    async def quiet(self) -> None:
        """Return when nothing runs, nothing could run now, and every commit is on disk; delayed lanes may remain."""
        loop = asyncio.get_running_loop()
        while self._is_busy():
            self._stirred = loop.create_future()
            await self._stirred

    def _is_busy(self) -> bool:
        # A lane runs on without a worker while a thread that overran its deadline does.
        running = self._workers.running or any(served.lanes.running for served in self._served.values())
        return bool(running or self._rota or self._held or self._commits.under_way)

    def _stir(self) -> None:
        if self._stirred is not None and not self._stirred.done():
            self._stirred.set_result(None)

    async def _restore_timers(self, served: Served) -> None:
        name = served.plugin.name
        identities = [identity for identity, plugins in self._serves.items() if served in plugins]
        known = await self._journal.timers(name)
        changes = recurring(name, served.intervals, identities, known, self._clock.unix())
        if changes:
            await self._journal.commit(*changes)
        gone = {change.id for change in changes if isinstance(change, TimerGone)}
        fresh = [change for change in changes if isinstance(change, TimerSet)]
        for timer in (*known, *fresh):
            if timer.id not in gone and timer.identity in identities:
                self._timers.put(timer)
        served.plugin.timers = self._timers.count(name)

    async def _subscribe(self, identity: str, plugin: str) -> int:
        """The position from which on a plugin serves an identity; what was journaled before is not its to answer."""
        key = f"{identity}/{plugin}"
        since = await self._journal.state_get(_SUBSCRIPTIONS, 0, key)
        if since is not None:
            return int(since)
        position = await self._journal.last_position()
        # On disk before the first event: after a crash, what came since must not look like what was there before.
        await self._journal.commit(StatePut(_SUBSCRIPTIONS, 0, key, str(position).encode()))
        return position

    async def _resume(
        self,
        conversation: Conversation,
        cursors: Mapping[str, Mapping[int, int]],
        failed: Mapping[tuple[str, int], Attempt],
    ) -> None:
        line = Line(conversation.number, conversation.identity, conversation.conversation, conversation.position)
        for served in self._serves[line.identity]:
            name = served.plugin.name
            cursor = cursors[name].get(line.number, self._since[line.identity, name])
            behind = await self._journal.count_behind(line.number, cursor) if cursor < line.last else 0
            lane = Lane(line, served, cursor, -behind)
            lane.before = failed.get((name, line.number))
            line.lanes.append(lane)
        if self._backlog.restore(line):
            for lane in line.lanes:
                if lane.done_count < 0:
                    self._read_on(lane)

    # --- what comes in

    def offer(self, records: Sequence[Record]) -> None:
        """Take records that are on disk, in the order of their positions; each is offered once."""
        for record in records:
            plugins = self._serves[record.event.identity]
            line = self._backlog.met(record, plugins)
            for lane in line.lanes:
                if lane.behind:
                    continue
                if lane.memory >= self._lane_memory or self.undispatched >= self._high:
                    self._read_on(lane)
                else:
                    self._load(lane, record)
            if not plugins:
                self._backlog.passed_to(line, line.offered)
        self._check_marks()
        self._wake()

    def signal(self, signal: Signal) -> None:
        """Show a signal to the plugins that want it: best effort, a newer one about the same replacing an older."""
        for served in self._serves.get(signal.identity, ()):
            if not _wants(served.plugin, signal):
                continue
            key = _signal_key(signal)
            if key not in served.signals:
                if len(served.signals) >= _SIGNALS_MAX:
                    self.signals_dropped += 1
                    continue
                self._push(served, key, None)
            served.signals[key] = signal
        self._wake()

    def _load(self, lane: Lane, record: Record) -> None:
        """Queue a record if a handler wants it, else pass over it."""
        handlers = _matching(lane.served.plugin, record.event)
        lane.loaded = record.position
        lane.loaded_count += 1
        if handlers is None or handlers:
            lane.memory += 1
            self._backlog.in_memory += 1
            self._push(lane.served, lane.number, Delivery(lane, record, handlers, lane.loaded_count))
        elif not lane.memory:
            self._advance(lane)

    def _read_on(self, lane: Lane) -> None:
        lane.behind = True
        self._push(lane.served, lane.number, ReadOn(lane))

    def _push(self, served: Served, key: Key, item: Item) -> None:
        served.lanes.push(key, item)
        self._list(served)

    def _list(self, served: Served) -> None:
        """Something of this plugin may be ready to run."""
        if not served.listed:
            served.listed = True
            self._rota.append(served)

    def _wake(self) -> None:
        if self._rota:
            self._workers.wake()

    # --- work

    def _take(self) -> _Work | None:
        """The next piece of work, plugin by plugin in turn."""
        now = self._clock.monotonic()
        while self._rota:
            served = self._rota.popleft()
            if not served.breaker.troubled or served.breaker.may_begin(now):
                taken = served.lanes.take(now)
                if taken is not None:
                    self._rota.append(served)
                    self._taken_at = now
                    return served, *taken
            served.listed = False
        return None

    def _carry_out(self, work: _Work, waits: Callable[[], None]) -> Coroutine[Any, Any, None]:
        served, key, item = work
        if isinstance(item, Delivery):
            return self._deliver(item.lane, item, waits)
        if isinstance(item, ReadOn):
            waits()
            return self._read_back(item.lane)
        if isinstance(item, Due):
            return self._wake_up(served, key, item, waits)
        assert isinstance(key, tuple)
        return self._show(served, key, waits)

    async def _show(self, served: Served, key: SignalKey, waits: Callable[[], None]) -> None:
        signal = served.signals.pop(key, None)
        if signal is not None:
            ctx: TurnContext[Any] = TurnContext(served.plugin, signal, None, 1)
            handlers = _matching(served.plugin, signal)
            failure = await served.plugin.turns.run(signal, handlers, ctx, waits)
            if failure is not None:
                log_failure("handler failed on a signal", ctx, failure)
            elif ctx.sends and not self._room.fits(ctx.sends):
                log.warning("the outbox is full: a signal was not answered", extra={"identity": signal.identity})
            elif changes := self._effects(ctx):
                self._commits.commit(*changes).add_done_callback(partial(self._effects_on_disk, ctx))
        served.lanes.done(key)
        self._list(served)

    async def _wake_up(self, served: Served, key: Key, due: Due, waits: Callable[[], None]) -> None:
        """Run a timer's handlers. The timer goes, or has its next beat, with their effects."""
        timer = due.timer
        if timer.failures >= served.plugin.settings.attempts:  # the last of which ended the process
            log.error("timer given up: %s", timer.error, extra={"plugin": timer.plugin, "identity": timer.identity})
            self._settle_timer(served, key, timer, self._given_up(served, timer), None)
            return
        waits()
        # On disk before it runs, so that a handler which ends the process is not run for ever.
        tried = msgspec.structs.replace(timer, failures=timer.failures + 1, error="the process died while it ran")
        await asyncio.wait((self._commits.commit(tried),))
        ctx: TurnContext[Any] = TurnContext(served.plugin, due.event, timer.conversation or None, tried.failures)
        if served.breaker.troubled:
            served.breaker.began(key)
        try:
            failure = await served.plugin.turns.run(ctx.event, _matching(served.plugin, ctx.event), ctx, lambda: None)
        except asyncio.CancelledError:
            self._commits.commit(timer)
            raise
        if failure is None and served.breaker.troubled:
            served.breaker.succeeded(key)
        if failure is None and ctx.sends and not self._room.fits(ctx.sends):
            log.warning("the outbox is full: a timer waits for it", extra={"identity": timer.identity})
            served.lanes.delay(key, self._clock.monotonic() + _ROOM_LOOK_S)
            self._arm()
        elif failure is None:
            self._settle_timer(served, key, timer, self._successor(served, timer), ctx)
        else:
            self._timer_failed(served, key, due, ctx, failure)
        self._list(served)

    async def _read_back(self, lane: Lane) -> None:
        """Load the lane's next records from the journal, up to the last that was offered."""
        line = lane.line
        # All lanes may be behind at once; together they fill memory to the low mark, so that catching up alone does
        # not make intake shed.
        room = max(1, min(self._lane_memory, self._low - self.undispatched))
        stored = await self._journal.read_lane(line.number, lane.loaded, room)
        # What is on disk but not offered yet will be offered.
        known = [each for each in stored if each.position <= line.last]
        for each in known:
            self._load_stored(lane, each)
        lane.behind = bool(known) and lane.loaded < line.last
        if lane.behind:
            self._push(lane.served, lane.number, ReadOn(lane))
        else:
            lane.loaded, lane.loaded_count = line.last, line.offered
            if not lane.memory:
                self._advance(lane)
        lane.served.lanes.done(lane.number)
        self._list(lane.served)
        self._check_marks()

    def _load_stored(self, lane: Lane, stored: StoredRecord) -> None:
        try:
            event = self._revive(stored)
        except Exception as error:
            # It was decoded once, by another version of us. One record must not hold up its conversation for ever.
            name = lane.served.plugin.name
            log.exception("a stored event cannot be decoded", extra={"plugin": name, "identity": stored.identity})
            self._commits.commit(self._dead(lane, stored.position, error))
            lane.loaded = stored.position
            lane.loaded_count += 1
        else:
            self._load(lane, stored.record(event))

    async def _deliver(self, lane: Lane, delivery: Delivery, waits: Callable[[], None]) -> None:
        if lane.before is not None and self._is_put_off(lane, delivery):
            return
        if lane.deaths and self._suspects.must_wait(lane):
            lane.served.lanes.hold(lane.number)
            return
        plugin, breaker = lane.served.plugin, lane.served.breaker
        if breaker.troubled:
            breaker.began(lane.number)
        attempt_number = lane.failures + lane.deaths + 1
        ctx: TurnContext[Any] = TurnContext(plugin, delivery.record.event, lane.line.number, attempt_number)
        started = self._taken_at
        mark = self._running.began(lane.served.tag, delivery.record.position)
        try:
            failure = await plugin.turns.run(ctx.event, delivery.handlers, ctx, waits)
        finally:
            self._running.ended(mark)
        if lane.deaths and (next_suspect := self._suspects.ended(lane)) is not None:
            next_suspect.served.lanes.release(next_suspect.number)
            self._list(next_suspect.served)
        if failure is None:
            outcome = "handled"
            if breaker.troubled:
                breaker.succeeded(lane.number)
            self._handled(lane, delivery, ctx)
        else:
            outcome = self._failed(lane, delivery, ctx, failure)
        metrics.HANDLER_SECONDS.observe(self._clock.monotonic() - started, plugin.name, outcome)
        self._list(lane.served)

    def _is_put_off(self, lane: Lane, delivery: Delivery) -> bool:
        """Take up a failure from before the restart; whether the event must not run now."""
        before, position = lane.before, delivery.record.position
        assert before is not None
        if before.position > position:
            return False
        lane.before = None
        if before.position < position:
            return False
        lane.failures, lane.deaths = before.count, before.deaths
        if before.not_before == math.inf:
            self._park(lane, delivery)
            return True
        if self._suspects.is_condemned(lane, position):
            died = Failure(ProcessDied(lane.deaths), None)
            log.error("dead letter: %s", died.error, extra={"plugin": lane.served.plugin.name})
            self._bury(lane, delivery, died)()
            return True
        remaining_s = before.not_before - self._clock.unix()
        if remaining_s > 0:
            self._delay(lane.served, lane.number, self._clock.monotonic() + remaining_s)
        return remaining_s > 0

    # --- fates

    def _handled(self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any]) -> None:
        if not (ctx.puts or ctx.sends or ctx.reminders):
            self._finish(lane, delivery)
        else:
            # No later turn of this lane may run on effects that may never reach the disk.
            lane.served.lanes.hold(lane.number)
            self._held += 1
            if not ctx.sends or self._room.admit((lane, delivery, ctx), ctx.sends):
                self._commit_turn(lane, delivery, ctx)
            elif len(self._room) == 1:
                log.warning("the outbox is full: turns that send wait for it", extra={"identity": lane.line.identity})

    def _commit_turn(self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any]) -> None:
        changes = self._effects(ctx)
        commit = self._commits.with_cursor(lane, self._position_past(lane, delivery), *changes)
        commit.add_done_callback(partial(self._turn_on_disk, lane, delivery, ctx))

    def room_again(self) -> None:
        """Sends have left an outbox: commit the turns that waited for that."""
        while not self._stopping and len(self._room) and (turn := self._room.pop()) is not None:
            self._commit_turn(*turn)

    def _effects(self, ctx: TurnContext[Any]) -> list[Change]:
        """What a turn staged, as changes; its puts are visible to other turns from now on."""
        if ctx.puts:
            ctx.home.state.committing(ctx.puts)
        return effects(ctx, self._clock.unix()) if ctx.puts or ctx.sends or ctx.reminders else []

    def _settle_timer(
        self, served: Served, key: Key, timer: TimerSet, successor: TimerSet | None, ctx: TurnContext[Any] | None
    ) -> None:
        """Commit that a timer has its fate, with the effects of its turn; its lane waits for that."""
        served.lanes.hold(key)
        self._held += 1
        changes = self._effects(ctx) if ctx is not None else []
        gone = [TimerGone(timer.id)] if successor is None or successor.id != timer.id else []
        commit = self._commits.commit(*gone, *([successor] if successor is not None else []), *changes)
        if ctx is not None:
            commit.add_done_callback(partial(self._effects_on_disk, ctx))
        commit.add_done_callback(partial(self._timer_on_disk, served, key, timer, successor))

    def _timer_on_disk(
        self, served: Served, key: Key, timer: TimerSet, successor: TimerSet | None, commit: asyncio.Future[None]
    ) -> None:
        self._held -= 1
        if succeeded(commit):
            self._timers.drop(timer.id)
            if successor is not None:
                self._timers.put(successor)
            served.plugin.timers = self._timers.count(served.plugin.name)
            served.lanes.done(key)
            self._list(served)
            self._arm()
            self._wake()
        self._stir()

    def _successor(self, served: Served, timer: TimerSet) -> TimerSet | None:
        interval_s = served.intervals.get(timer.name)
        return None if interval_s is None else next_beat(timer, interval_s, self._clock.unix())

    def _given_up(self, served: Served, timer: TimerSet) -> TimerSet:
        """What is left of it: its next beat, or a row that says why, for people."""
        return self._successor(served, timer) or msgspec.structs.replace(timer, due_at=math.inf)

    def _timer_failed(self, served: Served, key: Key, due: Due, ctx: TurnContext[Any], failure: Failure) -> None:
        """As with events; a timer that is given up stays in the journal, due never, and a recurring one goes on."""
        error, handler = failure
        asked_s = error.after_s if isinstance(error, RetryLater) else None
        if not self._is_its_own(served, key, error, asked_s):
            self._postponed(served, key, ctx, failure, asked_s)
            return
        failures = ctx.attempt
        own = handler.attempts if handler is not None else None
        attempts = 0 if isinstance(error, GiveUp) else own or served.plugin.settings.attempts
        verdict = after_failure(failures, attempts, self._backoff, self._chance(), asked_s)
        again_s = verdict.after_s if isinstance(verdict, Again) else math.inf
        failed = msgspec.structs.replace(
            due.timer, failures=failures, due_at=self._clock.unix() + again_s, error=told(error)
        )
        successor = failed if isinstance(verdict, Again) else self._given_up(served, failed)
        log_failure(f"attempt {failures} of a timer failed, the next in {again_s:.1f} s", ctx, failure)
        self._once_it_ended(error, partial(self._settle_timer, served, key, due.timer, successor, None))

    def _turn_on_disk(
        self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any], commit: asyncio.Future[None]
    ) -> None:
        self._held -= 1
        if succeeded(commit):
            self._effects_on_disk(ctx, commit)
            if ctx.sends:
                self._room.committed(ctx.sends)
                self.room_again()
            self._finish(lane, delivery)
            self._wake()
        self._stir()

    def _effects_on_disk(self, ctx: TurnContext[Any], commit: asyncio.Future[None]) -> None:
        if not succeeded(commit):
            return
        if ctx.puts:
            ctx.home.state.committed(ctx.puts)
        if ctx.reminders:
            for timer in reminders(ctx):
                self._timers.put(timer)
            self._served[ctx.name].plugin.timers = self._timers.count(ctx.name)
            self._arm()
        if ctx.sends:
            self._on_queued(ctx.sends)

    def _failed(self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any], failure: Failure) -> str:
        error, handler = failure
        asked_s = error.after_s if isinstance(error, RetryLater) else None
        if not self._is_its_own(lane.served, lane.number, error, asked_s):
            return self._postponed(lane.served, lane.number, ctx, failure, asked_s)
        lane.failures += 1
        own = handler.attempts if handler is not None else None
        verdict = after_failure(
            lane.failures,
            0 if isinstance(error, GiveUp) else own or lane.served.plugin.settings.attempts,
            self._backoff,
            self._chance(),
            asked_s,
        )
        if isinstance(verdict, Again):
            outcome, then = "retried", self._try_again(lane, delivery, failure, verdict)
            log_failure(f"attempt {lane.failures} failed, the next in {verdict.after_s:.1f} s", ctx, failure)
        else:
            outcome, then = "dead", self._bury(lane, delivery, failure)
            log_failure(f"dead letter after attempt {lane.failures}", ctx, failure)
        self._once_it_ended(error, then)
        return outcome

    def _is_its_own(self, served: Served, key: Key, error: BaseException, asked_s: float | None) -> bool:
        """Tell the breaker of a failure; whether it is one of this event and not of the plugin as a whole."""
        breaker = served.breaker
        if isinstance(error, GiveUp):
            breaker.succeeded(key)
            return True
        whole_plugin = isinstance(error, RetryLater) and error.whole_plugin
        was_closed = breaker.closed
        counts = breaker.failed(key, self._clock.monotonic(), asked_s=asked_s, whole_plugin=whole_plugin)
        if was_closed and not breaker.closed:
            name = served.plugin.name
            log.warning("the whole plugin seems out of order: its conversations wait", extra={"plugin": name})
            metrics.BREAKER_OPENED.inc(name)
        return counts

    def _postponed(
        self, served: Served, key: Key, ctx: TurnContext[Any], failure: Failure, asked_s: float | None
    ) -> str:
        """The plugin as a whole is out of order: the same event again when it is not, and no attempt counted."""
        now = self._clock.monotonic()
        until = max(served.breaker.until, now + asked_s if asked_s is not None and math.isfinite(asked_s) else now)
        log_failure(f"failed with its plugin, again in {until - now:.1f} s", ctx, failure)
        self._once_it_ended(failure.error, partial(self._delay, served, key, until))
        self._arm()
        return "postponed"

    def _once_it_ended(self, error: BaseException, then: Callable[[], None]) -> None:
        overrun = error.overrun if isinstance(error, DeadlinePassed) else None
        if overrun is None:
            then()
        else:
            # The thread still works on this event: what comes next in the lane would run beside it.
            overrun.add_done_callback(partial(self._overrun_ended, then))

    def _try_again(self, lane: Lane, delivery: Delivery, failure: Failure, verdict: Again) -> Callable[[], None]:
        not_before = self._clock.unix() + verdict.after_s
        self._commits.commit(attempt(lane, delivery.record.position, failure.error, not_before))
        return partial(self._delay, lane.served, lane.number, self._clock.monotonic() + verdict.after_s)

    def _bury(self, lane: Lane, delivery: Delivery, failure: Failure) -> Callable[[], None]:
        position = delivery.record.position
        dead = self._dead(lane, position, failure.error)
        own = failure.handler.on_dead if failure.handler is not None else None
        if (own or lane.served.plugin.settings.on_dead) == "hold":
            self._commits.commit(dead, attempt(lane, position, failure.error, math.inf))
            return partial(self._park, lane, delivery)
        self._commits.with_cursor(lane, self._position_past(lane, delivery), dead)
        return partial(self._finish, lane, delivery)

    def _park(self, lane: Lane, delivery: Delivery) -> None:
        """Its event is a dead letter, and the lane stands still until `release`."""
        event = delivery.record.event
        name = lane.served.plugin.name
        lane.served.lanes.hold(lane.number)
        self._parked[name, event.identity, event.conversation] = lane, delivery
        log.warning(
            "conversation held behind a dead letter; see: agentd release",
            extra={"plugin": name, "identity": event.identity, "conversation": event.conversation},
        )

    def _dead(self, lane: Lane, position: int, error: BaseException) -> Dead:
        self.dead[lane.line.identity] += 1
        return dead_letter(lane, position, error, self._clock.unix())

    def _overrun_ended(self, then: Callable[[], None], overrun: asyncio.Future[Any]) -> None:
        if not overrun.cancelled():
            overrun.exception()  # counted as a failure already, whatever it was
        if not self._stopping:
            then()
            self._wake()
        self._stir()

    def _position_past(self, lane: Lane, delivery: Delivery) -> int:
        """Where the cursor stands behind this delivery: behind what was passed over after it, too."""
        return lane.loaded if lane.memory == 1 else delivery.record.position

    def _finish(self, lane: Lane, delivery: Delivery) -> None:
        """The delivery at the head of this lane has its fate."""
        lane.memory -= 1
        lane.failures = lane.deaths = 0
        self._backlog.in_memory -= 1
        if lane.memory:
            self._commits.moved(lane, delivery.record.position)
            self._backlog.handled_to(lane, delivery.ordinal)
        else:
            self._advance(lane)
        lane.served.lanes.done(lane.number)
        self._list(lane.served)
        if self._shedding:
            self._check_marks()

    def _advance(self, lane: Lane) -> None:
        """Nothing is queued in this lane: it is through with all that was loaded."""
        self._commits.moved(lane, lane.loaded)
        self._backlog.handled_to(lane, lane.loaded_count)

    # --- time and bounds

    def _delay(self, served: Served, key: Key, until: float) -> None:
        served.lanes.delay(key, until)
        self._list(served)
        self._arm()

    def _arm(self) -> None:
        """Have one timer, at the end of the first delay."""
        deadlines = [served.lanes.next_deadline() for served in self._served.values()]
        deadlines += [each.breaker.until for each in self._served.values() if each.breaker.standing is Standing.OPEN]
        if (due_at := self._timers.next_due()) is not None:
            deadlines.append(self._clock.monotonic() + max(0.0, due_at - self._clock.unix()))
        first = min((each for each in deadlines if each is not None), default=None)
        if first is None or first == self._timer_at or self._stopping:
            return
        if self._cancel_timer is not None:
            self._cancel_timer()
        self._timer_at = first
        self._cancel_timer = self._clock.call_at(first, self._delay_ended)

    def _delay_ended(self) -> None:
        self._cancel_timer = self._timer_at = None
        now = self._clock.monotonic()
        for served in self._served.values():
            if served.lanes.wake(now) or (served.breaker.troubled and served.breaker.may_begin(now)):
                self._list(served)
        self._push_due_timers()
        self._arm()
        self._wake()

    def _push_due_timers(self) -> None:
        for timer in self._timers.pop_due(self._clock.unix()):
            key = timer.conversation or ("timer", timer.id)
            self._push(self._served[timer.plugin], key, Due(timer))

    def _check_marks(self) -> None:
        if self._shedding and self.undispatched <= self._low:
            self._shedding = False
            self._on_backlog(False)
        elif not self._shedding and self.undispatched >= self._high:
            self._shedding = True
            self._on_backlog(True)

    def _journal_failed(self, error: BaseException) -> None:
        if self._stopping:
            log.error("the journal failed: %s", error)
            return
        self._stopping = True
        self._tasks.create_task(_raise(error), name="journal-failed")


async def _nobody_sends(send: Send) -> Sent:
    raise RuntimeError("there is no sender here")


async def _raise(error: BaseException) -> None:
    raise error


def _matching(plugin: Loaded, event: Event | Signal) -> tuple[Handler, ...] | None:
    try:
        return plugin.handlers.match(event)
    except Exception:  # a filter of the plugin's: its lane will see it raise again, and count it as a failure
        return None


def _wants(plugin: Loaded, signal: Signal) -> bool:
    try:
        return bool(plugin.handlers.match(signal))
    except Exception:
        log.exception("a filter failed on a signal", extra={"plugin": plugin.name})
        return False


def _signal_key(signal: Signal) -> SignalKey:
    """Signals of one key replace each other. Who and what they are about tells them apart; what changed does not."""
    about = ("sender", "handle", "reader", "endpoint", "invite_id", "group_id", "epoch", "start")
    parts = (getattr(signal, name, None) for name in about)
    return (type(signal), signal.identity, signal.conversation, *parts)
