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
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from agentd import config, metrics
from agentd.core.events import Event, Record, Send, Signal
from agentd.core.retry import Again, Backoff, after_failure
from agentd.dispatcher.backlog import READ_ON, Backlog, Delivery, Item, Lane, Line, ReadOn, Served, SignalKey
from agentd.dispatcher.clock import Clock, LoopClock
from agentd.dispatcher.commits import Commits, Log, succeeded
from agentd.dispatcher.fates import attempt, dead_letter, effects, log_failure
from agentd.dispatcher.workers import Workers
from agentd.errors import GiveUp, RetryLater
from agentd.host.context import TurnContext
from agentd.host.handlers import Handler
from agentd.host.lifecycle import Loaded
from agentd.host.turns import DeadlinePassed, Failure
from agentd.journal.storage import Attempt, Change, Conversation, Dead, StatePut, StoredRecord

log = logging.getLogger("agentd.dispatcher")

_SIGNALS_MAX = 1_000  # signals that wait per plugin; what comes on top of them is dropped, since they are best effort
_LAST_COMMIT_S = 1.0  # a stop waits at least this long for cursors to reach the disk
_SUBSCRIPTIONS = "agentd.subscriptions"  # a plugin's name has no dot, so this is nobody's state


class _Work(NamedTuple):
    served: Served
    key: Lane | SignalKey
    item: Item


class Dispatcher:
    """Every plugin's lanes over every identity. `start` before intake; `offer` after each commit; `stop` in the end.

    plugins: by name, set up. serves: every identity with the names of its plugins. revive: decodes what was stored.
    on_queued: a commit put these sends into the outbox. backlog: (high, low) marks of deliveries in memory.
    on_backlog: True when the high mark is reached, False when the low one is again.

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
        clock: Clock | None = None,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
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
        self._served = {name: Served(plugin) for name, plugin in plugins.items()}
        self._serves = {
            identity: [self._served[name] for name in dict.fromkeys(names)] for identity, names in serves.items()
        }
        self._since: dict[tuple[str, str], int] = {}
        self._backlog = Backlog(serves)
        self._commits = Commits(journal, self._journal_failed, self._stir)
        self._workers = Workers(settings.concurrency, self._take, self._carry_out, self._stir)
        self._rota: deque[Served] = deque()
        self._held = 0
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

    # --- start and stop

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Find what was left unhandled and go on with it. Workers are born in `tasks`; a failed journal fails them."""
        self._tasks = tasks
        for identity, plugins in self._serves.items():
            for served in plugins:
                self._since[identity, served.plugin.name] = await self._subscribe(identity, served.plugin.name)
        cursors = {name: await self._journal.cursors(name) for name in self._served}
        attempts = [each for name in self._served for each in await self._journal.attempts(name)]
        failed = {(each.plugin, each.conversation): each for each in attempts}
        for identity in self._serves:
            totals = await self._journal.totals(identity)
            self.dead[identity] = totals.dead
            for conversation in await self._journal.conversations(identity):
                await self._resume(conversation, cursors, failed)
            self._backlog.handled[identity] = totals.journaled - self.pending[identity]
        self._workers.start(tasks)
        self._wake()

    async def stop(self, timeout_s: float) -> None:
        """Claim nothing new, let turns finish for so long, give the rest back uncounted, put every cursor on disk."""
        self._stopping = True
        deadline = self._clock.monotonic() + timeout_s
        if self._cancel_timer is not None:
            self._cancel_timer()
        await self._workers.stop(timeout_s)
        await self._commits.finish(max(_LAST_COMMIT_S, deadline - self._clock.monotonic()))

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
        line = Line(conversation.number, conversation.identity, conversation.position)
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
            self._push(lane.served, lane, Delivery(record, handlers, lane.loaded_count))
        elif not lane.memory:
            self._advance(lane)

    def _read_on(self, lane: Lane) -> None:
        lane.behind = True
        self._push(lane.served, lane, READ_ON)

    def _push(self, served: Served, key: Lane | SignalKey, item: Item) -> None:
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
            taken = served.lanes.take(now)
            if taken is not None:
                self._rota.append(served)
                return _Work(served, *taken)
            served.listed = False
        return None

    async def _carry_out(self, work: _Work, waits: Callable[[], None]) -> None:
        served, key, item = work
        if not isinstance(key, Lane):
            await self._show(served, key, waits)
        elif isinstance(item, ReadOn):
            waits()
            await self._read_back(key)
        else:
            assert item is not None
            await self._deliver(key, item, waits)
        self._list(served)

    async def _show(self, served: Served, key: SignalKey, waits: Callable[[], None]) -> None:
        signal = served.signals.pop(key, None)
        if signal is not None:
            ctx: TurnContext[Any] = TurnContext(served.plugin, signal, None, 1)
            failure = await _run(served.plugin, None, ctx, waits)
            if failure is not None:
                log_failure("handler failed on a signal", ctx, failure)
            elif changes := self._effects(ctx):
                self._commits.commit(*changes).add_done_callback(partial(self._effects_on_disk, ctx))
        served.lanes.done(key)

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
            self._push(lane.served, lane, READ_ON)
        else:
            lane.loaded, lane.loaded_count = line.last, line.offered
            if not lane.memory:
                self._advance(lane)
        lane.served.lanes.done(lane)
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
        if lane.before is not None and self._still_delayed(lane, delivery):
            return
        plugin = lane.served.plugin
        ctx: TurnContext[Any] = TurnContext(plugin, delivery.record.event, lane.line.number, lane.failures + 1)
        started = self._clock.monotonic()
        failure = await _run(plugin, delivery.handlers, ctx, waits)
        outcome = self._failed(lane, delivery, ctx, failure) if failure is not None else "handled"
        if failure is None:
            self._handled(lane, delivery, ctx)
        metrics.HANDLER_SECONDS.observe(self._clock.monotonic() - started, plugin.name, outcome)

    def _still_delayed(self, lane: Lane, delivery: Delivery) -> bool:
        """Take up a failure from before the restart; whether its delay still runs."""
        before, position = lane.before, delivery.record.position
        assert before is not None
        if before.position > position:
            return False
        lane.before = None
        if before.position < position:
            return False
        lane.failures = before.count
        remaining_s = before.not_before - self._clock.unix()
        if remaining_s > 0:
            self._delay(lane, self._clock.monotonic() + remaining_s)
        return remaining_s > 0

    # --- fates

    def _handled(self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any]) -> None:
        changes = self._effects(ctx)
        if not changes:
            self._finish(lane, delivery)
        else:
            # No later turn of this lane may run on effects that may never reach the disk.
            lane.served.lanes.hold(lane)
            self._held += 1
            commit = self._commits.with_cursor(lane, self._position_past(lane, delivery), *changes)
            commit.add_done_callback(partial(self._turn_on_disk, lane, delivery, ctx))

    def _effects(self, ctx: TurnContext[Any]) -> list[Change]:
        """What a turn staged, as changes; its puts are visible to other turns from now on."""
        if ctx.puts:
            ctx.home.state.committing(ctx.puts)
        return effects(ctx, self._clock.unix()) if ctx.puts or ctx.sends else []

    def _turn_on_disk(
        self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any], commit: asyncio.Future[None]
    ) -> None:
        self._held -= 1
        if succeeded(commit):
            self._effects_on_disk(ctx, commit)
            self._finish(lane, delivery)
            self._wake()
        self._stir()

    def _effects_on_disk(self, ctx: TurnContext[Any], commit: asyncio.Future[None]) -> None:
        if not succeeded(commit):
            return
        if ctx.puts:
            ctx.home.state.committed(ctx.puts)
        if ctx.sends:
            self._on_queued(ctx.sends)

    def _failed(self, lane: Lane, delivery: Delivery, ctx: TurnContext[Any], failure: Failure) -> str:
        lane.failures += 1
        error, handler = failure
        own = handler.attempts if handler is not None else None
        verdict = after_failure(
            lane.failures,
            0 if isinstance(error, GiveUp) else own or lane.served.plugin.settings.attempts,
            self._backoff,
            self._chance(),
            error.after_s if isinstance(error, RetryLater) else None,
        )
        if isinstance(verdict, Again):
            outcome, then = "retried", self._try_again(lane, delivery, failure, verdict)
            log_failure(f"attempt {lane.failures} failed, the next in {verdict.after_s:.1f} s", ctx, failure)
        else:
            outcome, then = "dead", self._bury(lane, delivery, failure)
            log_failure(f"dead letter after attempt {lane.failures}", ctx, failure)
        overrun = error.overrun if isinstance(error, DeadlinePassed) else None
        if overrun is None:
            then()
        else:
            # The thread still works on this event: what comes next in the lane would run beside it.
            overrun.add_done_callback(partial(self._overrun_ended, then))
        return outcome

    def _try_again(self, lane: Lane, delivery: Delivery, failure: Failure, verdict: Again) -> Callable[[], None]:
        not_before = self._clock.unix() + verdict.after_s
        self._commits.commit(attempt(lane, delivery.record.position, failure.error, not_before))
        return partial(self._delay, lane, self._clock.monotonic() + verdict.after_s)

    def _bury(self, lane: Lane, delivery: Delivery, failure: Failure) -> Callable[[], None]:
        dead = self._dead(lane, delivery.record.position, failure.error)
        self._commits.with_cursor(lane, self._position_past(lane, delivery), dead)
        return partial(self._finish, lane, delivery)

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
        lane.failures = 0
        self._backlog.in_memory -= 1
        if lane.memory:
            self._commits.moved(lane, delivery.record.position)
            self._backlog.handled_to(lane, delivery.ordinal)
        else:
            self._advance(lane)
        lane.served.lanes.done(lane)
        self._list(lane.served)
        if self._shedding:
            self._check_marks()

    def _advance(self, lane: Lane) -> None:
        """Nothing is queued in this lane: it is through with all that was loaded."""
        self._commits.moved(lane, lane.loaded)
        self._backlog.handled_to(lane, lane.loaded_count)

    # --- time and bounds

    def _delay(self, lane: Lane, until: float) -> None:
        lane.served.lanes.delay(lane, until)
        self._list(lane.served)
        self._arm()

    def _arm(self) -> None:
        """Have one timer, at the end of the first delay."""
        deadlines = [served.lanes.next_deadline() for served in self._served.values()]
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
            if served.lanes.wake(now):
                self._list(served)
        self._arm()
        self._wake()

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


async def _raise(error: BaseException) -> None:
    raise error


async def _run(
    plugin: Loaded, handlers: tuple[Handler, ...] | None, ctx: TurnContext[Any], waits: Callable[[], None]
) -> Failure | None:
    """Run a turn. handlers: None to match the event here, where a filter that raises is a failure like any other."""
    if handlers is None:
        try:
            handlers = plugin.handlers.match(ctx.event)
        except Exception as error:
            return Failure(error, None)
    return await plugin.turns.run(ctx.event, handlers, ctx, waits)


def _matching(plugin: Loaded, event: Event) -> tuple[Handler, ...] | None:
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
